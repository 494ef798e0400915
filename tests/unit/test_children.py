"""Commands that are ended, in whatever way, take their children and temporary folders with them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nnunetv2_sam3d.children import Child

BENCHMARK = (
    "benchmark",
    "--variant",
    "vit_tiny",
    "--patch-size",
    "64",
    "64",
    "64",
    "--what",
    "step",
    "--repeats",
    "500",
)


def alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def group_below(pid: int) -> list[int]:
    """The child's process group: the program that watches, and what it started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children] + [below for child in children for below in group_below(int(child))]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks at processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL], ids=str)
def test_benchmark_takes_its_worker_along(number: int, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [str(Path(sys.executable).parent / "nnUNetv2_sam3d"), *BENCHMARK],
        env=os.environ | {"TMPDIR": str(tmp_path)}, cwd=tmp_path, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    until = time.monotonic() + 60
    while len(below := group_below(process.pid)) < 2 or not list(tmp_path.glob("sam3d_benchmark_*")):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(number)
    output = process.communicate(timeout=30)[0]
    until = time.monotonic() + 10
    while any(map(alive, below)):
        assert time.monotonic() < until
        time.sleep(0.05)
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 128 + number
        assert "interrupted" in output and "Traceback" not in output
        assert not list(tmp_path.glob("sam3d_benchmark_*"))


def test_status_of_a_child() -> None:
    child = Child(["sh", "-c", "exit 3"])
    assert child.process.wait(20) == 3
    child.close()
    child = Child(["sh", "-c", "kill -9 $$"])
    assert child.process.wait(20) == 128 + signal.SIGKILL
    child.close()
    child = Child(["sleep", "100"])
    child.close()
    assert child.process.wait(20) == -signal.SIGKILL
