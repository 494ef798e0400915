"""A small U-Net that looks at the image around the clicks once more."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_sam3d.network_architecture.click_maps import SIGNS, click_maps
from nnunetv2_sam3d.network_architecture.click_ways import cheapest_ways
from nnunetv2_sam3d.network_architecture.layers import Conv3d, Conv3x3x3, channels_first

WIDTHS = (16, 32, 64)  # at full, half and quarter resolution
SIGMAS = (1.5, 4.0, 12.0)  # voxels of the decoder's grid
COSTS = (0.25, 1.0)  # grey values of the normalised image


class ClickRefiner3d(nn.Module):
    """Adds to the mask decoder's last features what a small U-Net makes of them, the image and the clicks.

    The clicks enter as Gaussians, and as ways: a voxel is the nearer to a click, the less the image changes on the way
    there (:func:`cheapest_ways`). Goes beyond the reference: the U-Net's last layer is zero at first, and samples
    without clicks keep their features whatever it has learned.

    Source of the ways: Wang et al., arXiv:1707.00652 (DeepIGeoS).

    Args:
        channels: of the mask decoder.

    Shape:
        features: (B, channels, D, H, W), image: (B, 1, D, H, W) on the same grid, points: (B, N, 3) in (z, y, x) voxels
        of an image of ``image_size``, signs: (B, N), 1 for foreground, -1 for background, 0 for no click, ``None`` for
        foreground alone -> like features
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        maps = len(SIGNS) * (len(SIGMAS) + len(COSTS))
        self.reduce = Conv3d(channels, WIDTHS[0], 1)
        self.first = _conv_norm_relu(WIDTHS[0] + 1 + maps, WIDTHS[0])
        self.down = nn.ModuleList(
            nn.Sequential(_conv_norm_relu(wide, deep, 2), _conv_norm_relu(deep, deep))
            for wide, deep in zip(WIDTHS, WIDTHS[1:], strict=False)
        )
        self.up = nn.ModuleList(
            _conv_norm_relu(deep + wide, wide) for wide, deep in zip(WIDTHS, WIDTHS[1:], strict=False)
        )
        self.last = Conv3d(WIDTHS[0], channels, 1, bias=False)
        nn.init.zeros_(self.last.weight)

    def forward(
        self,
        features: Tensor,
        image: Tensor,
        points: Tensor,
        image_size: Sequence[int],
        signs: Tensor | None = None,
    ) -> Tensor:
        signs = torch.ones(points.shape[:2], device=points.device) if signs is None else signs
        with torch.no_grad():
            near = click_maps(points, image_size, features.shape[2:], signs, SIGMAS)
            ways = cheapest_ways(image, points, image_size, signs)
            like = torch.cat([torch.exp(-ways / cost) for cost in COSTS], 1)
        levels = [self.first(torch.cat([self.reduce(features), image, channels_first(near), like], 1))]
        for down in self.down:
            levels.append(down(levels[-1]))
        x = levels.pop()
        for up in reversed(self.up):
            x = F.interpolate(x, size=levels[-1].shape[2:], mode="trilinear", align_corners=False)
            x = up(torch.cat([x, levels.pop()], 1))
        return features + self.last(x) * (signs != 0).any(1).view(-1, 1, 1, 1, 1)


def _conv_norm_relu(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    conv = (
        Conv3x3x3(in_channels, out_channels)
        if stride == 1
        else Conv3d(in_channels, out_channels, 3, stride, 1, bias=False)
    )
    return nn.Sequential(conv, nn.InstanceNorm3d(out_channels, affine=True), nn.LeakyReLU())
