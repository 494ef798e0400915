"""The user's limit on threads."""

from __future__ import annotations

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
