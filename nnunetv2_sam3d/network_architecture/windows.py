"""Shifted 3D windows as index tables: which token stands where, and which tokens may see each other."""

from __future__ import annotations

from functools import lru_cache
from math import ceil, prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

WINDOW = 8
# Swin's penalty on logits between regions that do not touch; the softmax turns it into zero.
REGION_PENALTY = 100.0


class WindowLayout(nn.Module):
    """Where the tokens of one grid stand once they are cut into windows.

    A module, so that a network can own the layout of its usual grid and take it along to its device; the tables are
    recomputable and not part of the state dict.

    Attributes:
        size: tokens of a window along D, H, W; 8, or the grid's edge where that is smaller.
        gather: (windows * tokens,) index of the token in each slot; padding slots repeat token 0.
        scatter: (D * H * W,) slot in which each token stands.
        position: (tokens, sum of the window's edges) one-hot position of each slot along D, H and W.
        region: (windows, tokens, codes) one-hot region of each slot, zero for padding; ``None`` if every slot may see
            every other of its window. Slots of different regions came from opposite edges of the shifted grid.
    """

    gather: Tensor
    scatter: Tensor
    position: Tensor
    region: Tensor | None

    def __init__(self, size: tuple[int, ...], gather: Tensor, scatter: Tensor, region: Tensor | None) -> None:
        super().__init__()
        self.size = size
        self.tokens = prod(size)
        self.register_buffer("gather", gather, persistent=False)
        self.register_buffer("scatter", scatter, persistent=False)
        self.register_buffer("position", _positions(size, gather.device), persistent=False)
        self.register_buffer("region", region, persistent=False)

    def into_windows(self, tokens: Tensor) -> Tensor:
        """(B, D * H * W, C) -> (B, windows, tokens of a window, C)."""
        return _moved(tokens, self.gather, self.scatter, None).unflatten(1, (-1, self.tokens))

    def from_windows(self, windows: Tensor) -> Tensor:
        """The inverse of :meth:`into_windows`; what stands in padding is dropped."""
        padded = self.region is not None and len(self.gather) > len(self.scatter)
        inside = self.region.sum(-1).view(-1, 1) if padded else None  # type: ignore[union-attr]
        return _moved(windows.flatten(1, 2), self.scatter, self.gather, inside)


def _moved(x: Tensor, source: Tensor, back: Tensor, inside: Tensor | None) -> Tensor:
    """``x[:, source]``, see :class:`_Moved`; compilers see the indexing alone."""
    return x[:, source] if torch.compiler.is_compiling() else _Moved.apply(x, source, back, inside)


class _Moved(torch.autograd.Function):
    """``x[:, source]`` where every row goes to one place: its gradient comes from there.

    PyTorch adds up gradients of an indexing, since places may come twice, on two threads four times as slowly as on
    one. Rows that go nowhere have no gradient, nor have the copies of a token that stand in padding.

    Shape:
        x: (B, N, C), source: (M,), back: (N,), where the gradient of each row comes from, inside: (N, 1), zero for
        rows without one, ``None`` if there are none -> (B, M, C)
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, source: Tensor, back: Tensor, inside: Tensor | None) -> Tensor:
        ctx.save_for_backward(back, inside)
        return x[:, source]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        back, inside = ctx.saved_tensors
        grad = grad[:, back]
        return grad if inside is None else grad.mul_(inside), None, None, None


def window_layout(grid: tuple[int, int, int], shifted: bool, device: torch.device) -> WindowLayout:
    """Swin's windows on a token grid.

    The grid is padded at its end to whole windows and, if ``shifted``, rolled by half a window on each axis that has
    more than one window (with a single window there is no neighbour to exchange with, as in Swin).

    Args:
        grid: tokens along D, H, W.
        shifted: whether windows are shifted by 4 tokens.
        device: where the tables live.
    """
    # torch.compile traces the arithmetic, and warns of caches
    return make_layout(grid, shifted, device) if torch.compiler.is_compiling() else _cached(grid, shifted, device)


def make_layout(grid: tuple[int, int, int], shifted: bool, device: torch.device) -> WindowLayout:
    """:func:`window_layout` without its cache."""
    size = tuple(min(WINDOW, tokens) for tokens in grid)
    counts = tuple(ceil(tokens / edge) for tokens, edge in zip(grid, size, strict=True))
    shifts = tuple(edge // 2 if shifted and count > 1 else 0 for edge, count in zip(size, counts, strict=True))
    padded = tuple(edge * count for edge, count in zip(size, counts, strict=True))

    # From slots to tokens: per axis the token that each position of the rolled grid holds, then combined.
    positions = [torch.arange(edge, device=device) for edge in padded]
    tokens = [(position + shift) % edge for position, shift, edge in zip(positions, shifts, padded, strict=True)]
    inside = _into_windows([(t < n).long() for t, n in zip(tokens, grid, strict=True)], (1, 1, 1), counts, size) == 3
    source = _into_windows(tokens, (grid[1] * grid[2], grid[2], 1), counts, size)
    gather = torch.where(inside, source, 0).flatten()

    # From tokens to slots: the window of each token, and its place in there.
    slots = [
        (torch.arange(n, device=device) - shift) % edge for n, shift, edge in zip(grid, shifts, padded, strict=True)
    ]
    window = _combine(
        [slot // edge for slot, edge in zip(slots, size, strict=True)], (counts[1] * counts[2], counts[2], 1)
    )
    place = _combine([slot % edge for slot, edge in zip(slots, size, strict=True)], (size[1] * size[2], size[2], 1))
    scatter = (window * prod(size) + place).flatten()

    region = None
    if any(shifts) or padded != grid:
        # 1 on an axis: rolled in from the grid's other end
        rolled = [(p >= edge - shift).long() for p, edge, shift in zip(positions, padded, shifts, strict=True)]
        code = _into_windows(rolled, (4, 2, 1), counts, size)
        region = _one_hot(code, 8) * inside[..., None]
    return WindowLayout(size, gather, scatter, region)


def relative_table(table: Tensor, size: int) -> Tensor:
    """SAM's table of any length -> R[q, k] for positions 0 .. size-1 of one axis.

    The table is interpolated linearly (align_corners=False) to the 15 offsets of a window of 8 and indexed with
    ``q - k + 7``; smaller windows use its middle.

    Shape:
        table: (rows, head_dim) -> (size, size, head_dim)
    """
    rows = 2 * WINDOW - 1
    if table.shape[0] != rows:
        table = F.interpolate(table.t()[None], size=rows, mode="linear", align_corners=False)[0].t()
    # rows q - k + 7 as overlapping slices of the reversed table; indexing would be a gather
    reversed_rows = table[WINDOW - size : WINDOW - 1 + size].flip(0)
    return reversed_rows.unfold(0, size, 1).flip(0).transpose(1, 2).contiguous()


def by_offset(relative: Tensor) -> Tensor:
    """The rows of a :func:`relative_table` by the offset of the key from the query, ``1 - size`` to ``size - 1``.

    Shape:
        relative: (size, size, head_dim) -> (2 * size - 1, head_dim)
    """
    return torch.cat([relative[:, 0].flip(0), relative[0, 1:]])


@lru_cache(maxsize=32)
def _cached(grid: tuple[int, int, int], shifted: bool, device: torch.device) -> WindowLayout:
    with torch.inference_mode(False):  # tables made while predicting may meet a training step later
        return make_layout(grid, shifted, device)


def _positions(size: tuple[int, ...], device: torch.device) -> Tensor:
    """One-hot positions of a window's slots along its axes, side by side."""
    places = torch.cartesian_prod(*(torch.arange(edge, device=device) for edge in size)).unbind(1)
    return torch.cat([_one_hot(place, edge) for place, edge in zip(places, size, strict=True)], 1)


def _one_hot(codes: Tensor, count: int) -> Tensor:
    """Like ``torch.nn.functional.one_hot``, which looks at the values and so cannot work on tensors without content."""
    return (codes[..., None] == torch.arange(count, device=codes.device)).float()


def _combine(axes: list[Tensor], factors: tuple[int, ...]) -> Tensor:
    """Values of each axis -> (D, H, W), their sum weighted with ``factors``."""
    return axes[0][:, None, None] * factors[0] + axes[1][:, None] * factors[1] + axes[2] * factors[2]


def _into_windows(
    axes: list[Tensor], factors: tuple[int, ...], counts: tuple[int, ...], size: tuple[int, ...]
) -> Tensor:
    """The same, cut into windows: (windows, tokens)."""
    volume = _combine(axes, factors).view(counts[0], size[0], counts[1], size[1], counts[2], size[2])
    return volume.permute(0, 2, 4, 1, 3, 5).reshape(prod(counts), prod(size))
