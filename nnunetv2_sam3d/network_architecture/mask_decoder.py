"""The mask decoder: four taps and the image itself to logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_sam3d.network_architecture.config import TAPS
from nnunetv2_sam3d.network_architecture.layers import Conv3x3x3


class MaskDecoder3d(nn.Module):
    """Multi-layer aggregation decoder.

    Every tap passes two convolutions and is enlarged (doubled in the reference); the four and the image at that size
    are fused. The image enters with one channel, the mean of its channels, so that pretrained decoders fit any number
    of them.

    Source: Gong et al., arXiv:2306.13465, section 3.4.

    Args:
        width: channels of the taps.
        channels: channels of the decoder.
        scale: size of the decoder's grid in units of the taps' (reference: 2).
        num_classes: channels of the logits.

    Shape:
        taps: four of (B, width, d, h, w); image: (B, C, D, H, W) -> logits (B, num_classes, D, H, W)
    """

    def __init__(self, width: int, channels: int, num_classes: int, scale: int = 2) -> None:
        super().__init__()
        self.scale = scale
        self.heads = nn.ModuleList(
            nn.Sequential(*_conv_norm_relu(width, channels), *_conv_norm_relu(channels, channels)) for _ in range(TAPS)
        )
        self.fuse = nn.Sequential(*_conv_norm_relu(TAPS * channels + 1, channels))
        # nnU-Net's -pretrained_weights skips keys with ".seg_layers.", the only part that depends on the classes
        self.seg_layers = nn.ModuleList([Conv3x3x3(channels, num_classes)])

    def forward(self, taps: list[Tensor], image: Tensor) -> Tensor:
        enlarged = [
            F.interpolate(head(tap), scale_factor=self.scale, mode="trilinear", align_corners=True)
            for head, tap in zip(self.heads, taps, strict=True)
        ]
        gray = image if image.shape[1] == 1 else image.mean(1, keepdim=True)
        gray = F.interpolate(gray, size=enlarged[0].shape[2:], mode="trilinear", align_corners=False)
        logits = self.seg_layers[0](self.fuse(torch.cat([*enlarged, gray.to(enlarged[0].dtype)], 1)))
        return F.interpolate(logits, size=image.shape[2:], mode="trilinear", align_corners=True)


def _conv_norm_relu(in_channels: int, out_channels: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    return Conv3x3x3(in_channels, out_channels), nn.InstanceNorm3d(out_channels), nn.ReLU()
