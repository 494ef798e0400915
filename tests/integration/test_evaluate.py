"""The reference's test protocol in a real training, and on its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Workspace = Any  # the class in conftest.py
FOLDER = "reference_protocol_with_clicks"


def summary(workspace: Workspace, trainer: str) -> dict[str, Any]:
    return json.loads((workspace.fold(trainer, 0) / FOLDER / "summary_with_clicks.json").read_text())


def test_original_eval_runs_it_after_its_validation(trained: Workspace) -> None:
    fold = trained.fold("SAM3DOriginalEval", 0)
    log = trained.log("SAM3DOriginalEval", 0)
    assert log.index("Validation complete") < log.index("WITH CLICKS on the ground truth (not automatic)")
    found = summary(trained, "SAM3DOriginalEval")
    assert list(found["mean"]) == ["1", "3", "10"]
    assert found["validation_cases"] == ["case_0"]
    # no entry of this data set is called like a tumour
    assert (found["settings"]["target"], found["settings"]["target_labels"]) == ("whole foreground", [1, 2])
    assert found["settings"]["crop_size"] == [16, 24, 16]
    validated = {path.name for path in (fold / "validation").iterdir()}
    assert validated == {"case_0.nii.gz", "summary.json", "made_from.json"}
    for trainer in ("SAM3DFull", "SAM3DDualPath"):
        assert not (trained.fold(trainer, 0) / FOLDER).exists()


def test_the_command_gives_the_same_and_works_for_other_trainers(trained: Workspace, tmp_path: Path) -> None:
    model = trained.model("SAM3DOriginalEval")
    trained.run("nnUNetv2_sam3d", "evaluate", model, "--device", "cpu", "-f", 0, "-o", tmp_path / "again")
    again = json.loads((tmp_path / "again" / "summary_with_clicks.json").read_text())
    during_training = summary(trained, "SAM3DOriginalEval")
    for count, figures in again["mean"].items():
        for name, value in figures.items():
            assert abs(value - during_training["mean"][count][name]) < 1e-3, (count, name)
    output = trained.run(
        "nnUNetv2_sam3d", "evaluate", "-d", trained.number, "-f", 0, "-p", trained.plans,
        "-tr", "nnUNetTrainer_SAM3DDualPath", "--device", "cpu", "--target", "small", "--clicks", 2,
        "-o", tmp_path / "small",
    )  # fmt: skip
    assert "small (labels 2)" in output


def test_the_whole_volume_without_clicks_is_nnunets_validation(trained: Workspace, tmp_path: Path) -> None:
    model = trained.model("SAM3DDualPath")
    validation = json.loads((trained.fold("SAM3DDualPath", 0) / "validation" / "summary.json").read_text())
    (expected,) = validation["metric_per_case"]
    for label in ("1", "2"):
        output = tmp_path / label
        options = ("-f", 0, "--device", "cpu", "--target", label, "--clicks", 0, 1, 2, "-o", output)
        printed = trained.run("nnUNetv2_sam3d", "evaluate", model, *options)
        assert "Protocol whole-volume" in printed
        assert {"metrics.csv", "curves.svg", "curves.png"} <= {file.name for file in output.iterdir()}
        case = json.loads((output / "cases" / "case_0.json").read_text())
        automatic, metrics = case["clicks"]["0"], expected["metrics"][label]
        assert case["target_voxels"] == metrics["n_ref"]
        assert automatic["predicted_voxels"] == metrics["n_pred"]
        assert automatic["metrics"]["Dice"] == metrics["Dice"]
        assert len(case["placed"]) == 2
