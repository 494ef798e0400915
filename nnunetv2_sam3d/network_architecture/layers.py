"""Small layers that several parts share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_sam3d.network_architecture.cpu import depthwise_slices, in_float32, on_processor

SMALL = 20480  # PyTorch's limit on channels * D * H, see conv3x3x3


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
    """``nn.Conv3d`` that is trained in float32 on CPUs, also under bfloat16 autocast.

    PyTorch's (2.14) bfloat16 gradient of a 3D convolution's weight on a CPU now and then holds memory that nobody has
    written, NaN included: some of a hundred steps of a small network showed it.
    """

    def forward(self, x: Tensor) -> Tensor:
        trains = torch.is_grad_enabled() and self.weight.requires_grad
        return in_float32(self._convolved, x) if trains else self._convolved(x)

    def _convolved(self, x: Tensor) -> Tensor:
        return super().forward(x)


class Pointwise3d(Conv3d):
    """1x1x1 convolution; on CPUs as the matrix product that it is, which is several times faster there.

    Shape:
        x: (B, in_channels, D, H, W) -> (B, out_channels, D, H, W)
    """

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        if not on_processor(x):
            return super().forward(x)
        return channels_first(F.linear(channels_last(x), self.weight.flatten(1), self.bias))


class DepthwiseInPlane(Conv3d):
    """Depthwise 1x3x3 convolution (padding 1), on CPUs of single slices and always in float32.

    Shape:
        x: (B, channels, D, H, W) -> the same
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, (1, 3, 3), padding=(0, 1, 1), groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        if not on_processor(x):
            return super().forward(x)
        assert self.bias is not None
        return channels_first(_each_slice(channels_last(x).contiguous(), self.weight[:, :, 0]) + self.bias)


class DepthwiseAcrossSlices(Conv3d):
    """Depthwise 3x1x1 convolution (padding 1), on CPUs the sum of three shifted volumes and always in float32.

    Shape:
        x: (B, channels, D, H, W) -> the same
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, (3, 1, 1), padding=(1, 0, 0), groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        if not on_processor(x):
            return super().forward(x)
        assert self.bias is not None
        before, here, after = (channels_last(x) * weight for weight in self.weight[:, 0, :, 0, 0].unbind(1))
        return channels_first(here + self.bias + _shifted(before, after))


class Depthwise3x3x3(Conv3d):
    """Depthwise 3x3x3 convolution (padding 1), on CPUs the sum of three of single slices and always in float32.

    Shape:
        x: (B, channels, D, H, W) -> the same
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        if not on_processor(x):
            return super().forward(x)
        x = channels_last(x).contiguous()
        before, here, after = (_each_slice(x, weight) for weight in self.weight.unbind(2))
        assert self.bias is not None
        return channels_first(here + self.bias + _shifted(before, after))


def _shifted(before: Tensor, after: Tensor) -> Tensor:
    """The sum of (B, D, H, W, C), one moved by a slice to where it comes after, the other to where it comes before."""
    return F.pad(before[:, :-1], (0, 0, 0, 0, 0, 0, 1, 0)) + F.pad(after[:, 1:], (0, 0, 0, 0, 0, 0, 0, 1))


def _each_slice(x: Tensor, weight: Tensor) -> Tensor:
    """:func:`~.parts.depthwise_slices` of a batch, (B, D, H, W, C)."""
    return depthwise_slices(x.flatten(0, 1), weight).unflatten(0, x.shape[:2])


class Conv3x3x3(Conv3d):
    """3x3x3 convolution with padding 1 and without bias, see :func:`conv3x3x3`.

    Shape:
        x: (B, in_channels, D, H, W) -> (B, out_channels, D, H, W)
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1, bias=False)

    def _convolved(self, x: Tensor) -> Tensor:
        return conv3x3x3(x, self.weight)


def conv3x3x3(x: Tensor, weight: Tensor) -> Tensor:
    """3x3x3 convolution with padding 1, also fast for one small volume on a CPU.

    For a single float32 volume of few channels PyTorch chooses a kernel that is several times slower than the one for
    batches. Such a volume is convolved as a batch of its two halves, each with the neighbouring slice of the other:
    the same function.

    Shape:
        x: (B, in_channels, D, H, W), weight: (out_channels, in_channels, 3, 3, 3) -> (B, out_channels, D, H, W)
    """
    batch, channels, depth, height, _ = x.shape
    if batch > 1 or x.device.type != "cpu" or depth % 2 or channels * depth * height > SMALL:
        return F.conv3d(x, weight, padding=1)
    x = F.pad(x, (0, 0, 0, 0, 1, 1))
    halves = torch.cat([x[:, :, : depth // 2 + 2], x[:, :, depth // 2 :]])
    y = F.conv3d(halves, weight, padding=(0, 1, 1))
    return torch.cat([y[:1], y[1:]], 2)


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
    y = mix @ x.transpose(0, 1).reshape(channels, -1)
    depth, height, width = (_enlarge_and_shift(length, scale, y) for length in (d, h, w))
    y = _sum_of_products(y.view(3, 1, -1, w), width.transpose(1, 2)[:, None])
    y = _sum_of_products(height[:, None], y.view(3, -1, h, scale * w))
    y = _sum_of_products(depth[:, None], y.view(3, -1, d, scale**2 * h * w))
    return y.view(-1, batch, scale * d, scale * h, scale * w).transpose(0, 1)


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


def channels_first(tokens: Tensor) -> Tensor:
    """(B, D, H, W, C) -> (B, C, D, H, W), a view."""
    return tokens.movedim(-1, 1)


def channels_last(volume: Tensor) -> Tensor:
    """(B, C, D, H, W) -> (B, D, H, W, C), a view."""
    return volume.movedim(1, -1)
