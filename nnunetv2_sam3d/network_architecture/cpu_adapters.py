"""Adapters on CPUs without gradients: the same functions, a chunk of the tokens at a time.

``cpu.py`` says why. Only the norms need more than one chunk. An adapter that has no form here runs its own forward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_sam3d.network_architecture.adapters import Adapter3d, DualPathAdapter3d, OriginalAdapter3d
from nnunetv2_sam3d.network_architecture.axes import channels_first, channels_last
from nnunetv2_sam3d.network_architecture.cpu import each_sample, in_bfloat16, in_float32, slabs
from nnunetv2_sam3d.network_architecture.cpu_convolutions import depthwise_slices, depthwise_volume
from nnunetv2_sam3d.network_architecture.local_paths import (
    InPlaneConv3d,
    UNetPlusPlus,
    enlarged_in_plane,
    from_plane,
    pooled_in_plane,
    to_plane,
)


def adapted(adapter: Adapter3d, tokens: Tensor) -> Tensor:
    """``adapter(tokens)`` of (B, D, H, W, C)."""
    if isinstance(adapter, DualPathAdapter3d) and type(adapter).forward is DualPathAdapter3d.forward:
        return each_sample(lambda sample, result: _dual_path(adapter, sample, result), tokens)
    if isinstance(adapter, OriginalAdapter3d) and type(adapter).forward is OriginalAdapter3d.forward:
        return each_sample(lambda sample, result: _original(adapter, sample, result), tokens)
    return adapter(tokens)


def _original(adapter: OriginalAdapter3d, tokens: Tensor, result: Tensor) -> None:
    """One sample, (D, H, W, C)."""
    hidden = tokens.new_empty(*tokens.shape[:3], adapter.linear1.out_features)
    parts = slabs(tokens)
    for part in parts:
        hidden[part] = F.relu_(adapter.linear1(tokens[part]))
    for part in parts:
        convolved = F.relu_(depthwise_volume(hidden, part, adapter.conv))
        torch.add(tokens[part], F.relu_(adapter.linear2(convolved)), out=result[part])


def _dual_path(adapter: DualPathAdapter3d, tokens: Tensor, result: Tensor) -> None:
    """One sample, (D, H, W, C)."""
    parts = slabs(tokens)
    hidden = tokens.new_empty(*tokens.shape[:3], adapter.linear1.out_features)
    for part in parts:
        hidden[part] = F.relu_(in_float32(adapter.linear1, tokens[part]))
    planes = to_plane(channels_first(hidden[None]), adapter.plane)
    if type(adapter).local_path is DualPathAdapter3d.local_path:
        planes = channels_last(planes)[0].contiguous()
        local = channels_first(_unetpp(adapter.local_unetpp, planes)[None])
    else:
        local = adapter.local_path(planes)
    local = from_plane(local, adapter.plane)
    for part in parts:
        g = F.relu_(depthwise_volume(hidden, part, adapter.global_conv))
        fused = adapter.fuse(channels_first(g[None]), local[:, :, part])
        torch.add(tokens[part], F.relu_(adapter.linear2(channels_last(fused)[0])), out=result[part])


def _unetpp(path: UNetPlusPlus, x: Tensor) -> Tensor:
    """One sample, (D, H, W, mid)."""
    parts = slabs(x)
    x00 = _in_plane(path.conv_0_0, lambda part: x[part], parts)
    x10 = _in_plane(path.conv_1_0, lambda part: _of_slices(pooled_in_plane, x00[part]), parts)

    def both(part: slice) -> Tensor:
        up = _of_slices(lambda volume: enlarged_in_plane(volume, x.shape[1:3]), x10[part])
        return torch.cat([x00[part], up], -1)

    return _in_plane(path.conv_0_1, both, parts)


def _in_plane(layer: InPlaneConv3d, slices: Callable[[slice], Tensor], parts: Sequence[slice]) -> Tensor:
    """An :class:`InPlaneConv3d` of one sample in float32, (D, H, W, in_channels) -> (D, H, W, out_channels).

    Args:
        layer: whose function it is.
        slices: gives the slices of a part of the input.
        parts: of the input, see :func:`~nnunetv2_sam3d.network_architecture.cpu.slabs`.
    """
    first = _mixed(layer, slices(parts[0]))
    y = first.new_empty(parts[-1].stop, *first.shape[1:])
    y[parts[0]] = first
    for part in parts[1:]:
        y[part] = _mixed(layer, slices(part))
    norm: nn.InstanceNorm3d = layer.norm
    mean = y.mean((0, 1, 2))
    variance = torch.stack([(y[part] - mean).square_().sum((0, 1, 2)) for part in parts]).sum(0)
    scale = norm.weight * torch.rsqrt(variance / y[..., 0].numel() + norm.eps)
    shift = norm.bias - mean * scale
    for part in parts:
        torch.addcmul(shift, y[part], scale, out=y[part]).relu_()
    return y


def _mixed(layer: InPlaneConv3d, slices: Tensor) -> Tensor:
    """Both convolutions of some slices, in float32; their biases only shift what the norm removes, and are left out."""
    y = depthwise_slices(slices, layer.depthwise.weight[:, :, 0])
    weight = layer.pointwise.weight.flatten(1)
    if not in_bfloat16(y):
        return F.linear(y, weight)
    mean = y.mean((0, 1, 2))  # as in the layer itself; these slices' mean comes back exactly
    with torch.autocast("cpu", enabled=False):
        exact = weight @ mean
    return F.linear(y.sub_(mean), weight).to(y.dtype).add_(exact)


def _of_slices(function: Callable[[Tensor], Tensor], slices: Tensor) -> Tensor:
    """A function of (B, C, D, H, W) on (D, H, W, C)."""
    return channels_last(function(channels_first(slices[None])))[0]
