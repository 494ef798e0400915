"""The MLP of a block on CPUs, some tokens at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nnunetv2_sam3d.network_architecture.cpu import per_chunk
from nnunetv2_sam3d.network_architecture.cpu_memory import Scratch, add_product, product, product_dtype


def add_mlp(tokens: Tensor, norm: nn.LayerNorm, mlp: Any, scratch: Scratch, kept: Tensor | None = None) -> None:
    """``tokens += mlp(norm(tokens))``, (N, C), contiguous.

    Args:
        tokens: replaced.
        norm: before the MLP.
        mlp: a ``layers.MLP`` with GELU.
        scratch: for a chunk of tokens.
        kept: where the hidden layer goes as it is before GELU, (N, hidden), if it is wanted.
    """
    dtype = product_dtype(tokens)
    weight1, bias1, weight2 = (p.to(dtype) for p in (mlp.lin1.weight, mlp.lin1.bias, mlp.lin2.weight))
    for first in range(0, len(tokens), per_chunk()):
        chunk = tokens[first : first + per_chunk()]
        hidden = scratch("wide", len(chunk), mlp.lin1.out_features, dtype=dtype)
        before = hidden if kept is None else kept[first : first + per_chunk()]
        product(norm(chunk).to(dtype), weight1, bias1, before)
        torch.ops.aten.gelu.out(before, out=hidden)
        add_product(chunk, hidden, weight2, mlp.lin2.bias)
