"""The trained bottlenecks in front of every frozen transformer block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_sam3d.network_architecture.layers import (
    Depthwise3x3x3,
    DepthwiseInPlane,
    Pointwise3d,
    channels_first,
    channels_last,
)
from nnunetv2_sam3d.network_architecture.parts import depthwise_slices, depthwise_volume, each_sample, in_parts, slabs
from nnunetv2_sam3d.network_architecture.precision import in_bfloat16, in_float32

# Gate bias of a warm start: sigmoid(6) = 0.9975 of the fused signal comes from the trained global path.
WARM_GATE_BIAS = 6.0


class OriginalAdapter3d(nn.Module):
    """Bottleneck adapter with a depthwise 3D convolution; the residual is included.

    Source: Gong et al., arXiv:2306.13465, section 3.2.

    Args:
        width: token width C.
        bottleneck: hidden width.

    Shape:
        tokens: (B, D, H, W, C) -> (B, D, H, W, C)

    Raises:
        ValueError: if ``bottleneck`` is not positive.
    """

    def __init__(self, width: int, bottleneck: int) -> None:
        super().__init__()
        _check_bottleneck(bottleneck)
        self.linear1 = nn.Linear(width, bottleneck)
        self.conv = Depthwise3x3x3(bottleneck)
        self.linear2 = nn.Linear(bottleneck, width)

    def forward(self, tokens: Tensor) -> Tensor:
        if in_parts(tokens):
            return each_sample(self._forward_in_parts, tokens)
        hidden = F.relu(self.linear1(tokens))
        hidden = F.relu(self.conv(channels_first(hidden)))
        return tokens + F.relu(self.linear2(channels_last(hidden)))

    def _forward_in_parts(self, tokens: Tensor, result: Tensor) -> None:
        """``forward`` of one sample, (D, H, W, C)."""
        hidden = tokens.new_empty(*tokens.shape[:3], self.linear1.out_features)
        for slab in slabs(tokens):
            hidden[slab] = F.relu_(self.linear1(tokens[slab]))
        for slab in slabs(tokens):
            convolved = F.relu_(depthwise_volume(hidden, slab, self.conv))
            torch.add(tokens[slab], F.relu_(self.linear2(convolved)), out=result[slab])


class InPlaneConv3d(nn.Sequential):
    """Depthwise 1x3x3 convolution, pointwise 1x1x1 convolution, InstanceNorm3d, ReLU.

    The convolutions have no bias: the normalisation would remove it.

    Shape:
        x: (B, in_channels, D, H, W) -> (B, out_channels, D, H, W)
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            DepthwiseInPlane(in_channels),
            Pointwise3d(in_channels, out_channels, bias=False),
            nn.InstanceNorm3d(out_channels, affine=True),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        depthwise, pointwise, norm, relu = self
        y = in_float32(depthwise, x)
        if in_bfloat16(x):
            # The normalisation removes the mean anyway; without it, rounding is relative to what remains.
            y = y - y.mean((2, 3, 4), keepdim=True)
        return relu(norm(pointwise(y).to(x.dtype)))

    def in_parts(self, slices: Callable[[slice], Tensor], parts: Sequence[slice]) -> Tensor:
        """``forward`` of one sample in float32, (D, H, W, in_channels) -> (D, H, W, out_channels).

        Args:
            slices: gives the slices of a part of the input.
            parts: of the input, see :func:`~nnunetv2_sam3d.network_architecture.parts.slabs`.
        """
        norm = cast(nn.InstanceNorm3d, self[2])
        first = self._mixed(slices(parts[0]))
        y = first.new_empty(parts[-1].stop, *first.shape[1:])
        y[parts[0]] = first
        for part in parts[1:]:
            y[part] = self._mixed(slices(part))
        mean = y.mean((0, 1, 2))
        variance = torch.stack([(y[part] - mean).square_().sum((0, 1, 2)) for part in parts]).sum(0)
        scale = norm.weight * torch.rsqrt(variance / y[..., 0].numel() + norm.eps)
        shift = norm.bias - mean * scale
        for part in parts:
            torch.addcmul(shift, y[part], scale, out=y[part]).relu_()
        return y

    def _mixed(self, slices: Tensor) -> Tensor:
        """Both convolutions of some slices, in float32."""
        depthwise, pointwise = cast(nn.Conv3d, self[0]), cast(nn.Conv3d, self[1])
        y = depthwise_slices(slices, depthwise.weight[:, :, 0])
        weight = pointwise.weight.flatten(1)
        if not in_bfloat16(y):
            return F.linear(y, weight)
        mean = y.mean((0, 1, 2))  # as in forward; these slices' mean comes back exactly
        with torch.autocast("cpu", enabled=False):
            exact = weight @ mean
        return F.linear(y.sub_(mean), weight).to(y.dtype).add_(exact)


class DualPathAdapter3d(nn.Module):
    """Bottleneck adapter with a global 3x3x3 path, a local in-plane UNet++ path and a gate between them.

    ``g`` is a depthwise 3x3x3 convolution of the bottleneck. The local path is a two-level UNet++ in the slice plane:
    ``x00``, ``x10`` at half the in-plane resolution, ``x01`` from both. The gate mixes them voxel by voxel and channel
    by channel: ``a * g + (1 - a) * x01``. Residual included.

    bfloat16 on CPUs: normalising makes small differences between voxels large, and with them the rounding of all that
    comes before. So what is cheap stays float32, and of the products ``linear1``.

    Source: this project; Zhou et al., arXiv:1807.10165 (UNet++).

    Args:
        width: token width C.
        bottleneck: hidden width.

    Shape:
        tokens: (B, D, H, W, C) -> (B, D, H, W, C)

    Raises:
        ValueError: if ``bottleneck`` is not positive.
    """

    def __init__(self, width: int, bottleneck: int) -> None:
        super().__init__()
        _check_bottleneck(bottleneck)
        self.linear1 = nn.Linear(width, bottleneck)
        self.global_conv = Depthwise3x3x3(bottleneck)
        self.conv_0_0 = InPlaneConv3d(bottleneck, bottleneck)
        self.conv_1_0 = InPlaneConv3d(bottleneck, bottleneck)
        self.conv_0_1 = InPlaneConv3d(2 * bottleneck, bottleneck)
        self.gate = Pointwise3d(2 * bottleneck, bottleneck)
        self.linear2 = nn.Linear(bottleneck, width)

    def forward(self, tokens: Tensor) -> Tensor:
        if in_parts(tokens):
            return each_sample(self._forward_in_parts, tokens)
        hidden = channels_first(F.relu(in_float32(self.linear1, tokens)))
        g = in_float32(self.global_conv, hidden)
        x00 = self.conv_0_0(hidden)
        x10 = self.conv_1_0(_halved_in_plane(x00))
        up = F.interpolate(x10, size=x00.shape[2:], mode="trilinear", align_corners=False)
        x01 = self.conv_0_1(torch.cat([x00, up], 1))
        a = torch.sigmoid(self.gate(torch.cat([g, x01], 1)).to(g.dtype))
        fused = F.relu(torch.lerp(x01, g, a))  # a * g + (1 - a) * x01
        return tokens + F.relu(self.linear2(channels_last(fused)))

    def _forward_in_parts(self, tokens: Tensor, result: Tensor) -> None:
        """``forward`` of one sample, (D, H, W, C); only the norms need more than a part of it at once."""
        parts = slabs(tokens)
        hidden = tokens.new_empty(*tokens.shape[:3], self.linear1.out_features)
        for part in parts:
            hidden[part] = F.relu_(in_float32(self.linear1, tokens[part]))
        x00 = self.conv_0_0.in_parts(lambda part: hidden[part], parts)
        x10 = self.conv_1_0.in_parts(lambda part: _of_slices(_halved_in_plane, x00[part]), parts)

        def enlarged(volume: Tensor) -> Tensor:
            size = (volume.shape[2], *tokens.shape[1:3])
            return F.interpolate(volume, size=size, mode="trilinear", align_corners=False)

        x01 = self.conv_0_1.in_parts(lambda part: torch.cat([x00[part], _of_slices(enlarged, x10[part])], -1), parts)
        for part in parts:
            g = depthwise_volume(hidden, part, self.global_conv)
            a = torch.sigmoid(
                F.linear(torch.cat([g, x01[part]], -1), self.gate.weight.flatten(1), self.gate.bias).to(g.dtype)
            )
            fused = F.relu_(torch.lerp(x01[part], g, a))
            torch.add(tokens[part], F.relu_(self.linear2(fused)), out=result[part])

    def bias_gate_to_global(self) -> None:
        """Make the gate pass almost only the global path, the start that a trained original adapter needs."""
        nn.init.zeros_(self.gate.weight)
        nn.init.constant_(self.gate.bias, WARM_GATE_BIAS)  # type: ignore[arg-type]


def _halved_in_plane(volume: Tensor) -> Tensor:
    """Means of 2x2 in H and W; odd edges and single rows keep what they have.

    The slices are pooled in two dimensions: PyTorch's 3D average pooling knows no bfloat16 on CPUs.
    """
    kernel = (min(2, volume.shape[3]), min(2, volume.shape[4]))
    slices = F.avg_pool2d(volume.flatten(1, 2), kernel, 2, ceil_mode=True, count_include_pad=False)
    return slices.unflatten(1, volume.shape[1:3])


def _of_slices(function: Callable[[Tensor], Tensor], slices: Tensor) -> Tensor:
    """A function of (B, C, D, H, W) on (D, H, W, C)."""
    return channels_last(function(channels_first(slices[None])))[0]


def _check_bottleneck(bottleneck: int) -> None:
    if bottleneck < 1:
        raise ValueError(f"an adapter's bottleneck must be at least 1 wide, got {bottleneck}")


ADAPTER_CLASSES: dict[str, type[OriginalAdapter3d] | type[DualPathAdapter3d]] = {
    "original": OriginalAdapter3d,
    "dualpath": DualPathAdapter3d,
}
