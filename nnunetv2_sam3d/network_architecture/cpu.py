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
