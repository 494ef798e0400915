"""The first table of a report, and the cases outside all folds in it."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from results_tree import PLANS, SHAPE, Tree, labels_of, lines_of, write_image

from nnunetv2_sam3d.report.build import write_report
from nnunetv2_sam3d.report.request import Request

FULL, DUALPATH = "nnUNetTrainer_SAM3DFull", "nnUNetTrainer_SAM3DDualPath"


def overview_of(tree: Tree, output: Path, unseen: dict[str, Path]) -> dict[str, dict[str, str]]:
    """Cells of the report's overview by arm and column."""
    names = {"Full": FULL, "DualPath": DUALPATH}
    request = Request(tree.preprocessed, list(names), names, PLANS, view_cases=[], unseen=unseen)
    write_report(request, output, lambda _: None)
    return {line["arm"]: line for line in lines_of(output / "tables" / "overview.md")}


def test_unseen_cases_stand_beside_the_folds(tree: Tree, tmp_path: Path) -> None:
    """One case, found whole by one arm, and half of it by the other."""
    truth = labels_of(3)
    for file in (tree.raw / "labelsTs" / "new.nii.gz", tmp_path / FULL / "new.nii.gz"):
        write_image(truth, file)
    half = np.where(np.indices(SHAPE)[0] % 2, truth, 0).astype(np.uint8)
    write_image(half, tmp_path / DUALPATH / "new.nii.gz")
    folders = {trainer: tmp_path / trainer for trainer in (FULL, DUALPATH)}
    plain = overview_of(tree, tmp_path / "plain", {})
    rows = overview_of(tree, tmp_path / "report", folders)
    dice = 2 * (half == 2).sum() / ((half == 2).sum() + (truth == 2).sum())
    assert rows["Full"]["tumour (unseen)"] == "1.000" and rows["DualPath"]["tumour (unseen)"] == f"{dice:.3f}"
    assert {arm: row["tumour"] for arm, row in rows.items()} == {arm: row["tumour"] for arm, row in plain.items()}
    assert "tumour (unseen)" not in plain["Full"]
    cases = [(tmp_path / name / "cases.csv").read_text() for name in ("plain", "report")]
    assert cases[0] == cases[1]  # an unseen case is in no statistics of the folds
    with (tmp_path / "report" / "unseen_cases.csv").open(newline="") as lines:
        found = list(csv.DictReader(lines))
    assert {(row["model"], row["case"]) for row in found} == {("Full", "new"), ("DualPath", "new")}
    assert "fold" not in found[0]


def test_missing_predictions_are_named(tree: Tree, tmp_path: Path) -> None:
    write_image(labels_of(3), tree.raw / "labelsTs" / "new.nii.gz")
    with pytest.raises(FileNotFoundError, match=r"new\.nii\.gz.*imagesTs"):
        overview_of(tree, tmp_path / "report", {FULL: tmp_path / FULL})
