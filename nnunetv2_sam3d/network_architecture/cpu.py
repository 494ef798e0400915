"""What is different on CPUs: chunks of tokens, and bfloat16.

Large temporaries are slow on CPUs: the system clears every new page, which took a third of the forward pass over all
tokens at once. Chunks of 2048 tokens fit into caches, and into memory that is used again (``cpu_memory.py``). Inference
works so, and most of training.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import torch
from torch import Tensor

from nnunetv2_sam3d.network_architecture.config import PRECISIONS

CHUNK_TOKENS = 2048
_as_on_gpus = ContextVar("as_on_gpus", default=False)


def per_chunk(tokens: int = 1) -> int:
    """How many things of so many tokens, windows or slices for instance, are computed at a time."""
    return max(1, CHUNK_TOKENS // tokens)


def slabs(volume: Tensor) -> list[slice]:
    """Cuts (D, H, W, ...) along D into chunks of whole slices."""
    depth, height, width = volume.shape[:3]
    step = per_chunk(height * width)
    return [slice(first, min(first + step, depth)) for first in range(0, depth, step)]


def in_chunks(x: Tensor) -> bool:
    """Whether the tokens of this tensor are computed chunk by chunk: nothing is kept for gradients."""
    return on_cpu(x) and not torch.is_grad_enabled()


def trained_in_chunks(x: Tensor) -> bool:
    """Whether gradients are computed chunk by chunk, by functions of their own, which know no autocast."""
    return on_cpu(x) and torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")


def on_cpu(x: Tensor) -> bool:
    """Whether the forms for CPUs are called for; what is compiled keeps the plain one."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling() and not _as_on_gpus.get()


@contextmanager
def as_on_gpus() -> Iterator[None]:
    """Computes on a CPU as on GPUs, to count what they would need."""
    token = _as_on_gpus.set(True)
    try:
        yield
    finally:
        _as_on_gpus.reset(token)


def bfloat16_is_faster() -> bool:
    """Whether the CPU multiplies bfloat16 matrices faster than float32 ones.

    AMX does. So does AVX512-BF16, four times as fast on AMD's Zen 5, but not on Intel's processors: on a Xeon whose AMX
    the virtual machine hides, bfloat16 takes twice the time of float32.
    """
    amx, avx512 = (
        getattr(torch.cpu, name, lambda: False)() for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    )
    return amx or (avx512 and not _by_intel())


def _by_intel() -> bool:
    """Whether Intel made the processor."""
    try:
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        return "Intel" in platform.processor()


def cpu_precision(choice: str) -> str:
    """What a choice of precision means for inference on this CPU: ``float32`` or ``bfloat16``.

    ``auto`` asks what the CPU can do and times nothing: results must not depend on what else the machine was
    doing.

    Raises:
        ValueError: for another choice than ``auto``, ``float32`` and ``bfloat16``.
    """
    if choice not in PRECISIONS:
        raise ValueError(f"precision must be one of {PRECISIONS}, got {choice!r}")
    if choice != "auto":
        return choice
    return "bfloat16" if bfloat16_is_faster() else "float32"


def in_bfloat16(x: Tensor) -> bool:
    """Whether autocast makes products of this tensor in bfloat16 on a CPU; it has 8 bits, GPUs' float16 has 11."""
    on_cpu = x.device.type == "cpu" and torch.is_autocast_enabled("cpu")
    return on_cpu and torch.get_autocast_dtype("cpu") == torch.bfloat16


def in_float32(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``layer(x)``, on CPUs in float32 where autocast would take bfloat16."""
    if not in_bfloat16(x):
        return layer(x)
    with torch.autocast("cpu", enabled=False):
        return layer(x.float())
