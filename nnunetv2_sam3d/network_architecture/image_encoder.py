"""SAM's image encoder, lifted to 3D."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_sam3d.network_architecture.block import Block3d, recomputed
from nnunetv2_sam3d.network_architecture.config import TAPS, SAM3DConfig
from nnunetv2_sam3d.network_architecture.frozen_cache import Once
from nnunetv2_sam3d.network_architecture.layers import ChannelLayerNorm3d, Conv3x3x3, Pointwise3d, channels_first
from nnunetv2_sam3d.network_architecture.stem import FoldedStem3d
from nnunetv2_sam3d.network_architecture.windows import WindowLayout, make_layout, window_layout


class ImageEncoder3d(nn.Module):
    """Stem, positions, transformer blocks with adapters, and a neck for each of the four taps.

    Source: Gong et al., arXiv:2306.13465, section 3.

    Args:
        config: sizes.

    Shape:
        image: (B, in_channels, D, H, W), sizes divisible by the token stride s
            -> four taps (B, out_channels, D/s, H/s, W/s), shallow to deep
    """

    def __init__(self, config: SAM3DConfig) -> None:
        super().__init__()
        width, grid = config.embed_dim, config.position_grid
        self.checkpointing = config.checkpointing
        self.stem = FoldedStem3d(width, config.in_channels, config.token_stride)
        self.pos_embed = nn.Parameter(torch.zeros(1, 2 * grid, 2 * grid, width))  # SAM's, at twice the token grid
        self.depth_embed = nn.Parameter(torch.zeros(1, grid, width))
        self.blocks = nn.ModuleList(Block3d(config, index) for index in range(config.depth))
        self.neck_3d = nn.ModuleList(_neck(width, config.out_channels) for _ in range(TAPS))
        self._plane, self._line = Once(), Once()
        self.prepared_grid: tuple[int, int, int] | None = None
        self.prepared = nn.ModuleList()
        self._initialise()

    def _initialise(self) -> None:
        """ViT's start, for what no checkpoint replaces."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear) and ".adapter." not in name:
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, image: Tensor) -> list[Tensor]:
        x = self.stem(image)
        grid = (x.shape[1], x.shape[2], x.shape[3])
        x = x + self.positions(grid)
        plain, shifted = self._layouts(grid, x.device)
        per_tap = len(self.blocks) // TAPS
        taps: list[Tensor] = []
        for index, block in enumerate(self.blocks):
            layout = shifted if block.shifted else plain
            if self.checkpointing and torch.is_grad_enabled():
                x = recomputed(cast(Block3d, block), x, layout)
            else:
                x = block(x, layout)
            if (index + 1) % per_tap == 0:
                taps.append(self.neck_3d[len(taps)](channels_first(x)))
        return taps

    def prepare(self, grid: tuple[int, int, int]) -> None:
        """Makes the network own the window layouts of the grid that it will mostly see."""
        self.prepared_grid = grid
        self.prepared = nn.ModuleList(make_layout(grid, shifted, self.pos_embed.device) for shifted in (False, True))

    def _layouts(self, grid: tuple[int, int, int], device: torch.device) -> tuple[WindowLayout, WindowLayout]:
        """Layouts of plain and shifted windows."""
        if grid == self.prepared_grid:
            return self.prepared[0], self.prepared[1]  # type: ignore[return-value]
        return window_layout(grid, False, device), window_layout(grid, True, device)

    def positions(self, grid: tuple[int, int, int]) -> Tensor:
        """Absolute position embedding (1, D, H, W, C) of a token grid.

        SAM's table is average-pooled by 2; both tables are interpolated linearly where the grid differs from theirs.
        """
        plane = self._plane(lambda: _plane(self.pos_embed, grid), self.pos_embed, key=grid)
        line = self._line(lambda: _line(self.depth_embed, grid), self.depth_embed, key=grid)
        return (plane[:, :, None] + line[..., None, None]).movedim(1, -1)


def _plane(pos_embed: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """SAM's table (1, 2n, 2n, C) -> (1, C, H, W)."""
    plane = F.avg_pool2d(pos_embed.movedim(-1, 1), 2)
    if plane.shape[2:] != grid[1:]:
        plane = F.interpolate(plane, size=grid[1:], mode="bilinear", align_corners=False)
    return plane


def _line(depth_embed: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """The table along depth (1, n, C) -> (1, C, D)."""
    line = depth_embed.movedim(-1, 1)
    return line if line.shape[2] == grid[0] else F.interpolate(line, size=grid[0], mode="linear", align_corners=False)


def _neck(width: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        Pointwise3d(width, out_channels, bias=False),
        ChannelLayerNorm3d(out_channels),
        Conv3x3x3(out_channels, out_channels),
        ChannelLayerNorm3d(out_channels),
    )
