"""SAM's image encoder, lifted to 3D: the encoder, its blocks, their attention."""

from __future__ import annotations

from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_sam3d.network_architecture import cpu_block
from nnunetv2_sam3d.network_architecture.adapters import make_adapter
from nnunetv2_sam3d.network_architecture.axes import channels_first
from nnunetv2_sam3d.network_architecture.config import TAPS, SAM3DConfig
from nnunetv2_sam3d.network_architecture.cpu import in_chunks, trained_in_chunks
from nnunetv2_sam3d.network_architecture.cpu_memory import Scratch
from nnunetv2_sam3d.network_architecture.cpu_training import with_attention, with_mlp
from nnunetv2_sam3d.network_architecture.frozen_cache import FrozenCache
from nnunetv2_sam3d.network_architecture.layers import MLP, ChannelLayerNorm3d, Conv3x3x3, Pointwise3d
from nnunetv2_sam3d.network_architecture.stem import FoldedStem3d
from nnunetv2_sam3d.network_architecture.windows import (
    REGION_PENALTY,
    WindowLayout,
    make_layout,
    relative_table,
    window_layout,
)

SAM_WINDOW_ROWS = 27  # SAM's tables: 2 * 14 - 1 rows in windowed blocks,
SAM_GLOBAL_ROWS = 127  # 2 * 64 - 1 rows in global ones


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
        self._plane, self._line = FrozenCache(), FrozenCache()
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
        x = (x + self.positions(grid)).contiguous()
        scratch = Scratch() if in_chunks(x) or trained_in_chunks(x) else None
        plain, shifted = self._layouts(grid, x.device)
        per_tap = len(self.blocks) // TAPS
        taps: list[Tensor] = []
        for index, block in enumerate(self.blocks):
            layout = shifted if block.shifted else plain
            if self.checkpointing and torch.is_grad_enabled():
                x = cpu_block.recomputed(cast(Block3d, block), x, layout)
            else:
                x = block(x, layout, scratch)
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


class Block3d(nn.Module):
    """Adapter, window attention, MLP: ``x = adapter(x); x = x + attn(norm1(x)); x = x + mlp(norm2(x))``.

    Args:
        config: sizes.
        index: position in the encoder; even blocks have shifted windows, global ones longer position tables.

    Shape:
        x: (B, D, H, W, C) -> (B, D, H, W, C); with scratch memory, on CPUs without gradients, x itself is replaced
    """

    def __init__(self, config: SAM3DConfig, index: int) -> None:
        super().__init__()
        width = config.embed_dim
        self.shifted = index % 2 == 0
        rows = SAM_GLOBAL_ROWS if index in config.global_attn_indexes else SAM_WINDOW_ROWS
        self.adapter = make_adapter(config.adapter, width, config.bottleneck, config.adapter_plane)
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = WindowAttention3d(width, config.num_heads, rows)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = MLP(width, 4 * width, nn.GELU)

    def forward(self, x: Tensor, layout: WindowLayout, scratch: Scratch | None = None) -> Tensor:
        if in_chunks(x):
            return cpu_block.forward(self, x, layout, scratch)
        x = self.adapter(x)
        if trained_in_chunks(x):
            scratch = scratch or Scratch()
            tokens = with_attention(x.flatten(1, 3), self.norm1, self.attn, layout, scratch)
            return with_mlp(tokens, self.norm2, self.mlp, scratch).view_as(x)
        windows = layout.into_windows(x.flatten(1, 3))
        x = x + layout.from_windows(self.attn(self.norm1(windows), layout)).view_as(x)
        return x + self.mlp(self.norm2(x))


class WindowAttention3d(nn.Module):
    """Multi-head attention within windows; logits ``scale * q.k + lr * (q.Rd + q.Rh + q.Rw)``.

    A decomposed bias is a dot product: q is extended by its products with the position tables, k by the one-hot
    position of its token, and likewise for the regions of shifted windows and for padding. PyTorch's fused attention
    then needs neither the bias nor the mask. Same function as with both written out: maximum difference 4e-6.

    Source: Li et al., arXiv:2112.01526 (decomposed positions); Liu et al., arXiv:2103.14030 (shifted windows).

    Args:
        width: token width C.
        num_heads: attention heads.
        table_rows: rows of SAM's relative position tables.

    Shape:
        windows: (B, windows, tokens, C) -> (B, windows, tokens, C); part: which of the layout's windows they are
    """

    def __init__(self, width: int, num_heads: int, table_rows: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = width // num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.rel_pos_d = nn.Parameter(torch.zeros(table_rows, self.head_dim))
        self.rel_pos_h = nn.Parameter(torch.zeros(table_rows, self.head_dim))
        self.rel_pos_w = nn.Parameter(torch.zeros(table_rows, self.head_dim))
        self._offsets = tuple(FrozenCache() for _ in range(3))
        self.register_buffer("lr", torch.ones(()))  # part of the checkpoint, never trained
        self.lr: Tensor

    def forward(self, windows: Tensor, layout: WindowLayout, part: slice = slice(None)) -> Tensor:
        batch, count, tokens, width = windows.shape
        qkv = self.qkv(windows).view(batch * count, tokens, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B * windows, heads, tokens, head_dim)
        q_more, k_more = self._position_terms(q, layout)
        if layout.region is not None:
            region = layout.region[part].to(q.dtype).repeat(batch, 1, 1)[:, None].expand(-1, self.num_heads, -1, -1)
            q_more.append(REGION_PENALTY * region)
            k_more.append(region)
        extra = sum(part.shape[-1] for part in q_more)
        align = -(self.head_dim + extra) % 8  # fused kernels want a head width divisible by 8 ...
        padding = [q.new_zeros(()).expand(*q.shape[:3], align)] if align else []
        q = torch.cat([q * self.head_dim**-0.5, *q_more, *padding], -1)
        k = torch.cat([k, *k_more, *padding], -1)
        v = F.pad(v, (0, extra + align))  # ... and the same for q, k and v
        x = F.scaled_dot_product_attention(q, k, v, scale=1.0)[..., : self.head_dim]
        return self.proj(x.transpose(1, 2).reshape(batch, count, tokens, width))

    def relative(self, axis: int, size: int) -> Tensor:
        """R of one axis of a window, (q position, k position, head_dim)."""
        table = (self.rel_pos_d, self.rel_pos_h, self.rel_pos_w)[axis]
        return self._offsets[axis](partial(relative_table, table, size), table, key=size)

    def _position_terms(self, q: Tensor, layout: WindowLayout) -> tuple[list[Tensor], list[Tensor]]:
        """What q and k are extended by: per axis ``lr * q.R`` and the one-hot position of the key."""
        size = layout.size
        grid_q = q.unflatten(2, size)
        lr = self.lr.to(q.dtype)
        q_more = []
        for axis in range(3):
            offsets = self.relative(axis, size[axis]).to(q.dtype)
            equation = ("bndhwc,dkc->bndhwk", "bndhwc,hkc->bndhwk", "bndhwc,wkc->bndhwk")[axis]
            q_more.append(lr * torch.einsum(equation, grid_q, offsets).flatten(2, 4))
        return q_more, [layout.position.to(q.dtype).expand(*q.shape[:2], -1, -1)]
