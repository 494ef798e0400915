"""The diffs of docs/extending.md, applied to a copy of the package; its adapter is trained in test_own_adapter.py."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from extending import code_blocks

import nnunetv2_sam3d

TRAINER = """
from nnunetv2_sam3d.cli import build_parser
from nnunetv2_sam3d.trainers.names import full_name
from nnunetv2_sam3d.trainers.variants import nnUNetTrainer_SAM3DDualPathDecay as trainer
from nnunetv2_sam3d.report.study import controls
assert trainer.__name__ == full_name("DualPathDecay") and trainer.recipe.weight_decay == 0.01
assert controls()[trainer.__name__] == full_name("DualPath")
"""
METRIC = """
import numpy as np
from nnunetv2_sam3d.report.metric_tables import pooled_table
from nnunetv2_sam3d.report.data_files import cases_csv
from nnunetv2_sam3d.results.measure import Row
from nnunetv2_sam3d.results.metrics import measure
from nnunetv2_sam3d.results.statistics import METRICS, summarise
from nnunetv2_sam3d.results.structures import Structure
reference = np.zeros((4, 4, 4), bool)
reference[:2] = True
prediction = reference.copy()
prediction[1, :2] = False
rows = [Row("Full", 0, case, "tumour", 2.0, measure(prediction, reference, (1, 1, 1), 2.0)) for case in "ab"]
summaries = [entry for metric in METRICS for entry in summarise(rows, metric)]
table = pooled_table(summaries, [Structure("tumour", (1,), 2.0, False)], rows)
assert "Volumetric similarity" in table.markdown() and "0.857" in table.markdown(), table.markdown()
assert "volumetric_similarity" in cases_csv(rows).splitlines()[0]
"""


@pytest.mark.parametrize(("number", "check"), [(0, TRAINER), (1, METRIC)], ids=["trainer", "metric"])
def test_diff(number: int, check: str, tmp_path: Path) -> None:
    package = Path(nnunetv2_sam3d.__file__).parent
    shutil.copytree(package, tmp_path / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    diff = code_blocks("diff")[number]
    subprocess.run(["git", "apply", "-"], input=diff, text=True, cwd=tmp_path, check=True)
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    subprocess.run([sys.executable, "-c", check], env=environment, cwd=tmp_path, check=True)
