"""Commands that are ended, in whatever way, take their children and temporary folders with them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
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


@pytest.fixture(autouse=True)
def hangs_up() -> Iterator[None]:
    """Tests that ``nohup`` started inherit that SIGHUP is ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


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


@pytest.mark.skipif(not hasattr(os, "register_at_fork"), reason="no fork")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=str)
def test_forked_processes_end_even_before_they_run(number: int) -> None:
    """As nnU-Net's pools end theirs: at once, whether or not they have begun."""
    program = f"""
import os, time
os.register_at_fork(after_in_child=lambda: os.kill(os.getpid(), {int(number)}))  # runs before the package's own
from nnunetv2_sam3d.children import unwind_on_signals
unwind_on_signals()
child = os.fork()
if not child:
    time.sleep(60)
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)
    assert int(result.stdout) == -number, result.stderr


def test_pools_of_many_short_lived_workers_end() -> None:
    program = """
from multiprocessing import Pool
from nnunetv2_sam3d.children import unwind_on_signals
unwind_on_signals()
for _ in range(60):
    with Pool(12) as pool:
        pool.map(abs, [1, 2])
print("ended")
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=True)
    assert result.stdout == "ended\n"
