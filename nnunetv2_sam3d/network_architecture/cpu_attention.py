"""Attention of a block on CPUs without gradients: some windows at a time, into the memory of the tokens.

The same function as ``image_encoder.WindowAttention3d``, whose extended queries and keys are written where the fused
attention reads them. Without padding, tokens of one window are read by no other, so that each window may replace its
own.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_sam3d.network_architecture.cpu import per_chunk
from nnunetv2_sam3d.network_architecture.cpu_memory import Scratch, add_product, product, product_dtype
from nnunetv2_sam3d.network_architecture.windows import REGION_PENALTY, WindowLayout, by_offset


def attend_(tokens: Tensor, norm: nn.LayerNorm, attn: Any, layout: WindowLayout, scratch: Scratch) -> None:
    """``tokens += attn(norm(tokens))`` of one sample, (D * H * W, C), contiguous.

    Args:
        tokens: replaced.
        norm: before attention.
        attn: a ``WindowAttention3d``.
        layout: of the windows.
        scratch: for a chunk of windows.
    """
    windows = _Windows(attn, layout, product_dtype(tokens), scratch)
    padded = len(layout.gather) > len(tokens)  # with a token that many windows read
    width, dtype = tokens.shape[1], tokens.dtype
    everything = scratch("slots", len(layout.gather), width, dtype=dtype) if padded else tokens
    for part in chunks_of_windows(layout):
        slots = slice(part.start * layout.tokens, part.stop * layout.tokens)
        places = layout.gather[slots]
        rows = everything[slots] if padded else scratch("rows", len(places), width, dtype=dtype)
        torch.index_select(tokens, 0, places, out=rows)
        windows.add_attention(rows, norm(rows), part)
        if not padded:
            tokens.index_copy_(0, places, rows)
    if padded:
        torch.index_select(everything, 0, layout.scatter, out=tokens)


class _Windows:
    """What a chunk of windows is computed in: queries, keys and values, extended as in ``WindowAttention3d``.

    What the chunks share is written once: the keys' positions, and zeros.
    """

    def __init__(self, attn: Any, layout: WindowLayout, dtype: torch.dtype, scratch: Scratch) -> None:
        self.attn, self.layout, self.dtype, self.scratch = attn, layout, dtype, scratch
        self.scale = attn.head_dim**-0.5
        self.qkv_weight, self.proj_weight = attn.qkv.weight.to(dtype), attn.proj.weight.to(dtype)
        self.qkv_bias = attn.qkv.bias.to(dtype).view(3, -1, 1, attn.head_dim)
        # attention scales all of it
        offsets = [by_offset(attn.relative(axis, edge)) for axis, edge in enumerate(layout.size)]
        self.offsets = (attn.lr / self.scale * torch.cat(offsets)).to(dtype)
        self.positions = slice(attn.head_dim, attn.head_dim + layout.position.shape[1])
        codes = 0 if layout.region is None else layout.region.shape[2]
        self.regions = slice(self.positions.stop, self.positions.stop + codes)
        self.width = self.regions.stop + -self.regions.stop % 8
        most = chunks_of_windows(layout)[0]
        self.q, self.k = (
            scratch(name, most.stop, attn.num_heads, layout.tokens, self.width, dtype=dtype) for name in "qk"
        )
        self.k[..., self.positions] = layout.position
        for extended in (self.q, self.k):
            extended[..., self.regions.stop :] = 0

    def add_attention(self, to: Tensor, normed: Tensor, part: slice) -> None:
        """``to += attn(normed)``, both (windows * tokens, C)."""
        attn, layout, heads = self.attn, self.layout, self.attn.num_heads
        count, width = part.stop - part.start, normed.shape[1]
        spare = self.width - attn.head_dim  # what the last head's values are read beyond their end
        memory = self.scratch("wide", 3 * normed.numel() + spare, dtype=self.dtype)
        qkv = memory[: 3 * normed.numel()].view(-1, 3 * width)
        product(normed.to(self.dtype), self.qkv_weight, None, qkv)
        q, k, _ = qkv.view(count, layout.tokens, 3, heads, attn.head_dim).permute(2, 0, 3, 1, 4)
        bias_q, bias_k, bias_v = self.qkv_bias
        q = torch.add(q, bias_q, out=self.q[:count, ..., : attn.head_dim])
        torch.add(k, bias_k, out=self.k[:count, ..., : attn.head_dim])
        self._write_positions(q)
        if layout.region is not None:
            region = layout.region[part, None]
            self.q[:count, ..., self.regions] = REGION_PENALTY / self.scale * region
            self.k[:count, ..., self.regions] = region
        # values have to be as wide as keys: a head's are read on into the next head's, and those columns dropped
        strides = layout.tokens * 3 * width, attn.head_dim, 3 * width, 1
        v = memory.as_strided((count, heads, layout.tokens, self.width), strides, 2 * width)
        attended = F.scaled_dot_product_attention(self.q[:count], self.k[:count], v, scale=self.scale)
        # the weights of a query's values add up to one, so that their bias may come last
        joined = self.scratch("narrow", count, layout.tokens, heads, attn.head_dim, dtype=self.dtype)
        torch.add(attended[..., : attn.head_dim], bias_v, out=joined.transpose(1, 2))
        add_product(to, joined.view(normed.shape), self.proj_weight, attn.proj.bias)

    def _write_positions(self, q: Tensor) -> None:
        """Per axis ``lr * q.R``: the products with all offsets, of which each position reads its own.

        Shape:
            q: (windows, heads, tokens, head_dim), the first columns of ``self.q``
        """
        size, tokens = self.layout.size, self.layout.tokens
        columns = len(self.offsets)
        rows = q.flatten(0, 2)
        of_offsets = product(rows, self.offsets, None, self.scratch("offsets", len(rows), columns, dtype=self.dtype))
        grid = self.q[: len(q)].flatten(0, 1).unflatten(1, size)
        steps = [size[1] * size[2] * columns, size[2] * columns, columns]
        column, first = 0, self.positions.start
        for axis, edge in enumerate(size):
            # position p reads the columns edge - 1 - p and on
            own = [step - (other == axis) for other, step in enumerate(steps)]
            strides = tokens * columns, *own, 1
            grid[..., first : first + edge] = of_offsets.as_strided((*grid.shape[:4], edge), strides, column + edge - 1)
            column, first = column + 2 * edge - 1, first + edge


def chunks_of_windows(layout: WindowLayout) -> list[slice]:
    """Windows of about a chunk's tokens at a time."""
    step, count = per_chunk(layout.tokens), len(layout.gather) // layout.tokens
    return [slice(first, min(first + step, count)) for first in range(0, count, step)]
