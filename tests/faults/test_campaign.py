"""The campaign on report, predict and convert; see campaign.py."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from campaign import Task, contents, kills, left_behind, show, twice_at_once

TRIES = int(os.environ.get("nnUNet_sam3d_test_tries", "10"))
Workspace = Any  # the class in tests/integration/conftest.py

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def tasks(trained: Workspace, tmp_path_factory: pytest.TempPathFactory) -> list[Task]:
    """Commands on the tiny trained models."""
    variables = trained.environment()
    model, images = trained.model("SAM3DFull"), trained.raw / "imagesTr"
    checkpoint = trained.fold("SAM3DFull", 0) / "checkpoint_final.pth"

    def report(folder: Path) -> list[str]:
        options = [
            "-d",
            str(trained.number),
            "--trainers",
            "Full",
            "DualPath",
            "-f",
            "0",
            "-np",
            "1",
            "-o",
            str(folder),
        ]
        return ["nnUNetv2_sam3d", "report", *options]

    def predict(folder: Path) -> list[str]:
        options = ["-m", str(model), "-f", "0", "-i", str(images), "-o", str(folder), "--device", "cpu"]
        return ["nnUNetv2_sam3d", "predict", *options, "--continue_prediction"]

    def convert(folder: Path) -> list[str]:
        return ["nnUNetv2_sam3d", "weights", "convert", str(checkpoint), "-o", str(folder / "model.pth"), "--force"]

    return [Task("report", report, variables=variables), Task("predict", predict, variables=variables),
            Task("convert", convert, lambda folder: folder.mkdir(), variables)]  # fmt: skip


@pytest.fixture(scope="session")
def undisturbed(tasks: list[Task], tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[float, dict[str, str]]]:
    """Seconds and files of every command when nothing happens to it."""
    folder, found = tmp_path_factory.mktemp("undisturbed"), {}
    for task in tasks:
        task.prepared(folder / task.name)
        began = time.monotonic()
        task.finish(folder / task.name)
        found[task.name] = time.monotonic() - began, contents(folder / task.name)
        assert found[task.name][1] and not left_behind(folder / task.name)
    return found


@pytest.mark.parametrize("name", ["report", "predict", "convert"])
def test_killed_at_random_moments(name: str, tasks: list[Task], undisturbed: Any, tmp_path: Path) -> None:
    task, (seconds, expected) = next(task for task in tasks if task.name == name), undisturbed[name]
    counts = kills(task, tmp_path, expected, seconds, TRIES, seed=1)
    print(show(f"killed {name}", counts))
    assert counts["finished"] == counts["identical"] == TRIES
    assert counts["left behind"] <= counts["killed"] and not counts["took more than 10 s to end"]


@pytest.mark.parametrize("name", ["report", "predict", "convert"])
def test_twice_at_once(name: str, tasks: list[Task], undisturbed: Any, tmp_path: Path) -> None:
    task = next(task for task in tasks if task.name == name)
    counts = twice_at_once(task, tmp_path, undisturbed[name][1], max(1, TRIES // 3))
    print(show(f"twice {name}", counts))
    assert counts["identical"] == counts["tries"] and not counts["tracebacks"] and not counts["left behind"]


@pytest.mark.parametrize("name", ["report", "predict", "convert"])
def test_full_disk(name: str, tasks: list[Task], undisturbed: Any, tmp_path: Path) -> None:
    """Files may not grow beyond a few kilobytes, as on a disk that is nearly full; then there is space again."""
    task = next(task for task in tasks if task.name == name)
    target = tmp_path / name
    task.prepared(target)
    limit = 2000
    process = task.start(target, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    try:
        output = process.communicate(timeout=900)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    print(f"full disk {name}: status {process.returncode}, {output.strip().splitlines()[-1][:200]}")
    assert process.returncode != 0 and "Traceback" not in output
    assert not left_behind(target)
    task.finish(target)
    assert contents(target) == undisturbed[name][1]
    shutil.rmtree(target)
