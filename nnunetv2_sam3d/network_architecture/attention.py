"""Window attention with decomposed relative positions, without a bias or mask matrix in memory."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_sam3d.network_architecture.frozen_cache import Once
from nnunetv2_sam3d.network_architecture.windows import WINDOW, WindowLayout

# Swin's penalty on logits between regions that do not touch; the softmax turns it into zero.
REGION_PENALTY = 100.0
SAM_WINDOW_ROWS = 27  # SAM's tables: 2 * 14 - 1 rows in windowed blocks,
SAM_GLOBAL_ROWS = 127  # 2 * 64 - 1 rows in global ones


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
        self._offsets = tuple(Once() for _ in range(3))
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
        q = F.pad(torch.cat([q * self.head_dim**-0.5, *q_more], -1), (0, align))
        k = F.pad(torch.cat([k, *k_more], -1), (0, align))
        v = F.pad(v, (0, extra + align))  # ... and the same for q, k and v
        x = F.scaled_dot_product_attention(q, k, v, scale=1.0)[..., : self.head_dim]
        return self.proj(x.transpose(1, 2).reshape(batch, count, tokens, width))

    def _position_terms(self, q: Tensor, layout: WindowLayout) -> tuple[list[Tensor], list[Tensor]]:
        """What q and k are extended by: per axis ``lr * q.R`` and the one-hot position of the key."""
        size = layout.size
        grid_q = q.unflatten(2, size)
        lr = self.lr.to(q.dtype)
        q_more = []
        for axis, table in enumerate((self.rel_pos_d, self.rel_pos_h, self.rel_pos_w)):
            offsets = self._offsets[axis](partial(relative_table, table, size[axis]), table, key=size[axis])
            offsets = offsets.to(q.dtype)  # (q position, k position, head_dim)
            equation = ("bndhwc,dkc->bndhwk", "bndhwc,hkc->bndhwk", "bndhwc,wkc->bndhwk")[axis]
            q_more.append(lr * torch.einsum(equation, grid_q, offsets).flatten(2, 4))
        return q_more, [layout.position.to(q.dtype).expand(*q.shape[:2], -1, -1)]


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
