"""What the local paths of DualPath adapters are made of: UNet++ in a plane, amplified high frequencies.

Volumes are (B, C, D, H, W). The plane of a path is in the last two axes, see :func:`to_plane`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_sam3d.network_architecture.axes import channels_first, channels_last
from nnunetv2_sam3d.network_architecture.config import SLICE
from nnunetv2_sam3d.network_architecture.cpu import in_bfloat16, in_float32, on_cpu
from nnunetv2_sam3d.network_architecture.cpu_convolutions import enlarged_slices, pooled_slices
from nnunetv2_sam3d.network_architecture.layers import DepthwiseInPlane, Pointwise3d

FFT_CUTOFF = 0.25  # of the largest frequency; what lies above it is amplified
FFT_GAIN = 2.0


class UNetPlusPlus(nn.Module):
    """UNet++ of two levels in the plane of the last two axes.

    Source: Zhou et al., arXiv:1807.10165.

    Shape:
        x: (B, width, D, H, W) -> the same
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv_0_0 = InPlaneConv3d(width, width)
        self.conv_1_0 = InPlaneConv3d(width, width)
        self.conv_0_1 = InPlaneConv3d(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x00 = self.conv_0_0(x)
        x10 = self.conv_1_0(pooled_in_plane(x00))
        return self.conv_0_1(torch.cat([x00, enlarged_in_plane(x10, x00.shape[3:])], 1))


class InPlaneConv3d(nn.Module):
    """Depthwise 1x3x3 convolution, pointwise 1x1x1 convolution, InstanceNorm3d, ReLU.

    Shape:
        x: (B, in_channels, D, H, W) -> (B, out_channels, D, H, W)
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.depthwise = DepthwiseInPlane(in_channels)
        self.pointwise = Pointwise3d(in_channels, out_channels)
        self.norm = AffineInstanceNorm3d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        y = in_float32(self.depthwise, x)
        if in_bfloat16(x):
            # the norm removes the mean anyway; without it, rounding is relative to what remains
            y = y - y.mean((2, 3, 4), keepdim=True)
        return F.relu(self.norm(self.pointwise(y).to(x.dtype)))


class AffineInstanceNorm3d(nn.InstanceNorm3d):
    """``nn.InstanceNorm3d`` with weight and bias, of a single token, too: what is its own mean is zero.

    Shape:
        x: (B, channels, D, H, W) -> the same
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        if x[0, 0].numel() > 1:
            return self._each_sample(x) if on_cpu(x) else super().forward(x)
        return (x - x) * self.weight.view(1, -1, 1, 1, 1) + self.bias.view(1, -1, 1, 1, 1)

    def _each_sample(self, x: Tensor) -> Tensor:
        """The same, in the order in which the channels stand, which instance_norm would change."""
        norm = partial(F.batch_norm, weight=self.weight, bias=self.bias, training=True, eps=self.eps)
        return torch.cat([norm(sample, None, None) for sample in x.split(1)]) if len(x) > 1 else norm(x, None, None)


class HighFrequencies(nn.Module):
    """Amplifies what lies above a quarter of the largest frequency, then mixes the channels, norms and rectifies.

    Shape:
        x: (B, width, D, H, W) -> the same
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.post_conv = Pointwise3d(width, width)
        self.norm = AffineInstanceNorm3d(width)

    def forward(self, x: Tensor) -> Tensor:
        # tensors without content, of which operations are counted, have no autocast
        with nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False):
            grid = (x.shape[2], x.shape[3], x.shape[4])
            # the gain depends on the length of a frequency only, so half of a real volume's spectrum is enough
            exact = x.to(torch.promote_types(x.dtype, torch.float32))
            spectrum = torch.fft.rfftn(exact, dim=(2, 3, 4))
            y = torch.fft.irfftn(spectrum * frequency_gain(grid, x.device), s=grid, dim=(2, 3, 4))
            # its norm would make large what half precision rounds away
            return F.relu(self.norm(self.post_conv(y))).to(x.dtype)


def frequency_gain(grid: tuple[int, int, int], device: torch.device) -> Tensor:
    """Factor of each frequency of ``rfftn`` for a grid (D, H, W), 1 to 3."""
    depth, height, width = grid
    axes = torch.meshgrid(
        torch.fft.fftfreq(depth, device=device),
        torch.fft.fftfreq(height, device=device),
        torch.fft.rfftfreq(width, device=device),
        indexing="ij",
    )
    radius = torch.stack(axes).square().sum(0).sqrt()
    radius = radius / radius.max().clamp(min=1e-6)  # a grid of one token has no frequency but zero
    return 1 + FFT_GAIN * (radius - FFT_CUTOFF).clamp(min=0) / (1 - FFT_CUTOFF + 1e-6)


def pooled_in_plane(volume: Tensor) -> Tensor:
    """Maxima of 2x2 in the last two axes; odd edges lose their last row, edges of one token are kept.

    Shape:
        (B, C, D, H, W) -> (B, C, D, H // 2, W // 2)
    """
    if on_cpu(volume):
        return _slice_by_slice(pooled_slices, volume)
    kernel = (min(2, volume.shape[3]), min(2, volume.shape[4]))
    return F.max_pool2d(volume.flatten(1, 2), kernel, kernel).unflatten(1, volume.shape[1:3])


def enlarged_in_plane(volume: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Linear interpolation to another size of the last two axes."""
    if on_cpu(volume):
        return _slice_by_slice(partial(enlarged_slices, size=size), volume)
    return F.interpolate(volume, size=(volume.shape[2], *size), mode="trilinear", align_corners=False)


def _slice_by_slice(function: Callable[[Tensor], Tensor], volume: Tensor) -> Tensor:
    """A function of slices (., H, W, C) that knows nothing of depth, of (B, C, D, H, W)."""
    slices = channels_last(volume).flatten(0, 1)
    return channels_first(function(slices).unflatten(0, (len(volume), -1)))


def to_plane(volume: Tensor, plane: str) -> Tensor:
    """(B, C, D, H, W) -> the axis across the plane third, the plane's own last."""
    return volume if plane == SLICE else volume.permute(0, 1, 3, 4, 2)


def from_plane(volume: Tensor, plane: str) -> Tensor:
    """The inverse of :func:`to_plane`."""
    return volume if plane == SLICE else volume.permute(0, 1, 4, 2, 3)
