"""The mask decoder: four taps and the image itself to logits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_sam3d.network_architecture.config import TAPS
from nnunetv2_sam3d.network_architecture.layers import Conv3x3x3, conv3x3x3


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

    ``finish(begin(taps[:-1], image), taps[-1], image.shape[2:])`` is the same in two steps, for a last tap that changes
    with the clicks while the others stay.
    """

    def __init__(self, width: int, channels: int, num_classes: int, scale: int = 2) -> None:
        super().__init__()
        self.scale = scale
        self.channels = channels
        self.heads = nn.ModuleList(
            nn.Sequential(*_conv_norm_relu(width, channels), *_conv_norm_relu(channels, channels)) for _ in range(TAPS)
        )
        self.fuse = nn.Sequential(*_conv_norm_relu(TAPS * channels + 1, channels))
        # nnU-Net's -pretrained_weights skips keys with ".seg_layers.", the only part that depends on the classes
        self.seg_layers = nn.ModuleList([Conv3x3x3(channels, num_classes)])

    def forward(self, taps: list[Tensor], image: Tensor) -> Tensor:
        return self._logits(self.fuse(self._fused(self.heads, taps, image)), image.shape[2:])

    def begin(self, taps: Sequence[Tensor], image: Tensor) -> Tensor:
        """What the last tap does not change: the share of the others and of the image in the fusing convolution.

        Args:
            taps: all but the last, (B, width, d, h, w).
            image: (B, C, D, H, W).

        Returns:
            (B, channels, scale*d, scale*h, scale*w)
        """
        weight = self._fuse_weight
        last = slice((TAPS - 1) * self.channels, TAPS * self.channels)  # its channels stand before the image's
        others = torch.cat([weight[:, : last.start], weight[:, last.stop :]], 1)
        return conv3x3x3(self._fused(self.heads[:-1], taps, image), others)

    def finish(self, begun: Tensor, tap: Tensor, size: Sequence[int]) -> Tensor:
        """The logits.

        Args:
            begun: what :meth:`begin` returned.
            tap: the last one, (B, width, d, h, w).
            size: of the image, D, H, W.

        Returns:
            (B, num_classes, D, H, W)
        """
        weight = self._fuse_weight[:, (TAPS - 1) * self.channels : TAPS * self.channels]
        fused = begun + conv3x3x3(self._enlarged(self.heads[-1](tap)), weight)
        return self._logits(self.fuse[1:](fused), size)

    @property
    def _fuse_weight(self) -> Tensor:
        return cast(Conv3x3x3, self.fuse[0]).weight

    def _fused(self, heads: Iterable[nn.Module], taps: Sequence[Tensor], image: Tensor) -> Tensor:
        enlarged = [self._enlarged(head(tap)) for head, tap in zip(heads, taps, strict=True)]
        gray = image if image.shape[1] == 1 else image.mean(1, keepdim=True)
        gray = F.interpolate(gray, size=enlarged[0].shape[2:], mode="trilinear", align_corners=False)
        return torch.cat([*enlarged, gray.to(enlarged[0].dtype)], 1)

    def _enlarged(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=self.scale, mode="trilinear", align_corners=True)

    def _logits(self, x: Tensor, size: Sequence[int]) -> Tensor:
        return F.interpolate(self.seg_layers[0](x), size=size, mode="trilinear", align_corners=True)


def _conv_norm_relu(in_channels: int, out_channels: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    return Conv3x3x3(in_channels, out_channels), nn.InstanceNorm3d(out_channels), nn.ReLU()
