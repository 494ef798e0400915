"""Steps run once, in order, on their devices, and end with what started them. The commands are real, but short."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import SimpleITK as sitk
import torch

from nnunetv2_sam3d.experiment import execute
from nnunetv2_sam3d.experiment.devices import Device, parse_devices
from nnunetv2_sam3d.experiment.execute import run_steps
from nnunetv2_sam3d.experiment.steps import Step, StepCosts, is_whole

CPU = [Device("cpu")]


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execute, "POLL_S", 0.02)


@pytest.fixture
def shell(tmp_path: Path) -> Callable[..., Step]:
    """A function that makes a step of a shell command; it leaves the file of its title, and notes that it ran."""

    def make(title: str, command: str = "true", **fields: Any) -> Step:
        note = f'echo {title} "$@" >> {tmp_path}/order; {command}; touch {tmp_path}/{title}'
        return Step(title, ("sh", "-ec", note, "sh"), (tmp_path / title,), tmp_path / "logs of it", **fields)

    return make


def order(tmp_path: Path) -> list[str]:
    return (tmp_path / "order").read_text().splitlines()


def test_what_is_missing_runs_after_what_it_needs(
    shell: Callable[..., Step], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first = shell("first")
    second = shell("second", after=(first,))
    there = shell("there")
    (tmp_path / "there").touch()
    run_steps([second, there, first], os.environ, CPU)
    assert order(tmp_path) == ["first", "second"]
    output = capfd.readouterr().out
    assert "[1/3] there: finished before" in output
    assert "[3/3] second: finished (" in output
    assert set(StepCosts(tmp_path / "logs of it").steps) == {"first", "second"}
    run_steps([second, there, first], os.environ, CPU)
    assert order(tmp_path) == ["first", "second"]


def test_as_many_at_a_time_as_devices(shell: Callable[..., Step], tmp_path: Path) -> None:
    def meets(other: str) -> str:  # ends only if the other one runs at the same time
        return f"for i in $(seq 400); do [ -e {tmp_path}/{other}.met ] && break; sleep 0.05; done; test $i -lt 400"

    one = shell("one", f"touch {tmp_path}/one.met; {meets('two')}")
    two = shell("two", f"touch {tmp_path}/two.met; {meets('one')}")
    run_steps([one, two], os.environ, [Device("cpu"), Device("cpu")])
    assert one.finished and two.finished


def test_a_failure_takes_only_what_depends_on_it(shell: Callable[..., Step], tmp_path: Path) -> None:
    broken = shell("broken", "echo what went wrong; exit 3")
    follower = shell("follower", after=(broken,))
    last = shell("last", after=(follower,))
    other = shell("other")
    with pytest.raises(RuntimeError, match="ended with status 3") as caught:
        run_steps([broken, follower, last, other], os.environ, CPU)
    assert "| what went wrong" in str(caught.value) and str(broken.log) in str(caught.value)
    assert order(tmp_path) == ["broken", "other"]
    with pytest.raises(RuntimeError, match="left no .*absent"):
        run_steps([Step("lazy", ("true",), (tmp_path / "absent",), tmp_path)], os.environ, CPU)
    with pytest.raises(RuntimeError, match="absent-program"):
        run_steps([Step("none", ("absent-program",), (tmp_path / "absent",), tmp_path)], os.environ, CPU)


def test_a_training_goes_on_from_a_whole_checkpoint(shell: Callable[..., Step], tmp_path: Path) -> None:
    latest, best = tmp_path / "latest.pth", tmp_path / "best.pth"
    train = shell("train", checkpoints=(latest, best), start=("-pretrained_weights", "file"))
    assert train.arguments()[-2:] == ("-pretrained_weights", "file")
    torch.save({"weights": torch.zeros(1000)}, best)
    latest.write_bytes(best.read_bytes()[:3000])  # the power failed while nnU-Net wrote it
    assert is_whole(best, thoroughly=True) and not is_whole(latest)
    flipped = bytearray(best.read_bytes())
    flipped[1500] ^= 1
    (tmp_path / "flipped.pth").write_bytes(flipped)
    assert is_whole(tmp_path / "flipped.pth") and not is_whole(tmp_path / "flipped.pth", thoroughly=True)
    run_steps([train], os.environ, CPU)
    assert order(tmp_path) == ["train --c"]
    assert not latest.exists() and latest.with_suffix(".damaged").stat().st_size == 3000


def test_results_cut_off_or_older_than_their_inputs_are_none(tmp_path: Path) -> None:
    summary, source = tmp_path / "summary.json", tmp_path / "source.json"
    step = Step("s", ("true",), (summary,), tmp_path, inputs=(source,))
    summary.write_text('{"mean": ')
    assert not step.finished
    summary.write_text("{}")
    assert step.finished
    source.write_text("{}")
    os.utime(source, ns=(0, summary.stat().st_mtime_ns + 1))
    assert not step.finished
    assert replace(step, unchanged=lambda: True).finished and not replace(step, unchanged=lambda: False).finished

    mask = tmp_path / "case.nii.gz"
    sitk.WriteImage(sitk.Image(9, 9, 9, sitk.sitkUInt8), str(mask), useCompression=True)
    assert replace(step, results=(mask,), inputs=()).finished
    mask.write_bytes(mask.read_bytes()[:-1])  # nnUNetv2_predict was killed while it wrote it
    assert not replace(step, results=(mask,), inputs=()).finished


def test_devices(shell: Callable[..., Step], tmp_path: Path) -> None:
    two = parse_devices(["cuda:0", "cuda:3", "cpu"])
    assert [str(device) for device in two] == ["cuda:0", "cuda:3", "cpu"]
    (pair,) = parse_devices(["cuda:0", "cuda:3"], num_gpus=2)
    assert pair.arguments == ("-device", "cuda", "-num_gpus", "2")
    assert pair.environment({})["CUDA_VISIBLE_DEVICES"] == "0,3"
    assert pair.environment({"CUDA_VISIBLE_DEVICES": "4,5,6,7"})["CUDA_VISIBLE_DEVICES"] == "4,7"
    assert Device("cuda").environment({"CUDA_VISIBLE_DEVICES": "4"}) == {"CUDA_VISIBLE_DEVICES": "4"}
    with pytest.raises(ValueError, match="cuda:3 does not exist"):
        pair.environment({"CUDA_VISIBLE_DEVICES": "4"})
    for names, number in ((["gpu"], 1), (["cuda:0"], 2), (["cuda:0"], 0), (["cpu"], 2)):
        with pytest.raises(ValueError):
            parse_devices(names, number)
    step = shell("seen", f'echo "$CUDA_VISIBLE_DEVICES" > {tmp_path}/gpus', on_device=True)
    run_steps([step], os.environ, [Device("cuda", (1,))])
    assert (tmp_path / "gpus").read_text() == "1\n"
    assert order(tmp_path) == ["seen -device cuda"]


def test_a_record_adds_up(tmp_path: Path) -> None:
    StepCosts(tmp_path).add("train", 2.0, 10)
    StepCosts(tmp_path).add("train", 3.0, 5)
    assert json.loads((tmp_path / "steps.json").read_text()) == {"train": {"seconds": 5.0, "peak_rss_bytes": 10}}


RUNNER = """
import os, sys
from pathlib import Path
from nnunetv2_sam3d.experiment.devices import Device
from nnunetv2_sam3d.experiment.execute import run_steps
from nnunetv2_sam3d.experiment.steps import Step
folder = Path(sys.argv[1])
# a training with a worker of its own
code = f"sleep 300 & echo $! $$ > {folder}/pids.part; mv {folder}/pids.part {folder}/pids; wait"
run_steps([Step("train", ("sh", "-c", code), (folder / "never",), folder)], os.environ, [Device("cpu")])
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in Linux's /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_leaves_no_training_behind(number: signal.Signals, tmp_path: Path) -> None:
    runner = subprocess.Popen([sys.executable, "-c", RUNNER, str(tmp_path)], stderr=subprocess.DEVNULL)
    wait_for((tmp_path / "pids").exists)
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert all(map(alive, pids))
    again = Step("train", ("true",), (tmp_path / "never",), tmp_path)
    with pytest.raises(RuntimeError, match="another process is at it"):
        run_steps([again], os.environ, CPU)
    runner.send_signal(number)
    runner.wait(timeout=60)
    wait_for(lambda: not any(map(alive, pids)))
    with pytest.raises(RuntimeError, match="left no"):  # nobody is at it any more
        run_steps([again], os.environ, CPU)


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
