"""Convolution of an enlarged volume, on the small one: what the mask decoder fuses its taps with."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from nnunetv2_sam3d.network_architecture.cpu import in_chunks, slabs, trained_in_chunks
from nnunetv2_sam3d.network_architecture.cpu_memory import Scratch


def enlarged_conv3x3x3(x: Tensor, weight: Tensor, scale: int) -> Tensor:
    """``conv3x3x3`` of a volume that was enlarged trilinearly (``align_corners=True``), computed on the small one.

    Both are linear: the channels are mixed first, for each of the 27 places of the kernel, and the results enlarged and
    shifted axis by axis, which is a matrix product for each axis. For many channels that is a fraction of the
    arithmetic and of the memory.

    Shape:
        x: (B, in_channels, d, h, w), weight: (out_channels, in_channels, 3, 3, 3)
            -> (B, out_channels, scale*d, scale*h, scale*w)
    """
    return _Enlarged.apply(x, weight, scale) if trained_in_chunks(x) else _enlarged(x, weight, scale)


def _enlarged(x: Tensor, weight: Tensor, scale: int) -> Tensor:
    batch, _, d, h, w = x.shape
    mix = _mix(weight)
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


def _mix(weight: Tensor) -> Tensor:
    """A kernel as a matrix, (3 along W * 3 along H * 3 along D * out_channels, in_channels)."""
    return weight.permute(4, 3, 2, 0, 1).reshape(-1, weight.shape[1])


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


def _each_product(left: Tensor, right: Tensor, out: Tensor) -> None:
    """(3, M, K), (N, K, P) -> (3, N, M, P), each with each."""
    for matrix, products in zip(left, out, strict=True):
        torch.bmm(matrix.expand(len(right), -1, -1), right, out=products)


class _Enlarged(torch.autograd.Function):
    """:func:`enlarged_conv3x3x3` in training on CPUs: some slices at a time in both directions, nothing kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.scale = scale
        return _enlarged(x, weight, scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_y: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        scale: int = ctx.scale
        channels, _, d, h, w = x.transpose(0, 1).shape
        mix = _mix(weight)
        depth, height, width = (_enlarge_and_shift(length, scale, x).transpose(1, 2) for length in (d, h, w))
        of_y = of_y.transpose(0, 1).reshape(-1, scale * d, scale**2 * h * w)
        of_x = torch.empty_like(x.transpose(0, 1), memory_format=torch.contiguous_format)
        of_mix = torch.zeros_like(mix) if ctx.needs_input_grad[1] else None
        scratch = Scratch()
        for part in slabs(x[0, 0]):
            planes = scratch("planes", 3, len(of_y), part.stop - part.start, of_y.shape[2], dtype=x.dtype)
            _each_product(depth[:, part], of_y, planes)
            planes = planes.view(-1, scale * h, scale * w)
            lines = scratch("lines", 3, len(planes), h, scale * w, dtype=x.dtype)
            _each_product(height, planes, lines)
            lines = lines.view(-1, scale * w)
            y = scratch("mixed", len(mix), len(x) * (part.stop - part.start) * h * w, dtype=x.dtype)
            for place, of_lines in zip(width, y.view(3, len(lines), w), strict=True):
                torch.mm(lines, place.t(), out=of_lines)
            of_x[:, :, part] = (mix.t() @ y).view(channels, len(x), -1, h, w)
            if of_mix is not None:
                of_mix.addmm_(y, x.transpose(0, 1)[:, :, part].reshape(channels, -1).t())
        of_weight = None
        if of_mix is not None:
            of_weight = of_mix.view(3, 3, 3, -1, channels).permute(3, 4, 2, 1, 0)
        return of_x.transpose(0, 1), of_weight, None
