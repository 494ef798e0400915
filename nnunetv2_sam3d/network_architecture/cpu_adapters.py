"""Adapters on CPUs without gradients: the same functions, a chunk of the tokens at a time, into the tokens' memory.

``cpu.py`` says why. Only the norms need more than one chunk. An adapter that has no form here runs its own forward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_sam3d.network_architecture.adapters import Adapter3d, DualPathAdapter3d, OriginalAdapter3d
from nnunetv2_sam3d.network_architecture.axes import channels_first, channels_last
from nnunetv2_sam3d.network_architecture.cpu import in_bfloat16, slabs
from nnunetv2_sam3d.network_architecture.cpu_convolutions import (
    depthwise_slices,
    depthwise_volume,
    enlarged_slices,
    pooled_slices,
)
from nnunetv2_sam3d.network_architecture.cpu_memory import Scratch, add_product, product, product_dtype
from nnunetv2_sam3d.network_architecture.local_paths import (
    InPlaneConv3d,
    UNetPlusPlus,
    from_plane,
    to_plane,
)


def adapt_(adapter: Adapter3d, tokens: Tensor, scratch: Scratch) -> None:
    """``tokens = adapter(tokens)`` of one sample, (D, H, W, C), contiguous."""
    if isinstance(adapter, DualPathAdapter3d) and type(adapter).forward is DualPathAdapter3d.forward:
        _dual_path(adapter, tokens, scratch)
    elif isinstance(adapter, OriginalAdapter3d) and type(adapter).forward is OriginalAdapter3d.forward:
        _original(adapter, tokens, scratch)
    else:
        tokens.copy_(adapter(tokens[None])[0])


def _original(adapter: OriginalAdapter3d, tokens: Tensor, scratch: Scratch) -> None:
    hidden = _hidden(adapter.linear1, tokens, product_dtype(tokens), scratch)
    for part in slabs(tokens):
        _add_output(adapter.linear2, F.relu_(depthwise_volume(hidden, part, adapter.conv)), tokens[part], scratch)


def _dual_path(adapter: DualPathAdapter3d, tokens: Tensor, scratch: Scratch) -> None:
    hidden = _hidden(adapter.linear1, tokens, tokens.dtype, scratch)
    planes = to_plane(channels_first(hidden[None]), adapter.plane)
    if type(adapter).local_path is DualPathAdapter3d.local_path:
        planes = channels_last(planes)[0].contiguous()
        local = channels_first(_unetpp(adapter.local_unetpp, planes, scratch)[None])
    else:
        local = adapter.local_path(planes)
    local = from_plane(local, adapter.plane)
    for part in slabs(tokens):
        g = F.relu_(depthwise_volume(hidden, part, adapter.global_conv))
        fused = adapter.fuse(channels_first(g[None]), local[:, :, part])
        _add_output(adapter.linear2, channels_last(fused)[0], tokens[part], scratch)


def _hidden(linear: nn.Linear, tokens: Tensor, dtype: torch.dtype, scratch: Scratch) -> Tensor:
    """``relu(linear(tokens))`` in a precision, (D, H, W, C) -> (D, H, W, mid)."""
    weight, bias = linear.weight.to(dtype), linear.bias.to(dtype)
    hidden = scratch("hidden", *tokens.shape[:3], linear.out_features, dtype=dtype)
    for part in slabs(tokens):
        rows = hidden[part].flatten(0, 2)
        F.relu_(product(tokens[part].flatten(0, 2).to(dtype), weight, bias, rows))
    return hidden


def _add_output(linear: nn.Linear, fused: Tensor, to: Tensor, scratch: Scratch) -> None:
    """``to += relu(linear(fused))``, (D, H, W, mid) -> (D, H, W, C)."""
    dtype = product_dtype(to)
    rows = scratch("rows", fused[..., 0].numel(), linear.out_features, dtype=dtype)
    product(fused.reshape(len(rows), -1).to(dtype), linear.weight.to(dtype), linear.bias.to(dtype), rows)
    to += F.relu_(rows).view(to.shape)


def _unetpp(path: UNetPlusPlus, x: Tensor, scratch: Scratch) -> Tensor:
    """One sample, (D, H, W, mid)."""
    parts = slabs(x)
    small = len(x), *(max(1, edge // 2) for edge in x.shape[1:3]), x.shape[3]
    x00, x01 = (scratch(name, *x.shape, dtype=x.dtype) for name in ("x00", "x01"))
    x10 = scratch("x10", *small, dtype=x.dtype)
    _in_plane(path.conv_0_0, lambda part: [x[part]], parts, x00, scratch)
    _in_plane(path.conv_1_0, lambda part: [pooled_slices(x00[part])], parts, x10, scratch)

    def both(part: slice) -> list[Tensor]:
        return [x00[part], enlarged_slices(x10[part], x.shape[1:3])]

    _in_plane(path.conv_0_1, both, parts, x01, scratch)
    return x01


def _in_plane(
    layer: InPlaneConv3d,
    inputs: Callable[[slice], list[Tensor]],
    parts: Sequence[slice],
    y: Tensor,
    scratch: Scratch,
) -> None:
    """An :class:`InPlaneConv3d` of one sample in float32, (D, H, W, in_channels) -> (D, H, W, out_channels).

    Args:
        layer: whose function it is.
        inputs: gives the slices of a part of the input, cut along its channels.
        parts: of the input, see :func:`~nnunetv2_sam3d.network_architecture.cpu.slabs`.
        y: where the result goes.
        scratch: for a part.
    """
    counts, means, deviations = [], [], []
    for part in parts:
        rows = y[part].flatten(0, 2)
        _mix(layer, inputs(part), rows)
        means.append(rows.mean(0))
        deviation = torch.sub(rows, means[-1], out=scratch("narrow", *rows.shape, dtype=rows.dtype))
        deviations.append(deviation.square_().sum(0))
        counts.append(len(rows))
    # of parts whose own mean was taken away: no small difference of large numbers
    share = torch.tensor(counts, dtype=y.dtype)[:, None] / sum(counts)
    mean = (torch.stack(means) * share).sum(0)
    between = ((torch.stack(means) - mean).square() * share).sum(0)
    variance = torch.stack(deviations).sum(0) / sum(counts) + between
    norm: nn.InstanceNorm3d = layer.norm
    scale = norm.weight * torch.rsqrt(variance + norm.eps)
    shift = norm.bias - mean * scale
    for part in parts:
        torch.addcmul(shift, y[part], scale, out=y[part]).relu_()


def _mix(layer: InPlaneConv3d, inputs: Sequence[Tensor], rows: Tensor) -> None:
    """Both convolutions of some slices, in float32; their biases only shift what the norm removes, and are left out.

    Shape:
        inputs: (D, H, W, .), together the channels of the input; rows: (D * H * W, out_channels), where the result goes
    """
    first = 0
    for slices in inputs:
        channels = slice(first, first + slices.shape[-1])
        weight = layer.pointwise.weight[:, channels].flatten(1)
        y = depthwise_slices(slices, layer.depthwise.weight[channels, :, 0]).flatten(0, 2)
        if in_bfloat16(y):
            mean = y.mean(0)  # as in the layer itself; these slices' mean comes back exactly
            with torch.autocast("cpu", enabled=False):
                exact = weight @ mean
            mixed = F.linear(y.sub_(mean), weight).to(y.dtype).add_(exact)
            rows.copy_(mixed) if first == 0 else rows.add_(mixed)
        elif first == 0:
            product(y, weight, None, rows)
        else:
            add_product(rows, y, weight)
        first = channels.stop
