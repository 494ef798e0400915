"""The network in its plain form: the published arithmetic written as it reads, the yardstick of the benchmark.

The image is upsampled and embedded slice by slice, windows are rolled and cut, and every window and head holds its
whole matrix of logits, bias and mask, the mask made anew in every block. Stem, attention and mask decoder share nothing
with ``network_architecture``, so that no speed-up there can reach this file and the two check each other. The prompt
encoder and the adapters are the same: they are written as published already, and what speeds adapters up on CPUs is
switched off here. The weights have the same names and shapes: one state dict fits both.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_sam3d.network_architecture.adapters import make_adapter
from nnunetv2_sam3d.network_architecture.config import TAPS, SAM3DConfig
from nnunetv2_sam3d.network_architecture.cpu import as_on_gpus
from nnunetv2_sam3d.network_architecture.prompt_encoder import PromptEncoder3d

WINDOW = 8
SAM_PATCH = 16


class PlainSAM3D(nn.Module):
    """The function of :class:`~nnunetv2_sam3d.network_architecture.sam3d.SAM3D`, written plainly.

    Source: Gong et al., arXiv:2306.13465.

    Args:
        config: sizes; ``checkpointing`` is not looked at. ``in_channels`` is 1 or 3.

    Shape:
        image: (B, in_channels, D, H, W), points: (B, N, 3) -> logits (B, num_classes, D, H, W)
    """

    def __init__(self, config: SAM3DConfig) -> None:
        super().__init__()
        if config.in_channels not in (1, 3):
            raise ValueError(f"the plain form takes images of 1 or 3 channels, not {config.in_channels}")
        self.config = config
        self.encoder = PlainEncoder(config)
        self.prompt_encoder = (
            PromptEncoder3d(config.out_channels, config.prompt_mlp_dim) if config.prompt_encoder else None
        )
        self.mask_decoder = PlainDecoder(config)

    def forward(self, image: Tensor, points: Tensor | None = None) -> Tensor:
        size = image.shape[2:]
        pad = [-length % stride for length, stride in zip(size, self.config.token_stride, strict=True)]
        image = F.pad(image, [part for after in reversed(pad) for part in (0, after)], mode="replicate")
        taps = self.encoder(image)
        if self.prompt_encoder is not None:
            points = image.new_zeros(len(image), 0, 3) if points is None else points
            taps[-1] = self.prompt_encoder(taps[-1], points, image.shape[2:])
        return self.mask_decoder(taps, image)[:, :, : size[0], : size[1], : size[2]]


class PlainStem(nn.Module):
    """Repeat to three channels, upsample, SAM's patch embedding on every slice, 16 taps along depth."""

    def __init__(self, config: SAM3DConfig) -> None:
        super().__init__()
        width = config.embed_dim
        self.scale = [SAM_PATCH / stride for stride in config.token_stride]
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, SAM_PATCH, SAM_PATCH)})
        self.slice_embed = nn.Conv3d(width, width, (SAM_PATCH, 1, 1), (SAM_PATCH, 1, 1), groups=width)

    def forward(self, image: Tensor) -> Tensor:
        if image.shape[1] == 1:
            image = image.repeat(1, 3, 1, 1, 1)
        image = F.interpolate(image, scale_factor=self.scale, mode="trilinear", align_corners=False)
        slices = image.transpose(1, 2).flatten(0, 1)  # (B * D, 3, H, W)
        embedded = self.patch_embed["proj"](slices).unflatten(0, (len(image), -1)).transpose(1, 2)
        return self.slice_embed(embedded).permute(0, 2, 3, 4, 1)


class PlainAttention(nn.Module):
    """Attention in windows with explicit bias and mask.

    Shape:
        windows: (B * windows, 8, 8, 8, C), mask: (windows, 512, 512) -> like windows
    """

    def __init__(self, config: SAM3DConfig, rows: int) -> None:
        super().__init__()
        width, self.num_heads = config.embed_dim, config.num_heads
        head_dim = width // self.num_heads
        self.scale = head_dim**-0.5
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.rel_pos_d = nn.Parameter(torch.zeros(rows, head_dim))
        self.rel_pos_h = nn.Parameter(torch.zeros(rows, head_dim))
        self.rel_pos_w = nn.Parameter(torch.zeros(rows, head_dim))
        self.register_buffer("lr", torch.ones(()))
        self.lr: Tensor

    def forward(self, windows: Tensor, mask: Tensor | None) -> Tensor:
        count, d, h, w, _ = windows.shape
        tokens = d * h * w
        qkv = self.qkv(windows).reshape(count, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.reshape(3, count * self.num_heads, tokens, -1).unbind(0)
        logits = (q * self.scale) @ k.transpose(-2, -1)
        logits = self.with_positions(logits, q, (d, h, w))
        if mask is not None:
            logits = logits.view(-1, len(mask), self.num_heads, tokens, tokens) + mask[:, None]
            logits = logits.view(-1, tokens, tokens)
        x = logits.softmax(-1).to(v.dtype) @ v
        return self.proj(x.view(count, self.num_heads, d, h, w, -1).permute(0, 2, 3, 4, 1, 5).flatten(4))

    def with_positions(self, logits: Tensor, q: Tensor, size: tuple[int, int, int]) -> Tensor:
        """Adds SAM's decomposed relative positions to logits (N, tokens, tokens)."""
        grid_q = q.view(len(q), *size, -1)
        rd, rh, rw = (
            relative_positions(table, edge)
            for table, edge in zip((self.rel_pos_d, self.rel_pos_h, self.rel_pos_w), size, strict=True)
        )
        bias_d = self.lr * torch.einsum("ndhwc,dkc->ndhwk", grid_q, rd)[..., :, None, None]
        bias_h = self.lr * torch.einsum("ndhwc,hkc->ndhwk", grid_q, rh)[..., None, :, None]
        bias_w = self.lr * torch.einsum("ndhwc,wkc->ndhwk", grid_q, rw)[..., None, None, :]
        return (logits.view(len(q), *size, *size) + bias_d + bias_h + bias_w).view_as(logits)


def relative_positions(table: Tensor, edge: int) -> Tensor:
    """SAM's ``get_rel_pos``: (rows, C) -> (edge, edge, C), R[q, k], for positions of a window of 8."""
    table = F.interpolate(table.t()[None], size=2 * WINDOW - 1, mode="linear", align_corners=False)[0].t()
    position = torch.arange(edge, device=table.device)
    return table[position[:, None] - position[None, :] + WINDOW - 1]


class PlainBlock(nn.Module):
    """Adapter, attention in (shifted) windows, MLP."""

    def __init__(self, config: SAM3DConfig, index: int) -> None:
        super().__init__()
        width = config.embed_dim
        self.shifted = index % 2 == 0
        self.adapter = make_adapter(config.adapter, width, config.bottleneck, config.adapter_plane)
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = PlainAttention(config, 127 if index in config.global_attn_indexes else 27)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.ModuleDict({"lin1": nn.Linear(width, 4 * width), "lin2": nn.Linear(4 * width, width)})

    def forward(self, x: Tensor) -> Tensor:
        with as_on_gpus():  # the adapters as they read, without what is faster on CPUs
            x = self.adapter(x)
        x = x + self.attend(self.norm1(x))
        return x + self.mlp["lin2"](F.gelu(self.mlp["lin1"](self.norm2(x))))

    def attend(self, x: Tensor) -> Tensor:
        """Pad, roll, cut, attend, join, roll back, crop."""
        grid = (x.shape[1], x.shape[2], x.shape[3])
        size = [min(WINDOW, edge) for edge in grid]
        padded = [-(-edge // window) * window for edge, window in zip(grid, size, strict=True)]
        shift = [
            window // 2 if self.shifted and edge > window else 0 for edge, window in zip(padded, size, strict=True)
        ]
        pad = [part for edge, whole in zip(reversed(grid), reversed(padded), strict=True) for part in (0, whole - edge)]
        x = F.pad(x, [0, 0, *pad])
        x = torch.roll(x, [-s for s in shift], (1, 2, 3))
        windows = self.attn(cut(x, size), self.mask(grid, padded, size, shift, x))
        x = torch.roll(joined(windows, padded, size), shift, (1, 2, 3))
        return x[:, : grid[0], : grid[1], : grid[2]]

    def mask(
        self, grid: tuple[int, int, int], padded: list[int], size: list[int], shift: list[int], like: Tensor
    ) -> Tensor | None:
        """(windows, tokens, tokens): -100 between tokens that are no neighbours, and towards padding."""
        if not any(shift) and list(grid) == padded:
            return None
        region = torch.zeros(padded, device=like.device)
        for axis, (edge, window, s) in enumerate(zip(padded, size, shift, strict=True)):
            if s:
                region.narrow(axis, edge - window, window - s).add_(3**axis)
                region.narrow(axis, edge - s, s).add_(2 * 3**axis)
        inside = torch.ones(grid, device=like.device)
        pad = [part for edge, whole in zip(reversed(grid), reversed(padded), strict=True) for part in (0, whole - edge)]
        inside = torch.roll(F.pad(inside, pad), [-s for s in shift], (0, 1, 2))
        region = torch.where(inside > 0, region, -1.0)
        rows = cut(region[None, ..., None], size).flatten(1)
        return torch.where(rows[:, :, None] == rows[:, None, :], 0.0, -100.0).to(like.dtype)


def cut(x: Tensor, size: list[int]) -> Tensor:
    """(B, D, H, W, C) -> (B * windows, *size, C)"""
    batch, d, h, w, width = x.shape
    x = x.view(batch, d // size[0], size[0], h // size[1], size[1], w // size[2], size[2], width)
    return x.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, *size, width)


def joined(windows: Tensor, padded: list[int], size: list[int]) -> Tensor:
    """(B * windows, *size, C) -> (B, D, H, W, C), the inverse of :func:`cut`."""
    counts = [edge // window for edge, window in zip(padded, size, strict=True)]
    x = windows.view(-1, *counts, *size, windows.shape[-1])
    return x.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(len(x), *padded, -1)


class LayerNormOverChannels(nn.Module):
    """SAM's LayerNorm2d, written for volumes."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(variance + 1e-6)
        return self.weight[:, None, None, None] * x + self.bias[:, None, None, None]


class PlainEncoder(nn.Module):
    """Stem, positions, blocks, necks."""

    def __init__(self, config: SAM3DConfig) -> None:
        super().__init__()
        width, grid, out = config.embed_dim, config.position_grid, config.out_channels
        self.stem = PlainStem(config)
        self.pos_embed = nn.Parameter(torch.zeros(1, 2 * grid, 2 * grid, width))
        self.depth_embed = nn.Parameter(torch.zeros(1, grid, width))
        self.blocks = nn.ModuleList(PlainBlock(config, index) for index in range(config.depth))
        self.neck_3d = nn.ModuleList(
            nn.Sequential(
                nn.Conv3d(width, out, 1, bias=False),
                LayerNormOverChannels(out),
                nn.Conv3d(out, out, 3, padding=1, bias=False),
                LayerNormOverChannels(out),
            )
            for _ in range(TAPS)
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        x = self.stem(image)
        x = x + self.positions(x)
        taps: list[Tensor] = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if (index + 1) % (len(self.blocks) // TAPS) == 0:
                taps.append(self.neck_3d[len(taps)](x.permute(0, 4, 1, 2, 3)))
        return taps

    def positions(self, x: Tensor) -> Tensor:
        """SAM's table at half its size plus the depth's, interpolated to the grid of x."""
        _, d, h, w, _ = x.shape
        plane = F.avg_pool2d(self.pos_embed.permute(0, 3, 1, 2), 2)
        plane = F.interpolate(plane, size=(h, w), mode="bilinear", align_corners=False)
        line = F.interpolate(self.depth_embed.transpose(1, 2), size=d, mode="linear", align_corners=False)
        return plane.permute(0, 2, 3, 1)[:, None] + line.transpose(1, 2)[:, :, None, None]


class PlainDecoder(nn.Module):
    """Four heads, fusion with the image, last convolution."""

    def __init__(self, config: SAM3DConfig) -> None:
        super().__init__()
        taps, width = config.out_channels, config.decoder_channels
        self.scale = config.decoder_scale
        self.heads = nn.ModuleList(
            nn.Sequential(*_conv_norm_relu(taps, width), *_conv_norm_relu(width, width)) for _ in range(TAPS)
        )
        self.fuse = nn.Sequential(*_conv_norm_relu(TAPS * width + 1, width))
        self.seg_layers = nn.ModuleList([nn.Conv3d(width, config.num_classes, 3, padding=1, bias=False)])

    def forward(self, taps: list[Tensor], image: Tensor) -> Tensor:
        enlarged = [
            F.interpolate(head(tap), scale_factor=self.scale, mode="trilinear", align_corners=True)
            for head, tap in zip(self.heads, taps, strict=True)
        ]
        gray = F.interpolate(image.mean(1, keepdim=True), size=enlarged[0].shape[2:], mode="trilinear")
        logits = self.seg_layers[0](self.fuse(torch.cat([*enlarged, gray], 1)))
        return F.interpolate(logits, size=image.shape[2:], mode="trilinear", align_corners=True)


def _conv_norm_relu(in_channels: int, out_channels: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    conv = nn.Conv3d(in_channels, out_channels, 3, padding=1, bias=False)
    return conv, nn.InstanceNorm3d(out_channels), nn.ReLU()
