"""Small layers that several parts share."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_sam3d.network_architecture import cpu_convolutions
from nnunetv2_sam3d.network_architecture.cpu import in_float32, on_cpu
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
