"""Small layers that several parts share."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_sam3d.network_architecture import cpu_convolutions
from nnunetv2_sam3d.network_architecture.cpu import in_chunks, in_float32, on_cpu, slabs
from nnunetv2_sam3d.network_architecture.cpu_convolutions import conv3x3x3


class MLP(nn.Module):
    """Two linear layers around an activation.

    Shape:
        x: (..., C) -> (..., C)
    """

    def __init__(self, width: int, hidden: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.lin1 = nn.Linear(width, hidden)
        self.lin2 = nn.Linear(hidden, width)
        self.act = activation()

    def forward(self, x: Tensor) -> Tensor:
        return self.lin2(self.act(self.lin1(x)))


class ChannelLayerNorm3d(nn.Module):
    """LayerNorm over the channels of a channels-first volume (SAM's LayerNorm2d, lifted).

    Shape:
        x: (B, C, D, H, W) -> (B, C, D, H, W)
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x.movedim(1, -1), self.weight.shape, self.weight, self.bias, self.eps)
        return x.movedim(-1, 1)


class Conv3d(nn.Conv3d):
    """``nn.Conv3d`` that may have another form on CPUs, and is trained in float32 there, also under bfloat16 autocast.

    PyTorch's (2.14) bfloat16 gradient of a 3D convolution's weight on a CPU now and then holds memory that nobody has
    written, NaN included: some of a hundred steps of a small network showed it.
    """

    form_on_cpu: ClassVar[Callable[[nn.Conv3d, Tensor], Tensor] | None] = None  # the same function

    def forward(self, x: Tensor) -> Tensor:
        if self.form_on_cpu is not None and on_cpu(x):
            return self.form_on_cpu(x)
        trains = torch.is_grad_enabled() and self.weight.requires_grad
        return in_float32(self._convolved, x) if trains else self._convolved(x)

    def _convolved(self, x: Tensor) -> Tensor:
        return super().forward(x)


class Pointwise3d(Conv3d):
    """1x1x1 convolution.

    Shape:
        x: (B, in_channels, D, H, W) -> (B, out_channels, D, H, W)
    """

    form_on_cpu = cpu_convolutions.pointwise

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, 1, bias=bias)


class DepthwiseInPlane(Conv3d):
    """Depthwise 1x3x3 convolution (padding 1), on CPUs always in float32.

    Shape:
        x: (B, channels, D, H, W) -> the same
    """

    form_on_cpu = cpu_convolutions.depthwise_in_plane

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, (1, 3, 3), padding=(0, 1, 1), groups=channels)


class DepthwiseAcrossSlices(Conv3d):
    """Depthwise 3x1x1 convolution (padding 1), on CPUs always in float32.

    Shape:
        x: (B, channels, D, H, W) -> the same
    """

    form_on_cpu = cpu_convolutions.depthwise_across_slices

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, (3, 1, 1), padding=(1, 0, 0), groups=channels)


class Depthwise3x3x3(Conv3d):
    """Depthwise 3x3x3 convolution (padding 1), on CPUs always in float32.

    Shape:
        x: (B, channels, D, H, W) -> the same
    """

    form_on_cpu = cpu_convolutions.depthwise_3x3x3

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1, groups=channels)


class Conv3x3x3(Conv3d):
    """3x3x3 convolution with padding 1 and without bias, see :func:`conv3x3x3`.

    Shape:
        x: (B, in_channels, D, H, W) -> (B, out_channels, D, H, W)
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1, bias=False)

    def _convolved(self, x: Tensor) -> Tensor:
        return conv3x3x3(x, self.weight)


def enlarged_conv3x3x3(x: Tensor, weight: Tensor, scale: int) -> Tensor:
    """``conv3x3x3`` of a volume that was enlarged trilinearly (``align_corners=True``), computed on the small one.

    Both are linear: the channels are mixed first, for each of the 27 places of the kernel, and the results enlarged and
    shifted axis by axis, which is a matrix product for each axis. For many channels that is a fraction of the
    arithmetic and of the memory.

    Shape:
        x: (B, in_channels, d, h, w), weight: (out_channels, in_channels, 3, 3, 3)
            -> (B, out_channels, scale*d, scale*h, scale*w)
    """
    batch, channels, d, h, w = x.shape
    mix = weight.permute(4, 3, 2, 0, 1).reshape(-1, channels)  # (3 along W * 3 along H * 3 along D * out, C)
    x = x.transpose(0, 1)
    first, *others = slabs(x[0, 0]) if in_chunks(x) else [slice(0, d)]
    planes = _enlarged_in_plane(mix, x[:, :, first], scale)
    if others:  # less memory, and what the processor has in its caches
        of_first, planes = planes, planes.new_empty(3, len(weight) * batch, d, scale**2 * h * w)
        planes[:, :, first] = of_first
        for part in others:
            planes[:, :, part] = _enlarged_in_plane(mix, x[:, :, part], scale)
    y = _sum_of_products(_enlarge_and_shift(d, scale, planes)[:, None], planes)
    return y.view(-1, batch, scale * d, scale * h, scale * w).transpose(0, 1)


def _enlarged_in_plane(mix: Tensor, x: Tensor, scale: int) -> Tensor:
    """Mixed channels, enlarged along H and W, for each of the three places along D.

    Shape:
        mix: (27 * out_channels, in_channels), x: (in_channels, B, d, h, w)
            -> (3, out_channels * B, d, scale**2 * h * w)
    """
    _, _, d, h, w = x.shape
    y = mix @ x.flatten(1)
    height, width = (_enlarge_and_shift(length, scale, y) for length in (h, w))
    y = _sum_of_products(y.view(3, 1, -1, w), width.transpose(1, 2)[:, None])
    y = _sum_of_products(height[:, None], y.view(3, -1, h, scale * w))
    return y.view(3, -1, d, scale**2 * h * w)


def _enlarge_and_shift(length: int, scale: int, like: Tensor) -> Tensor:
    """(3, scale*length, length): enlarging a line linearly, then shifting it by -1, 0 and 1 voxels."""
    line = torch.eye(length, dtype=torch.float32, device=like.device)[None]
    enlarged = F.pad(F.interpolate(line, scale_factor=scale, mode="linear", align_corners=True)[0], (1, 1))
    return torch.stack([enlarged[:, k : k + scale * length].T for k in range(3)]).to(like.dtype)


def _sum_of_products(left: Tensor, right: Tensor) -> Tensor:
    """(3, N, M, K), (3, N, K, P) -> (N, M, P), the batched products of the three summed; N of one may be 1."""
    number = max(left.shape[1], right.shape[1])
    result = torch.matmul(left[0], right[0])
    for a, b in zip(left[1:], right[1:], strict=True):
        result.baddbmm_(a.expand(number, -1, -1), b.expand(number, -1, -1))
    return result
