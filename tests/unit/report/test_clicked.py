"""Clicked results in the report: picked up where the protocols leave them, and never beside automatic figures."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from matplotlib.image import imread
from results_tree import Tree, labels_of, write_image

from nnunetv2_sam3d.evaluation.clicked import SUMMARY, collect_clicked, summarise_clicked
from nnunetv2_sam3d.evaluation.protocol import clicks_file, mask_file
from nnunetv2_sam3d.evaluation.reference_protocol import ReferenceProtocol
from nnunetv2_sam3d.evaluation.whole_volume import WholeVolumeProtocol
from nnunetv2_sam3d.report.build import write_report
from nnunetv2_sam3d.report.request import Request
from nnunetv2_sam3d.results.trained_models import find_models, open_dataset
from nnunetv2_sam3d.trainers.names import SHORT_NAMES

NSD = "NSD 5 mm"


def write_clicked(
    tree: Tree, trainer: str, fold: int, gain: float, counts: Sequence[int] = (1, 3), **settings: Any
) -> Path:
    """What a protocol leaves behind: Dice rises by ``gain`` a click; the case without tumour is left out.

    With 0 among the counts it is the whole-volume protocol.
    """
    whole = 0 in counts
    folder = tree.model(trainer) / f"fold_{fold}"
    cases = list(tree.cases[fold::5])
    summary = {
        "protocol": "whole-volume" if whole else "reference",
        "settings": {"target": "tumour", "target_labels": [2], "click_counts": list(counts), "seed": 0,
                     "tolerances_mm": {NSD: 5.0}} | settings
                    | ({"signed_clicks": True} if whole else {"crop_size": [16, 24, 24]}),
        "checkpoint_sha256": sha256((folder / "checkpoint_final.pth").read_bytes()).hexdigest(),
        "validation_cases": cases,
        "provenance": {"checkpoint": str(folder / "checkpoint_final.pth")},
        "cases_left_out": {case: "no voxel of tumour to click on" for case in cases if case == "case_000"},
        "per_case": {
            case: {str(n): {"Dice": 0.5 + gain * n + 0.01 * tree.cases.index(case), NSD: 0.25} for n in counts}
            for case in cases if case != "case_000"
        },
    }  # fmt: skip
    file = folder / (WholeVolumeProtocol if whole else ReferenceProtocol).folder / SUMMARY
    file.parent.mkdir()
    file.write_text(json.dumps(summary))
    return file


def write(tree: Tree, output: Path) -> tuple[str, dict[str, Any]]:
    request = Request(tree.preprocessed, ["Full", "DualPath"], SHORT_NAMES, "nnUNetSAM3DPlans", view_cases=[])
    page = write_report(request, output, lambda line: None).read_text()
    return page, json.loads((output / "summary.json").read_text())


def test_clicked_results_have_a_section_and_files_of_their_own(tree: Tree, tmp_path: Path) -> None:
    """Two models, one of them on some folds only; a second report, when they are gone, has nothing of them."""
    for fold in range(5):
        write_clicked(tree, "nnUNetTrainer_SAM3DDualPath", fold, 0.1)
    write_clicked(tree, "nnUNetTrainer_SAM3DFull", 1, 0.0)
    page, summary = write(tree, tmp_path / "out")
    assert page.index("Automatic results") < page.index("With clicks (reference protocol)") < page.index("Provenance")
    assert "The models were evaluated on different cases: their means do not compare." in page
    assert "case_000: no voxel of tumour to click on" in page
    table = (tmp_path / "out" / "tables" / "with_clicks_reference_0.md").read_text().splitlines()
    assert "one crop of 16x24x24 voxels around random clicks, seed 0" in table[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]
    assert rows[0] == ["metric", "model", "folds", "cases", "1 click", "3 clicks"]
    assert [row[:4] for row in rows[2:]] == [
        ["Dice", "Full", "1", "2"], ["Dice", "DualPath", "0 1 2 3 4", "9"],
        [NSD, "Full", "1", "2"], [NSD, "DualPath", "0 1 2 3 4", "9"],
    ]  # fmt: skip
    assert rows[3][4].startswith("0.650 \\[") and rows[3][5].startswith("0.850 \\[")  # 0.5 + 0.1 n + 0.01 * mean(1..9)
    assert r"\toprule" in (tmp_path / "out" / "tables" / "with_clicks_reference_0.tex").read_text()
    with open(tmp_path / "out" / "clicks.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == (9 + 2) * 2 * 2
    (one,) = [line for line in lines if (line["case"], line["model"], line["clicks"], line["metric"])
              == ("case_004", "DualPath", "3", "Dice")]  # fmt: skip
    assert (one["fold"], float(one["value"]), one["target"]) == ("4", pytest.approx(0.84), "tumour")
    (found,) = summary["with clicks"]
    assert found["settings"]["crop_size"] == [16, 24, 24] and "case_000" in found["left out"]
    for automatic in ("cases.csv", "tables/pooled_automatic.md"):
        assert "0.650" not in (tmp_path / "out" / automatic).read_text()
    for folder in tree.root.glob(f"results/*/*/*/{ReferenceProtocol.folder}"):
        shutil.rmtree(folder)
    page, summary = write(tree, tmp_path / "out")
    assert "With clicks" not in page and summary["with clicks"] == []
    assert not [path for path in (tmp_path / "out").rglob("*") if "click" in path.name]


def test_curves_of_all_models_start_at_automatic(tree: Tree, tmp_path: Path) -> None:
    """Beside the reference protocol's results; what is automatic has a column and a mode of its own."""
    for fold in range(5):
        write_clicked(tree, "nnUNetTrainer_SAM3DFull", fold, 0.03, (0, 1, 3, 5))
        write_clicked(tree, "nnUNetTrainer_SAM3DDualPath", fold, 0.05, (0, 1, 3, 5))
        write_clicked(tree, "nnUNetTrainer_SAM3DDualPath", fold, 0.1)
    page, summary = write(tree, tmp_path / "out")
    assert page.index("With clicks (reference protocol)") < page.index("With clicks (whole-volume protocol)")
    assert [found["protocol"] for found in summary["with clicks"]] == ["reference", "whole-volume"]
    assert "no click is the automatic result, marked by a hollow symbol" in page
    drawn = sorted(path.name for path in (tmp_path / "out" / "figures").iterdir() if "clicks" in path.name)
    assert drawn == [f"curves_with_clicks_whole_volume_1.{kind}" for kind in ("png", "svg")]
    table = (tmp_path / "out" / "tables" / "with_clicks_whole_volume_1.md").read_text()
    table = [re.sub(" +", " ", line) for line in table.splitlines()]
    assert "the whole volume, signed clicks" in table[0]
    assert table[2] == "| metric | model | folds | cases | automatic | 1 click | 3 clicks | 5 clicks |"
    assert table[5].startswith(r"| Dice | DualPath | 0 1 2 3 4 | 9 | 0.550 \[")
    with open(tmp_path / "out" / "clicks.csv", newline="") as file:
        modes = {(row["protocol"], row["mode"], row["clicks"]) for row in csv.DictReader(file)}
    assert ("whole-volume", "automatic", "0") in modes
    assert {mode for _, mode, clicks in modes if clicks != "0"} == {"clicked"}


def test_cases_are_drawn_with_their_clicks(tree: Tree, tmp_path: Path) -> None:
    """From the masks and the clicks that the protocol keeps; models without them have no pictures."""
    summary = write_clicked(tree, "nnUNetTrainer_SAM3DDualPath", 1, 0.05, (0, 1, 3, 10))
    write_clicked(tree, "nnUNetTrainer_SAM3DFull", 1, 0.05, (0, 1, 3, 10))
    folder, case = summary.parent, "case_006"
    for count, shift in ((0, 6), (1, 3), (3, 1), (10, 0)):
        write_image(np.roll(labels_of(6), shift, axis=2), mask_file(folder, count, case, ".nii.gz"))
    truth = sitk.ReadImage(tree.preprocessed / "gt_segmentations" / f"{case}.nii.gz")
    points = [{"label": f"tumour-{n}", "position": truth.TransformIndexToPhysicalPoint(voxel)}
              for n, voxel in enumerate([(12, 13, 8), (14, 15, 9), (2, 2, 2)])]  # fmt: skip
    markups = {"markups": [{"type": "Fiducial", "coordinateSystem": "LPS", "controlPoints": points}]}
    for file, content in (
        (clicks_file(folder, case), markups),
        (folder / "cases" / f"{case}.json", {"placed": [{"sign": 1}, {"sign": 1}, {"sign": -1}]}),
    ):
        file.parent.mkdir()
        file.write_text(json.dumps(content))
    page, _ = write(tree, tmp_path / "out")
    assert "DualPath, worst case with 1 click: case_006" in page and "Full, worst" not in page
    (drawn,) = (tmp_path / "out" / "figures").glob("clicks_*.png")
    pixels = imread(drawn)[..., :3].reshape(-1, 3)
    orange = np.abs(pixels - np.array([0xD5, 0x5E, 0]) / 255).max(1) < 0.02
    assert orange.sum() > 100
    svg = drawn.with_suffix(".svg").read_text()
    assert all(f"<!-- {name} -->" in svg for name in ("automatic", "1 click", "3 clicks"))
    assert "<!-- 10 clicks -->" not in svg


def collected(tree: Tree) -> list:
    dataset = open_dataset(tree.preprocessed)
    models = find_models(dataset, ["Full", "DualPath"], "nnUNetSAM3DPlans", "3d_fullres", SHORT_NAMES)
    return collect_clicked(dataset, models, range(5))


def test_other_settings_are_other_results(tree: Tree) -> None:
    write_clicked(tree, "nnUNetTrainer_SAM3DFull", 1, 0.0)
    write_clicked(tree, "nnUNetTrainer_SAM3DFull", 2, 0.0, click_counts=[1, 3, 10])  # not another one
    write_clicked(tree, "nnUNetTrainer_SAM3DDualPath", 1, 0.0, seed=1)
    assert [(found.settings["seed"], len(found.cases)) for found in collected(tree)] == [(0, 8), (1, 4)]


def test_means_are_over_cases_of_all_folds(tree: Tree) -> None:
    for fold in (1, 3):
        write_clicked(tree, "nnUNetTrainer_SAM3DFull", fold, 0.1)
    (results,) = collected(tree)
    found = {(entry.clicks, entry.metric): entry for entry in summarise_clicked(results)}
    assert list(found) == [(1, "Dice"), (1, NSD), (3, "Dice"), (3, NSD)]
    values = [0.8 + 0.01 * number for number in (1, 6, 3, 8)]
    assert found[3, "Dice"].mean == pytest.approx(np.mean(values))
    reach = 12.706 * 0.01  # t of one degree of freedom; the folds' means are 0.835 and 0.855
    assert found[3, "Dice"].low == pytest.approx(0.845 - reach, abs=1e-5)
    assert found[3, "Dice"].high == pytest.approx(0.845 + reach, abs=1e-5)
    assert (found[3, "Dice"].cases, found[3, "Dice"].folds) == (4, (1, 3))


def test_results_of_another_split_or_checkpoint_are_refused(tree: Tree) -> None:
    file = write_clicked(tree, "nnUNetTrainer_SAM3DFull", 1, 0.0)
    summary = json.loads(file.read_text())
    file.write_text(json.dumps(summary | {"validation_cases": ["case_001"]}))
    with pytest.raises(ValueError, match=r"other validation cases.*evaluate .*3d_fullres -f 1 --protocol reference"):
        collected(tree)
    file.write_text(json.dumps(summary | {"checkpoint_sha256": "0" * 64}))
    with pytest.raises(ValueError, match="another checkpoint than the checkpoint_final.pth"):
        collected(tree)
    file.write_text(json.dumps({"protocol": "reference"}))
    with pytest.raises(ValueError, match="is no summary that"):
        collected(tree)
    file.write_text(json.dumps(summary))
    (file.parents[1] / "checkpoint_final.pth").unlink()  # results that were copied without their checkpoint
    assert len(collected(tree)) == 1
