"""Attention of a block on CPUs: some windows at a time, into the memory of the tokens; no gradients.

The same function as ``image_encoder.WindowAttention3d``, whose extended queries and keys are written where the fused
attention reads them, and where ``cpu_training.py`` finds them for the gradient. Without padding, tokens of one window
are read by no other, so that each window may replace its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_sam3d.network_architecture.cpu import per_chunk
from nnunetv2_sam3d.network_architecture.cpu_memory import Scratch, add_product, product, product_dtype, scaled_product
from nnunetv2_sam3d.network_architecture.windows import REGION_PENALTY, WindowLayout, by_offset


def attend_(
    tokens: Tensor,
    norm: nn.LayerNorm,
    attn: Any,
    layout: WindowLayout,
    scratch: Scratch,
    offsets: Tensor | None = None,
    kept: Tensor | None = None,
) -> None:
    """``tokens += attn(norm(tokens))`` of one sample, (D * H * W, C), contiguous.

    Args:
        tokens: replaced.
        norm: before attention.
        attn: a ``WindowAttention3d``.
        layout: of the windows.
        scratch: for a chunk of windows.
        offsets: :func:`position_offsets`, if they are at hand.
        kept: where the product of each slot with ``qkv`` goes, if it is wanted: (windows * tokens, 3 * C), in memory
            that has another row behind these.
    """
    offsets = position_offsets(attn, layout) if offsets is None else offsets
    windows = Windows(attn, layout, offsets, product_dtype(tokens), scratch)
    for part, slots, rows in in_windows_(tokens, layout, scratch):
        windows.add_attention(rows, norm(rows), part, None if kept is None else kept[slots])


def in_windows_(tokens: Tensor, layout: WindowLayout, scratch: Scratch) -> Iterator[tuple[slice, slice, Tensor]]:
    """Some windows at a time: which they are, their slots, and a copy of the tokens there, (slots, C).

    What is done to the copy is done to ``tokens``, (D * H * W, C), except for what stands in padding.
    """
    padded = len(layout.gather) > len(tokens)  # with a token that many windows read
    width, dtype = tokens.shape[1], tokens.dtype
    everything = scratch("slots", len(layout.gather), width, dtype=dtype) if padded else tokens
    for part in chunks_of_windows(layout):
        slots = slots_of(part, layout)
        places = layout.gather[slots]
        rows = everything[slots] if padded else scratch("rows", len(places), width, dtype=dtype)
        torch.index_select(tokens, 0, places, out=rows)
        yield part, slots, rows
        if not padded:
            tokens.index_copy_(0, places, rows)
    if padded:
        torch.index_select(everything, 0, layout.scatter, out=tokens)


def position_offsets(attn: Any, layout: WindowLayout) -> Tensor:
    """What a query is multiplied with for its position terms: a row for each offset along D, H and W, (rows, head_dim).

    Attention scales all of a query's products, which is divided out here.
    """
    rows = [by_offset(attn.relative(axis, edge)) for axis, edge in enumerate(layout.size)]
    return attn.lr * attn.head_dim**0.5 * torch.cat(rows)


class Windows:
    """What a chunk of windows is computed in: queries, keys and values, extended as in ``WindowAttention3d``.

    What the chunks share is written once: the keys' positions, and zeros.

    Attributes:
        positions: columns of extended queries and keys that hold position terms.
    """

    def __init__(self, attn: Any, layout: WindowLayout, offsets: Tensor, dtype: torch.dtype, scratch: Scratch) -> None:
        self.attn, self.layout, self.dtype, self.scratch = attn, layout, dtype, scratch
        self.scale = attn.head_dim**-0.5
        self.qkv_weight, self.proj_weight = attn.qkv.weight.to(dtype), attn.proj.weight.to(dtype)
        self.qkv_bias = attn.qkv.bias.to(dtype).view(3, -1, 1, attn.head_dim)
        self.offsets = offsets.to(dtype)
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

    def add_attention(self, to: Tensor, normed: Tensor, part: slice, kept: Tensor | None) -> None:
        """``to += attn(normed)``, both (windows * tokens, C); ``kept`` see :func:`attend_`."""
        attn, heads = self.attn, self.attn.num_heads
        if kept is None:
            kept = self.scratch("wide", len(normed) + 1, 3 * normed.shape[1], dtype=self.dtype)[:-1]
        product(normed.to(self.dtype), self.qkv_weight, None, kept)
        q, k, v = self.extended(kept, part)
        joined = self.scratch("narrow", len(q), self.layout.tokens, heads, attn.head_dim, dtype=self.dtype)
        # values have to be as wide as keys: a head's are read on into what follows, and those columns dropped
        v = v.as_strided((*v.shape[:3], self.width), v.stride())
        attended = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        # the weights of a query's values add up to one, so that their bias may come last
        torch.add(attended[..., : attn.head_dim], self.qkv_bias[2], out=joined.transpose(1, 2))
        add_product(to, joined.view(normed.shape), self.proj_weight, attn.proj.bias)

    def extended(self, qkv: Tensor, part: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Extended queries and keys, (windows, heads, tokens, .), and values without their bias.

        Args:
            qkv: without bias, (windows * tokens, 3 * C).
            part: which windows they are.
        """
        attn, layout = self.attn, self.layout
        q, k, v = qkv.view(-1, layout.tokens, 3, attn.num_heads, attn.head_dim).permute(2, 0, 3, 1, 4)
        extended_q, extended_k = self.q[: len(q)], self.k[: len(q)]
        torch.add(q, self.qkv_bias[0], out=extended_q[..., : attn.head_dim])
        torch.add(k, self.qkv_bias[1], out=extended_k[..., : attn.head_dim])
        self._write_positions(extended_q[..., : attn.head_dim])
        if layout.region is not None:
            region = layout.region[part, None]
            extended_q[..., self.regions] = REGION_PENALTY / self.scale * region
            extended_k[..., self.regions] = region
        return extended_q, extended_k, v

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        """What the values of a window are weighed with, (heads, tokens, .) -> (heads, queries, keys)."""
        logits = self.scratch("weights", len(q), q.shape[1], k.shape[1], dtype=self.dtype)
        scaled_product(q, k.transpose(1, 2), self.scale, logits)
        return torch.softmax(logits, -1, out=logits)

    def _write_positions(self, q: Tensor) -> None:
        """Per axis ``lr * q.R``: the products with all offsets, of which each position reads its own.

        Shape:
            q: (windows, heads, tokens, head_dim), the first columns of ``self.q``
        """
        rows = q.flatten(0, 2)
        of_offsets = self.scratch("offsets", len(rows), len(self.offsets), dtype=self.dtype)
        product(rows, self.offsets, None, of_offsets)
        for columns, own in self.by_axis(self.q[: len(q)], of_offsets):
            columns.copy_(own)

    def by_axis(self, extended: Tensor, of_offsets: Tensor) -> list[tuple[Tensor, Tensor]]:
        """For each axis the columns of extended queries, and those columns of the products with offsets that they hold.

        Shape:
            extended: (windows, heads, tokens, .), of_offsets: (windows * heads * tokens, offsets)
                -> both (windows * heads, D, H, W, keys along the axis)
        """
        size, tokens, all_offsets = self.layout.size, self.layout.tokens, of_offsets.shape[1]
        grid = extended.flatten(0, 1).unflatten(1, size)
        steps = [size[1] * size[2] * all_offsets, size[2] * all_offsets, all_offsets]
        result = []
        column, first = 0, self.positions.start
        for axis, edge in enumerate(size):
            # position p reads the columns edge - 1 - p and on
            own = [step - (other == axis) for other, step in enumerate(steps)]
            strides = tokens * all_offsets, *own, 1
            view = of_offsets.as_strided((*grid.shape[:4], edge), strides, column + edge - 1)
            result.append((grid[..., first : first + edge], view))
            column, first = column + 2 * edge - 1, first + edge
        return result


def slots_of(windows: slice, layout: WindowLayout) -> slice:
    """The slots of some windows."""
    return slice(windows.start * layout.tokens, windows.stop * layout.tokens)


def chunks_of_windows(layout: WindowLayout) -> list[slice]:
    """Windows of about a chunk's tokens at a time."""
    step, count = per_chunk(layout.tokens), len(layout.gather) // layout.tokens
    return [slice(first, min(first + step, count)) for first in range(0, count, step)]
