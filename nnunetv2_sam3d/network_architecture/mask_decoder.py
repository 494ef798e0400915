"""The mask decoder: four taps and the image itself to logits."""

from __future__ import annotations

from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_sam3d.network_architecture.config import TAPS
from nnunetv2_sam3d.network_architecture.cpu import in_float32
from nnunetv2_sam3d.network_architecture.cpu_convolutions import conv3x3x3
from nnunetv2_sam3d.network_architecture.enlarged_convolution import enlarged_conv3x3x3
from nnunetv2_sam3d.network_architecture.layers import Conv3x3x3


class MaskDecoder3d(nn.Module):
    """Multi-layer aggregation decoder.

    Every tap passes two convolutions and is enlarged (doubled in the reference); the four and the image at that size
    are fused. The image enters with one channel, the mean of its channels, so that pretrained decoders fit any number
    of them. The fusing convolution is computed on the grid of the taps, see
    :func:`~nnunetv2_sam3d.network_architecture.enlarged_convolution.enlarged_conv3x3x3`: the same function, maximum
    difference 2e-6.

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
        # A convolution of a concatenation is the sum of the convolutions of its parts: that of the taps is computed
        # before they are enlarged, that of the image is small.
        weight = cast(Conv3x3x3, self.fuse[0]).weight
        heads = torch.cat([head(tap) for head, tap in zip(self.heads, taps, strict=True)], 1)
        fused = enlarged_conv3x3x3(heads, weight[:, :-1], self.scale)
        of_image = in_float32(partial(conv3x3x3, weight=weight[:, -1:]), self._gray(image, taps[0]))
        # it is large; where gradients are wanted, adding in place would copy one of its size
        fused = fused + of_image.to(fused.dtype) if torch.is_grad_enabled() else fused.add_(of_image)
        logits = self.seg_layers[0](self.fuse[1:](fused))
        return F.interpolate(logits, size=image.shape[2:], mode="trilinear", align_corners=True)

    def _gray(self, image: Tensor, tap: Tensor) -> Tensor:
        """The image as one channel, at the size at which the decoder works."""
        gray = image if image.shape[1] == 1 else image.mean(1, keepdim=True)
        size = [self.scale * length for length in tap.shape[2:]]
        return F.interpolate(gray, size=size, mode="trilinear", align_corners=False)


def _conv_norm_relu(in_channels: int, out_channels: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    return Conv3x3x3(in_channels, out_channels), nn.InstanceNorm3d(out_channels), nn.ReLU()
