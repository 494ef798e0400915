"""What a training on CPUs asks of its own process: threads, kept memory, tiny numbers that are zero, quiet loaders."""

from __future__ import annotations

import ctypes
import os

import torch
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter

# mallopt(3)'s parameters in glibc
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4
_LARGEST_ON_THE_HEAP = 32 << 20  # bytes; glibc takes no more
_MOST_MAPS = 65536  # glibc's default
_KEPT = (2 << 30) - 1  # bytes; the largest int
_GROWTH = 64 << 20
_LOOK_S = 0.05


def prepare_process(device: torch.device) -> None:
    """Sets the number of threads, what the allocator does with freed memory, and denormals, for trainings on CPUs."""
    if device.type == "cpu":
        keep_thread_limit()
        keep_freed_memory()
        # Gradients of a trained network hold many numbers below 1e-38, with which x86 computes a hundred times slower:
        # steps of vit_tiny took twice as long. Threads that begin later inherit this.
        torch.set_flush_denormal(True)


def keep_thread_limit() -> None:
    """Gives the training the threads of ``OMP_NUM_THREADS`` where it names fewer than nnU-Net takes.

    Two trainings at once on a small machine, each with a thread for every core, would wait for each other.
    """
    limit = os.environ.get("OMP_NUM_THREADS", "")
    if limit.isdecimal() and 0 < int(limit) < torch.get_num_threads():
        torch.set_num_threads(int(limit))


def keep_freed_memory() -> None:
    """Lets glibc keep freed memory for the next step instead of giving it back to the system.

    Otherwise every step asks anew for the memory of its activations, and the system clears each page of it, one thread
    at a time. For tensors above 32 MB see :func:`keep_large_tensors`.
    """
    for parameter, value in ((_MMAP_THRESHOLD, _LARGEST_ON_THE_HEAP), (_TRIM_THRESHOLD, _KEPT), (_TOP_PAD, _GROWTH)):
        _glibc("mallopt", parameter, value)


def keep_large_tensors(device: torch.device, keep: bool) -> None:
    """Whether memory of tensors above 32 MB is kept as well, a seventh of the time of vit_b's steps.

    By default glibc gives them maps of their own, which go back to the system once freed. What is not freed in the
    order in which it was made leaves gaps: with checkpointing 5.9 instead of 4.2 GB. Threads of samples have heaps of
    64 MB and map what is larger.
    """
    if device.type != "cpu":
        return
    _glibc("mallopt", _MMAP_MAX, 0 if keep else _MOST_MAPS)
    if not keep:
        _glibc("malloc_trim", 0)


def look_seldom(loaders: tuple) -> None:
    """Lets nnU-Net's data loaders look 20 times a second, not 500, whether their workers are still there.

    Each look takes Python's lock and a core from the step. Batches do not wait for it (batchgenerators from 0.25.3 on).
    Takes effect when the loaders are next started, and beside GPUs, too.
    """
    for loader in loaders:
        if isinstance(loader, NonDetMultiThreadedAugmenter):
            loader.wait_time = _LOOK_S


def _glibc(function: str, *arguments: int) -> None:
    """Calls glibc; other C libraries are left as they are."""
    try:
        call = getattr(ctypes.CDLL(None), function)
    except (OSError, AttributeError, TypeError):  # no glibc
        return
    call(*arguments)
