"""``nnUNetv2_sam3d crossval`` with nnU-Net's real commands: interrupted, resumed, on a real Slurm."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from slurm_kit import one_node, require_slurm

from nnunetv2_sam3d.weights.checkpoint_file import read_checkpoint
from nnunetv2_sam3d.weights.reading import METADATA_KEY

Workspace = Any  # the class in conftest.py


def crossval(workspace: Workspace, *arguments: object) -> tuple[Any, ...]:
    """The command, for the workspace's `run`, `fails` and `start`."""
    return ("nnUNetv2_sam3d", "crossval", "-d", workspace.number, "-p", workspace.plans, *arguments)


def commands_of(workspace: Workspace, trainer: str, fold: int) -> list[str]:
    """The training commands that were started for a fold."""
    folder = workspace.results / f"crossval__{workspace.plans}__3d_fullres__fold_{fold}"
    return re.findall(r"^\$ .*", (folder / "logs" / f"train_nnUNetTrainer_{trainer}.log").read_text(), re.M)


def wait_for(condition: Callable[[], Any], seconds: float, what: Callable[[], str]) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what()
        time.sleep(0.05)


def test_finished_folds_are_left_alone(trained: Workspace) -> None:
    files = [trained.fold(f"SAM3D{trainer}", 0) / "checkpoint_final.pth" for trainer in ("Full", "DualPath")]
    before = [file.stat().st_mtime_ns for file in files]
    output = trained.run(*crossval(trained, "--trainers", "DualPath", "Full", "--folds", 0, "--devices", "cpu", "cpu"))
    for trainer in ("Full", "DualPath"):
        assert f"fold 0: train nnUNetTrainer_SAM3D{trainer}: finished before" in output
    assert [file.stat().st_mtime_ns for file in files] == before
    assert f"nnUNetv2_sam3d report -d {trained.number} -p {trained.plans} -f 0 --trainers DualPath Full" in output


@pytest.mark.slow
def test_a_second_repeat(trained: Workspace) -> None:
    """Other random numbers, a start of its own, the same preprocessed data, and nothing of the first one changed."""
    first, second = trained, replace(trained, plans=f"{trained.plans}_repeat2")
    before = (first.fold("SAM3DDualPath", 0) / "checkpoint_final.pth").stat().st_mtime_ns
    command = crossval(first, "--trainers", "DualPath", "Full", "--folds", 0, "--devices", "cpu", "--repeats", 2)
    output = first.run(*command)
    assert "trainings: 4, of which 2 are finished and 2 missing" in output
    assert "repeat 2, fold 0: train nnUNetTrainer_SAM3DDualPath: finished (" in output
    assert (first.fold("SAM3DDualPath", 0) / "checkpoint_final.pth").stat().st_mtime_ns == before
    assert not list(first.preprocessed.glob("*_repeat2_*"))

    full, dualpath = (
        [read_checkpoint(workspace.fold(trainer, 0) / "checkpoint_final.pth") for workspace in (first, second)]
        for trainer in ("SAM3DFull", "SAM3DDualPath")
    )
    assert [checkpoint[METADATA_KEY]["repeat"] for checkpoint in (*full, *dualpath)] == [1, 2, 1, 2]
    seeds = [checkpoint[METADATA_KEY]["seed"] for checkpoint in (*full, *dualpath)]
    assert seeds[0] == seeds[2] != seeds[1] == seeds[3]
    assert f"Seed {seeds[1]} of repeat 2, fold 0" in second.log("SAM3DFull", 0)
    name = next(key for key in full[0]["network_weights"] if key.startswith("mask_decoder."))
    assert not torch.equal(full[0]["network_weights"][name], full[1]["network_weights"][name])
    for start, trained_on in zip(full, dualpath, strict=True):  # frozen in DualPath
        assert torch.equal(start["network_weights"][name], trained_on["network_weights"][name])


@pytest.mark.slow
def test_killed_and_resumed(planned: Workspace) -> None:
    """kill -9 in the first training; the second run goes on from its checkpoint and does the rest."""
    workspace = planned.copy(996)
    command = crossval(workspace, "--trainers", "DualPath", "Full", "--folds", 1, "--devices", "cpu")
    process = workspace.start(*command)
    fold = workspace.fold("SAM3DFull", 1)
    wait_for((fold / "checkpoint_latest.pth").exists, 300, lambda: str(process.poll()))
    process.kill()
    process.wait()
    assert not (fold / "checkpoint_final.pth").exists()

    output = workspace.run(*command)
    assert "[1/2] fold 1: train nnUNetTrainer_SAM3DFull: finished (" in output
    assert "[2/2] fold 1: train nnUNetTrainer_SAM3DDualPath: finished (" in output
    assert workspace.log("SAM3DFull", 1).count("Epoch 0 ") == 1
    folder = workspace.results / f"crossval__{workspace.plans}__3d_fullres__fold_1"
    commands = commands_of(workspace, "SAM3DFull", 1)
    first, *more = [line.endswith(" --c -device cpu") for line in commands]
    assert not first and more and all(more)
    record = json.loads((folder / "steps.json").read_text())
    assert all(record[f"train nnUNetTrainer_SAM3D{name}"]["peak_rss_bytes"] > 50e6 for name in ("Full", "DualPath"))


@pytest.mark.slow
def test_five_folds_on_slurm(planned: Workspace, tmp_path: Path) -> None:
    """Two arrays and the last job; one task gets the signal that comes before a time limit."""
    require_slurm()
    workspace = planned.copy(997)
    with one_node(tmp_path / "slurm") as variables:
        arguments = ("--trainers", "OriginalEval", "Full", "--slurm", "--devices", "cpu")
        # nnU-Net's worker counts of the workspace go along
        options = ("--sbatch", "cpus-per-task=1", "mem=3G")
        command = crossval(workspace, *arguments, *options)
        output = workspace.run(*command, variables=variables)
        first, second, last = re.findall(rf"^(\d+) {workspace.name}__", output, re.M)
        assert "are in the queue already" in workspace.fails(*command, variables=variables)

        environment = workspace.environment(**variables)

        def slurm(*line: str) -> str:
            return subprocess.run(line, env=environment, capture_output=True, text=True).stdout

        latest = workspace.fold("SAM3DFull", 0) / "checkpoint_latest.pth"
        logs = workspace.results / f"crossval__{workspace.plans}__3d_fullres__all_folds" / "slurm" / "logs"

        def state() -> str:
            texts = [f"{log.name}:\n{log.read_text()[-1500:]}" for log in sorted(logs.glob("*"))]
            return slurm("squeue", "-r") + "\n".join(texts)

        wait_for(latest.exists, 300, state)
        slurm("scancel", "--signal=USR1", "--batch", f"{first}_0")
        wait_for(lambda: not slurm("squeue", "-h").strip(), 900, state)
        for job in (first, second, last):
            states = re.findall(r"JobState=(\w+)", slurm("scontrol", "show", "job", job))
            assert states and set(states) == {"COMPLETED"}, state()
    for trainer in ("SAM3DFull", "SAM3DOriginalEval"):
        for fold in range(5):
            assert (workspace.fold(trainer, fold) / "validation" / "summary.json").is_file()
        merged = workspace.model(trainer) / "crossval_results_folds_0_1_2_3_4"
        assert len(json.loads((merged / "summary.json").read_text())["metric_per_case"]) == 5
    # queued again (Slurm may do so more than once), fold 0 went on from its checkpoint each time
    commands = commands_of(workspace, "SAM3DFull", 0)
    first, *more = [line.endswith(" --c -device cpu") for line in commands]
    assert not first and more and all(more)
    assert workspace.log("SAM3DFull", 0).count("Epoch 0 ") == 1
    assert "everything is finished" in workspace.run(*command)
