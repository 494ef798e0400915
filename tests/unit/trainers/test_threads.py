"""What trainings on CPUs ask of their process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from nnunetv2_sam3d.trainers.cpu_process import prepare_process


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(
    ("limit", "device", "threads"),
    [("1", "cpu", 1), ("1", "cuda", 2), ("8", "cpu", 2), ("0", "cpu", 2), ("", "cpu", 2)],
)
def test_thread_limit(monkeypatch: pytest.MonkeyPatch, limit: str, device: str, threads: int) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", limit)
    prepare_process(torch.device(device))
    assert torch.get_num_threads() == threads


def test_tiny_numbers_are_zero_in_all_threads_of_a_training() -> None:
    """Of the process, of those that share an operation, and of those that have a sample each."""
    program = """
import torch
from nnunetv2_sam3d.trainers.cpu_process import prepare_process
from nnunetv2_sam3d.trainers.cpu_samples import SampleThreads
torch.set_num_threads(2)
print(bool(torch.tensor(1e-30) * 1e-10 != 0))
prepare_process(torch.device("cpu"))
tiny = torch.full((1_000_000,), 1e-30)
def products():
    return int((tiny * 1e-10 != 0).sum())
print(products(), *SampleThreads(2)._pool.map(lambda _: products(), range(8)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    first, later = done.stdout.splitlines()
    if torch.set_flush_denormal(False):  # the processor can do it
        assert (first, later) == ("True", " ".join("0" * 9))
