"""Work on processors, a part of the tokens at a time: inference, and what training computes twice.

On CPUs memory that is asked for anew costs as much as the arithmetic on it, since the system clears it page by page: of
the time that all tokens at once took it was more than a third. What a part needs is below the 32 MB up to which the
allocator keeps memory for the next one, and fits into caches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PART_TOKENS = 2048
_as_on_gpus = ContextVar("as_on_gpus", default=False)


def each_sample(function: Callable[[Tensor, Tensor], None], batch: Tensor) -> Tensor:
    """Lets a function write what it makes of each sample into a new tensor of the batch's shape."""
    results = batch.new_empty(batch.shape)  # contiguous whatever the batch is
    for sample, result in zip(batch, results, strict=True):
        function(sample, result)
    return results


def slabs(volume: Tensor) -> list[slice]:
    """Cuts (D, H, W, ...) along D into parts of whole slices."""
    depth, height, width = volume.shape[:3]
    step = max(1, PART_TOKENS // (height * width))
    return [slice(first, min(first + step, depth)) for first in range(0, depth, step)]


def depthwise_slices(slices: Tensor, weight: Tensor) -> Tensor:
    """Depthwise 3x3 convolution of each slice, in the weight's precision; PyTorch's kernel is far faster than in 3D.

    Shape:
        slices: (D, H, W, C), weight: (C, 1, 3, 3) -> (D, H, W, C)
    """
    images = slices.to(weight.dtype).permute(0, 3, 1, 2)
    with torch.autocast("cpu", enabled=False):
        return F.conv2d(images, weight, padding=1, groups=len(weight)).permute(0, 2, 3, 1)


def depthwise_volume(volume: Tensor, slab: slice, conv: nn.Conv3d) -> Tensor:
    """A slab of a depthwise 3x3x3 convolution (padding 1) of (D, H, W, C), as the sum of three in the plane."""
    assert conv.bias is not None
    result = depthwise_slices(volume[slab], conv.weight[:, :, 1]) + conv.bias
    for offset in (-1, 1):
        near = slice(max(slab.start + offset, 0), min(slab.stop + offset, len(volume)))
        there = slice(near.start - offset - slab.start, near.stop - offset - slab.start)
        result[there] += depthwise_slices(volume[near], conv.weight[:, :, 1 + offset])
    return result


def in_parts(x: Tensor) -> bool:
    """Whether this tensor's tokens are worked on in parts: nothing is kept for gradients."""
    return on_processor(x) and not torch.is_grad_enabled()


def on_processor(x: Tensor) -> bool:
    """Whether what is fast on processors is called for; what is compiled stays simple."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling() and not _as_on_gpus.get()


@contextmanager
def as_on_gpus() -> Iterator[None]:
    """Computes on a processor as GPUs do, to count what they would need."""
    token = _as_on_gpus.set(True)
    try:
        yield
    finally:
        _as_on_gpus.reset(token)


PRECISIONS = ("auto", "float32", "bfloat16")


def cpu_has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 matrices in hardware (AMX or AVX512-BF16)."""
    probes = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in probes)


def cpu_precision(choice: str) -> str:
    """What a choice of precision means for inference on this processor: ``float32`` or ``bfloat16``.

    ``auto`` asks what the processor can do and times nothing: results must not depend on what else the machine was
    doing.

    Raises:
        ValueError: for another choice than ``auto``, ``float32`` and ``bfloat16``.
    """
    if choice not in PRECISIONS:
        raise ValueError(f"precision must be one of {PRECISIONS}, got {choice!r}")
    if choice != "auto":
        return choice
    return "bfloat16" if cpu_has_bfloat16() else "float32"


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
