"""What trainings on CPUs ask of their process."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
import torch
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter

from nnunetv2_sam3d.trainers.cpu_process import look_seldom, prepare_process


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


class _Counting:
    """Batches of a worker, as nnU-Net's data loader gives them."""

    def set_thread_id(self, thread_id: int) -> None:
        self.count = 0

    def __next__(self) -> dict[str, int]:
        self.count += 1
        return {"number": self.count}


def test_loaders_that_look_seldom_lose_no_batch_and_do_not_wait() -> None:
    loader = NonDetMultiThreadedAugmenter(_Counting(), None, 1, num_cached=2, wait_time=0.002)
    look_seldom((loader, SingleThreadedAugmenter(_Counting(), None)))
    assert loader.wait_time >= 0.05
    try:
        begin = time.perf_counter()
        assert [next(loader)["number"] for _ in range(400)] == list(range(1, 401))
        # 20 s if two cached batches waited for a look; without waiting it takes a fraction of a second
        assert time.perf_counter() - begin < 400 * loader.wait_time / 2
    finally:
        loader._finish()
