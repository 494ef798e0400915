"""Shifted 3D windows as index tables: which token stands where, and which tokens may see each other."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import ceil, prod

import torch
from torch import Tensor

WINDOW = 8


@dataclass(frozen=True)
class WindowLayout:
    """Where the tokens of one grid stand once they are cut into windows.

    Attributes:
        size: tokens of a window along D, H, W; 8, or the grid's edge where that is smaller.
        gather: (windows * tokens,) index of the token in each slot; padding slots repeat token 0.
        scatter: (D * H * W,) slot in which each token stands.
        region: (windows, tokens, codes) one-hot region of each slot, zero for padding; ``None`` if every slot may see
            every other of its window. Slots of different regions came from opposite edges of the shifted grid.
    """

    size: tuple[int, int, int]
    gather: Tensor
    scatter: Tensor
    region: Tensor | None

    @property
    def tokens(self) -> int:
        """Tokens per window."""
        return prod(self.size)


@lru_cache(maxsize=32)
def window_layout(grid: tuple[int, int, int], shifted: bool, device: torch.device) -> WindowLayout:
    """Swin's windows on a token grid.

    The grid is padded at its end to whole windows and, if ``shifted``, rolled by half a window on each axis that has
    more than one window (with a single window there is no neighbour to exchange with, as in Swin).

    Args:
        grid: tokens along D, H, W.
        shifted: whether windows are shifted by 4 tokens.
        device: where the tables live.
    """
    size = tuple(min(WINDOW, tokens) for tokens in grid)
    counts = tuple(ceil(tokens / edge) for tokens, edge in zip(grid, size, strict=True))
    sources, codes, real = [], [], []
    for tokens, edge, count in zip(grid, size, counts, strict=True):
        shift = edge // 2 if shifted and count > 1 else 0
        slot = torch.arange(count * edge)
        source = (slot + shift) % (count * edge)
        sources.append(source)
        codes.append((slot >= count * edge - shift).long())  # 1: rolled in from the grid's other end
        real.append(source < tokens)

    def windows(values: list[Tensor], combine: tuple[int, int, int]) -> Tensor:
        """Per-axis values -> (windows, tokens), summed with the factors ``combine``."""
        volume = (values[0][:, None, None] * combine[0] + values[1][:, None] * combine[1] + values[2] * combine[2])
        volume = volume.view(counts[0], size[0], counts[1], size[1], counts[2], size[2])
        return volume.permute(0, 2, 4, 1, 3, 5).reshape(prod(counts), prod(size))

    source = windows(sources, (grid[1] * grid[2], grid[2], 1))
    inside = windows([axis.long() for axis in real], (1, 1, 1)) == 3
    source = torch.where(inside, source, 0)
    code = windows(codes, (4, 2, 1))
    scatter = torch.empty(prod(grid), dtype=torch.long)
    slots = torch.arange(source.numel())
    scatter[source[inside]] = slots[inside.flatten()]
    region = None
    if not inside.all() or code.any():
        region = (torch.nn.functional.one_hot(code, 8) * inside[..., None]).float().to(device)
    return WindowLayout(size, source.flatten().to(device), scatter.to(device), region)  # type: ignore[arg-type]
