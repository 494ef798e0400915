"""Memory on CPUs that is used again, and matrix products that write into memory which is there already.

A new tensor is memory that the system has to clear page by page, which took longer than what then filled it: of GELU's
time, four fifths.
"""

from __future__ import annotations

from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunetv2_sam3d.network_architecture.cpu import in_bfloat16


class Scratch:
    """Memory by name, which the blocks of one pass share. What it held before is in it still."""

    def __init__(self) -> None:
        self._memory: dict[tuple[str, torch.dtype], Tensor] = {}

    def __call__(self, name: str, *shape: int, dtype: torch.dtype) -> Tensor:
        """A contiguous tensor of any content, valid until the name is next asked for."""
        needed = prod(shape)
        memory = self._memory.get((name, dtype))
        if memory is None or len(memory) < needed:
            memory = self._memory[name, dtype] = torch.empty(needed, dtype=dtype)
        return memory[:needed].view(shape)


def product_dtype(x: Tensor) -> torch.dtype:
    """Of what is multiplied: bfloat16 under its autocast."""
    return torch.bfloat16 if in_bfloat16(x) else x.dtype


def product(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    """``out = x @ weight.T + bias``, all of one dtype; autocast does nothing here.

    Shape:
        x: (N, in), weight: (out, in), bias: (out,), out: (N, out)
    """
    if bias is None:
        return torch.mm(x, weight.t(), out=out)
    return torch.addmm(bias, x, weight.t(), out=out)


def add_product(to: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
    """``to += x @ weight.T + bias``; ``to`` may be float32 where the others are bfloat16.

    Shape:
        x: (N, in), weight: (out, in), bias: (out,), to: (N, out)
    """
    if to.dtype != x.dtype:
        with torch.autocast("cpu", enabled=False):
            to += F.linear(x, weight, None if bias is None else bias.to(x.dtype))
        return
    to.addmm_(x, weight.t())
    if bias is not None:
        to += bias


def scaled_product(a: Tensor, b: Tensor, scale: float, out: Tensor) -> Tensor:
    """``out = scale * a @ b`` of batches, (B, N, K), (B, K, M) -> (B, N, M)."""
    return torch.baddbmm(out, a, b, beta=0, alpha=scale, out=out)
