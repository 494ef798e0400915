"""``nnUNetv2_sam3d experiment``: the whole comparison on the tiny data set, and what it does the second time."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from nnunetv2_sam3d.experiment.comparison import Comparison
from nnunetv2_sam3d.experiment.pictures import draw_overlays
from nnunetv2_sam3d.settings import Settings
from nnunetv2_sam3d.weights.checkpoint_file import read_checkpoint

Workspace = Any  # the class in conftest.py
TRAINERS = ("Full", "DualPath", "OriginalEval")


def experiment(workspace: Workspace, *trainers: str, fold: int = 0) -> tuple[Any, ...]:
    """The command, for the workspace's `run`, `fails` and `start`."""
    return (
        "nnUNetv2_sam3d", "experiment", "-d", workspace.number, "-f", fold, "--device", "cpu",
        "--trainers", *trainers, *workspace.plan_options,
    )  # fmt: skip


def table(output: str) -> dict[str, dict[str, str]]:
    """Cells of the printed table by trainer and column."""
    lines = [[cell.strip() for cell in line.strip("| ").split("|")] for line in output.splitlines() if line[:2] == "| "]
    return {line[0]: dict(zip(lines[0], line, strict=True)) for line in lines[2:]}


def test_finished_trainings_are_compared_at_once(trained: Workspace) -> None:
    output = trained.run(*experiment(trained, *TRAINERS))
    for step in ("plan and preprocess", *(f"train nnUNetTrainer_SAM3D{trainer}" for trainer in TRAINERS)):
        assert f"{step}: finished before" in output
    rows = table(output)
    assert list(rows) == ["SAM3DFull", "SAM3DOriginalEval", "SAM3DDualPath"]
    folder = trained.results / f"comparison__{trained.plans}__fold_0"
    assert (folder / "overlays.png").read_bytes()[:4] == b"\x89PNG"
    assert (folder / "overlays.png").stat().st_size > 5_000
    results = {row["trainer"]: row for row in json.loads((folder / "results.json").read_text())}
    for trainer in TRAINERS:
        fold = trained.fold(f"SAM3D{trainer}", 0)
        row, cells = results[f"nnUNetTrainer_SAM3D{trainer}"], rows[f"SAM3D{trainer}"]
        mean = json.loads((fold / "validation" / "summary.json").read_text())["mean"]
        assert row["validation_dice"] == {"large": mean["1"]["Dice"], "small": mean["2"]["Dice"]}
        assert cells["large (val)"] == f"{mean['1']['Dice']:.3f}"
        checkpoint = read_checkpoint(fold / "checkpoint_final.pth")
        names = checkpoint["sam3d"]["trained"]
        assert row["trained_parameters"] == sum(checkpoint["network_weights"][name].numel() for name in names)
        assert row["unseen_dice"] == {}  # the data set has no imagesTs
        assert (folder / "results.md").read_text().count(f"SAM3D{trainer} ") == 1
    assert results["nnUNetTrainer_SAM3DOriginalEval"]["training_seconds"] == 0
    assert results["nnUNetTrainer_SAM3DOriginalEval"]["trained_parameters"] == 0
    assert results["nnUNetTrainer_SAM3DFull"]["training_seconds"] > 0
    full = results["nnUNetTrainer_SAM3DFull"]
    assert full["trained_parameters"] == full["all_parameters"]


def test_columns_of_the_pictures_have_names(
    trained: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in trained.environment().items():
        if name.startswith("nnUNet_"):
            monkeypatch.setenv(name, value)
    saved: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: saved.append(figure))
    names = tuple(f"nnUNetTrainer_SAM3D{trainer}" for trainer in TRAINERS)
    comparison = Comparison(trained.number, names, 0, Settings(variant="vit_tiny"), "cpu", plans=trained.plans)
    draw_overlays(comparison, tmp_path / "overlays.png")
    titles = [axis.get_title() for axis in saved[0].axes]
    assert titles == ["image", "annotation", "SAM3DFull", "SAM3DDualPath", "SAM3DOriginalEval"]  # one case, one line


def test_a_failing_training_shows_its_reason(planned: Workspace) -> None:
    output = planned.fails(*experiment(planned, "DualPath", fold=3))  # without the model that it starts from
    assert "Traceback" not in output.partition("  | ")[0]  # none of ours; the log's own end may hold one
    assert "train nnUNetTrainer_SAM3DDualPath" in output and "ended with status 1" in output
    assert f"nnUNetv2_train {planned.name} 3d_fullres 3 -tr nnUNetTrainer_SAM3DFull" in output
    log = planned.results / f"comparison__{planned.plans}__fold_3" / "logs" / "train_nnUNetTrainer_SAM3DDualPath.log"
    assert str(log) in output
    assert "WeightsError" in log.read_text()
    assert "run the same command again" in output


@pytest.mark.slow
def test_from_the_raw_data_and_interrupted(raw_datasets: Workspace, tmp_path: Path) -> None:
    """Everything from the raw data set, stopped by Ctrl-C in the first training; then with the time-limited trainer."""
    workspace = replace(raw_datasets, root=tmp_path)
    (tmp_path / "raw").symlink_to(raw_datasets.root / "raw")
    (tmp_path / "results").mkdir()
    workspace.preprocessed.mkdir(parents=True)
    (workspace.preprocessed / "splits_final.json").write_text(
        json.dumps([{"train": [f"case_{case}" for case in range(1, 5)], "val": ["case_0"]}] * 5)
    )
    command = experiment(workspace, "OriginalEval", "TimeBudget", "DualPath", "Full")  # in any order
    process = workspace.start(*command)
    latest = workspace.fold("SAM3DFull", 0) / "checkpoint_latest.pth"
    while not latest.exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGINT)
    assert "run the same command again" in process.communicate(timeout=100)[0]
    assert process.returncode == 130
    assert not (workspace.fold("SAM3DFull", 0) / "checkpoint_final.pth").exists()

    output = workspace.run(*command)
    assert "plan and preprocess: finished before" in output
    assert list(table(output)) == ["SAM3DFull", "SAM3DDualPath", "SAM3DOriginalEval", "TimeBudget"]
    log = workspace.log("SAM3DFull", 0)
    assert log.count("Epoch 0 ") == 1  # the second start went on from the checkpoint
    folder = workspace.results / f"comparison__{workspace.plans}__fold_0"
    results = {row["trainer"]: row for row in json.loads((folder / "results.json").read_text())}
    assert all(row["peak_rss_bytes"] > 50e6 for row in results.values())
    spent = sum(row["training_seconds"] for name, row in results.items() if "SAM3D" in name)
    limited = results["nnUNetTrainer_TimeBudget"]
    assert limited["training_seconds"] >= round(spent)
    assert limited["trained_parameters"] == limited["all_parameters"]

    (workspace.fold("SAM3DDualPath", 0) / "validation" / "summary.json").unlink()  # as if stopped while validating
    again = workspace.run(*command)
    assert "train nnUNetTrainer_SAM3DFull: finished before" in again
    assert "train nnUNetTrainer_SAM3DDualPath: finished before" not in again
    assert table(again)["SAM3DDualPath"]["large (val)"] == table(output)["SAM3DDualPath"]["large (val)"]


@pytest.mark.slow
def test_time_budget(planned: Workspace) -> None:
    limited = replace(planned, plans="Budget")
    options = [*planned.plan_options, "--max-seconds", 5, "-o", limited.plans]
    planned.run("nnUNetv2_sam3d", "plan", "-d", planned.number, *options)
    limited.train("TimeBudget", 0)
    log = read_checkpoint(limited.fold("TimeBudget", 0) / "checkpoint_final.pth")["logging"]
    durations = [
        end - start for start, end in zip(log["epoch_start_timestamps"], log["epoch_end_timestamps"], strict=True)
    ]
    assert sum(durations) >= 5
    assert sum(durations[:-1]) < 5  # the epoch that crosses the limit is the last one
    assert log["lrs"][0] == 1e-2
    assert log["lrs"] == sorted(log["lrs"], reverse=True)
    assert (limited.fold("TimeBudget", 0) / "validation" / "summary.json").exists()
