"""``nnUNetv2_sam3d experiment``: the whole comparison on the tiny data set, and what it does the second time."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

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
    """Cells of the printed overview by arm and column."""
    lines = [[cell.strip() for cell in line.strip("| ").split("|")] for line in output.splitlines() if line[:2] == "| "]
    return {line[0]: dict(zip(lines[0], line, strict=True)) for line in lines[2:]}


def rows_of(file: Path, **wanted: str) -> list[dict[str, str]]:
    """Lines of a CSV file with these values."""
    with file.open(newline="") as lines:
        return [row for row in csv.DictReader(lines) if all(row[name] == value for name, value in wanted.items())]


def test_finished_trainings_are_compared_at_once(trained: Workspace) -> None:
    output = trained.run(*experiment(trained, *TRAINERS))
    assert "plan and preprocess: finished before" in output
    for trainer in TRAINERS:
        assert f"fold 0: train nnUNetTrainer_SAM3D{trainer}: finished before" in output
    rows = table(output)
    assert list(rows) == ["Full", "OriginalEval", "DualPath"]
    folder = trained.results / f"comparison__{trained.plans}__fold_0"
    assert (folder / "report.html").read_text().count(rows["Full"]["large"]) >= 1
    for trainer in TRAINERS:
        fold = trained.fold(f"SAM3D{trainer}", 0)
        mean = json.loads((fold / "validation" / "summary.json").read_text())["mean"]
        for value, structure in (("1", "large"), ("2", "small")):
            assert rows[trainer][structure] == f"{mean[value]['Dice']:.3f}"
            (case,) = rows_of(folder / "cases.csv", model=trainer, structure=structure)
            assert float(case["dice"]) == pytest.approx(mean[value]["Dice"], abs=1e-9)
        checkpoint = read_checkpoint(fold / "checkpoint_final.pth")
        parts = sum(checkpoint["network_weights"][name].numel() for name in checkpoint["sam3d"]["trained"])
        assert rows[trainer]["trained parameters"].partition(" ")[0] == f"{parts:,}"
    assert rows["Full"]["trained parameters"].endswith("(100.0 %)")
    assert rows["OriginalEval"]["trained parameters"].startswith("0 ")
    assert not (folder / "unseen_cases.csv").exists()  # the data set has no imagesTs


def test_a_failing_training_shows_its_reason(planned: Workspace) -> None:
    in_the_way = planned.fold("SAM3DFull", 3)
    in_the_way.parent.mkdir(parents=True, exist_ok=True)
    in_the_way.touch()
    output = planned.fails(*experiment(planned, "Full", fold=3))
    in_the_way.unlink()
    assert "Traceback" not in output.partition("  | ")[0]  # none of ours; the log's own end may hold one
    assert "train nnUNetTrainer_SAM3DFull" in output and "ended with status 1" in output
    (log,) = (planned.results / f"crossval__{planned.plans}__3d_fullres__fold_3" / "logs").glob("*Full*.log")
    assert str(log) in output
    assert f"FileExistsError: [Errno 17] File exists: '{in_the_way}'" in log.read_text()
    assert "run the same command again" in output


@pytest.mark.slow
def test_from_the_raw_data_and_interrupted(raw_datasets: Workspace, tmp_path: Path) -> None:
    """Everything from the raw data set, stopped by Ctrl-C in the first training; then with the time-limited trainer."""
    workspace = replace(raw_datasets, root=tmp_path)
    shutil.copytree(raw_datasets.raw, workspace.raw)
    for kind, ending in (("images", "_0000.nii.gz"), ("labels", ".nii.gz")):
        (workspace.raw / f"{kind}Ts").mkdir()
        shutil.copy(workspace.raw / f"{kind}Tr" / f"case_0{ending}", workspace.raw / f"{kind}Ts" / f"new{ending}")
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
    rows, limited = table(output), "TimeBudget (nnUNetTimeBudgetPlans)"
    assert list(rows) == ["Full", "OriginalEval", "DualPath", limited]
    log = workspace.log("SAM3DFull", 0)
    assert log.count("Epoch 0 ") == 1  # the second start went on from the checkpoint
    assert all(float(row["peak memory, GB"]) > 0.05 for row in rows.values())
    # the new case is the validation's image in the whole prediction's way, without the validation's mirroring
    assert all(0 <= float(row["large (unseen)"]) <= 1 for row in rows.values())
    folder = workspace.results / f"comparison__{workspace.plans}__fold_0"
    assert {row["case"] for row in rows_of(folder / "unseen_cases.csv", model="DualPath")} == {"new"}
    trainings = json.loads((folder / "summary.json").read_text())["trainings"]
    hours = {run["model"]: run["hours"] for run in trainings}
    assert hours.pop(limited) * 3600 >= round(sum(hours.values()) * 3600)
    assert rows[limited]["trained parameters"].endswith("(100.0 %)")

    (workspace.fold("SAM3DDualPath", 0) / "validation" / "summary.json").unlink()  # as if stopped while validating
    again = workspace.run(*command)
    assert "fold 0: train nnUNetTrainer_SAM3DFull: finished before" in again
    assert "fold 0: train nnUNetTrainer_SAM3DDualPath: finished before" not in again
    assert table(again)["DualPath"]["large"] == rows["DualPath"]["large"]


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
