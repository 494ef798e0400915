"""The campaign on the commands that take long; see campaign.py."""

from __future__ import annotations

import functools
import os
import resource
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from campaign import (
    Task,
    bound_by_permissions,
    contents,
    kills,
    left_behind,
    measured_cases,
    of_trainings,
    show,
    twice_at_once,
)

TRIES = int(os.environ.get("nnUNet_sam3d_test_tries", "10"))
Workspace = Any  # the class in tests/integration/conftest.py

pytestmark = pytest.mark.slow


NAMES = ["report", "predict", "convert", "evaluate", "benchmark", "crossval", "demo"]


@pytest.fixture(scope="session")
def tasks(trained: Workspace) -> dict[str, Task]:
    """Commands on the tiny trained models, by name."""
    model, images = trained.model("SAM3DFull"), trained.raw / "imagesTr"
    checkpoint = trained.fold("SAM3DFull", 0) / "checkpoint_final.pth"

    def sam3d(*arguments: object) -> list[str]:
        return ["nnUNetv2_sam3d", *map(str, arguments)]

    def report(folder: Path) -> list[str]:
        trainers = ("--trainers", "Full", "DualPath")
        return sam3d("report", "-d", trained.number, *trainers, "-f", 0, "-np", 1, "-o", folder)

    def predict(folder: Path) -> list[str]:
        return sam3d("predict", "-m", model, "-f", 0, "-i", images, "-o", folder, "--device", "cpu",
                     "--continue_prediction")  # fmt: skip

    def convert(folder: Path) -> list[str]:
        return sam3d("weights", "convert", checkpoint, "-o", folder / "model.pth", "--force")

    def evaluate(folder: Path) -> list[str]:
        return sam3d("evaluate", model, "-f", 0, "--device", "cpu", "-o", folder)

    def crossval(folder: Path) -> list[str]:
        return sam3d("crossval", "-d", trained.number, "-p", trained.plans, "--trainers", "Full", "--folds", 1,
                     "--devices", "cpu")  # fmt: skip

    def benchmark(folder: Path) -> list[str]:
        return sam3d("benchmark", "--variant", "vit_tiny", "--patch-size", 16, 32, 32, "--what", "forward", "step",
                     "--repeats", 1, "--json", folder / "records.json")  # fmt: skip

    def demo(folder: Path) -> list[str]:
        """And with it ``experiment``, which it is after the data are made."""
        return sam3d("demo", "--train-cases", 5, "--test-cases", 1, "--epochs", 1, "--iterations-per-epoch", 1,
                     "--device", "cpu", "-o", folder)  # fmt: skip

    def variables(folder: Path) -> dict[str, str]:
        return trained.environment()

    def results_in(folder: Path) -> dict[str, str]:
        return trained.environment(nnUNet_results=str(folder))

    return {
        "report": Task("report", report, variables, compared=lambda folder: contents(folder, (".lock",))),
        "predict": Task("predict", predict, variables),
        "convert": Task("convert", convert, variables, prepared=lambda folder: folder.mkdir()),
        "evaluate": Task("evaluate", evaluate, variables),
        "benchmark": Task("benchmark", benchmark, variables, lambda folder: folder.mkdir(), measured_cases),
        "crossval": Task("crossval", crossval, results_in, lambda folder: folder.mkdir(), of_trainings),
        "demo": Task("demo", demo, variables, compared=of_trainings),
    }


@pytest.fixture(scope="session")
def undisturbed(
    tasks: dict[str, Task], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[float, dict[str, str]]]:
    """Seconds and files of a command when nothing happens to it."""
    folder = tmp_path_factory.mktemp("undisturbed")

    @functools.cache
    def run(name: str) -> tuple[float, dict[str, str]]:
        task, target = tasks[name], folder / name
        task.prepared(target)
        began = time.monotonic()
        task.finish(target)
        seconds, found = time.monotonic() - began, task.compared(target)
        assert found and not left_behind(target)
        return seconds, found

    return run


@pytest.mark.parametrize("name", NAMES)
def test_killed_at_random_moments(name: str, tasks: dict[str, Task], undisturbed: Any, tmp_path: Path) -> None:
    seconds, expected = undisturbed(name)
    counts = kills(tasks[name], tmp_path, expected, seconds, TRIES, seed=1)
    print(show(f"killed {name}", counts))
    assert counts["finished"] == counts["identical"] == TRIES
    assert counts["left behind"] <= counts["killed"] and not counts["took more than 10 s to end"]


@pytest.mark.parametrize("name", NAMES)
def test_twice_at_once(name: str, tasks: dict[str, Task], undisturbed: Any, tmp_path: Path) -> None:
    counts = twice_at_once(tasks[name], tmp_path, undisturbed(name)[1], max(1, TRIES // 3))
    print(show(f"twice {name}", counts))
    assert counts["identical"] == counts["tries"] and not counts["tracebacks"] and not counts["left behind"]


@pytest.mark.parametrize("name", NAMES)
def test_full_disk(name: str, tasks: dict[str, Task], undisturbed: Any, tmp_path: Path) -> None:
    """Files may not grow beyond a few kilobytes, as on a disk that is nearly full; then there is space again."""
    task, target = tasks[name], tmp_path / name
    task.prepared(target)
    limit = 2000
    process = task.start(target, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    try:
        output = process.communicate(timeout=900)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    print(f"full disk {name}: status {process.returncode}, {output.strip().splitlines()[-1][:200]}")
    assert "Traceback" not in output
    assert process.returncode != 0 or (name == "benchmark" and "failed: " in output)  # and its other case is measured
    assert not left_behind(target)
    task.finish(target)
    assert task.compared(target) == undisturbed(name)[1]
    shutil.rmtree(target)


@pytest.mark.parametrize("name", NAMES)
def test_without_permission(name: str, tasks: dict[str, Task], undisturbed: Any, tmp_path: Path) -> None:
    """The folder takes no files; then it does."""
    task, target = tasks[name], tmp_path / name
    target.mkdir()
    target.chmod(0o500)
    process = task.start(target, preexec_fn=bound_by_permissions)
    output = process.communicate(timeout=900)[0]
    print(f"no permission {name}: status {process.returncode}, {output.strip().splitlines()[-1][:200]}")
    assert process.returncode != 0 and "Traceback" not in output and "ermission" in output
    assert not list(target.iterdir())
    target.chmod(0o700)
    task.finish(target)
    assert task.compared(target) == undisturbed(name)[1]
