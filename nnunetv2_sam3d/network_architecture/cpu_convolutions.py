"""3D convolutions on CPUs: the same functions, in forms for which PyTorch has fast kernels there.

1x1x1 convolutions are matrix products, depthwise ones sums of convolutions of single slices.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_sam3d.network_architecture.axes import channels_first, channels_last

SMALL = 20480  # PyTorch's limit on channels * D * H, see _by_halves
FEW_OUTPUTS = 5  # up to which _by_slices is faster, measured


def pointwise(conv: nn.Conv3d, x: Tensor) -> Tensor:
    """1x1x1, (B, in_channels, D, H, W) -> (B, out_channels, D, H, W), as the matrix product that it is."""
    return channels_first(F.linear(channels_last(x), conv.weight.flatten(1), conv.bias))


def depthwise_in_plane(conv: nn.Conv3d, x: Tensor) -> Tensor:
    """Depthwise 1x3x3, (B, C, D, H, W) -> the same, slice by slice and in the weight's precision."""
    return channels_first(_each_slice(channels_last(x).contiguous(), conv.weight[:, :, 0], conv.bias))


def depthwise_across_slices(conv: nn.Conv3d, x: Tensor) -> Tensor:
    """Depthwise 3x1x1, (B, C, D, H, W) -> the same, as the sum of three volumes that are shifted by a slice."""
    assert conv.bias is not None
    before, here, after = (channels_last(x) * weight for weight in conv.weight[:, 0, :, 0, 0].unbind(1))
    return channels_first(here + conv.bias + _shifted(before, after))


def depthwise_3x3x3(conv: nn.Conv3d, x: Tensor) -> Tensor:
    """Depthwise 3x3x3, (B, C, D, H, W) -> the same, as the sum of three convolutions of single slices."""
    x = channels_last(x).contiguous()
    before, here, after = conv.weight.unbind(2)
    around = _shifted(_each_slice(x, before), _each_slice(x, after))
    return channels_first(_each_slice(x, here, conv.bias) + around)


def _shifted(before: Tensor, after: Tensor) -> Tensor:
    """The sum of (B, D, ., ., .), one moved by a slice to where it comes after, the other to where it comes before."""
    return F.pad(before[:, :-1], (0, 0, 0, 0, 0, 0, 1, 0)) + F.pad(after[:, 1:], (0, 0, 0, 0, 0, 0, 0, 1))


def _each_slice(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """:func:`depthwise_slices` of a batch, (B, D, H, W, C)."""
    return depthwise_slices(x.flatten(0, 1), weight, bias).unflatten(0, x.shape[:2])


def depthwise_slices(slices: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Depthwise 3x3 convolution of each slice, in the weight's precision; PyTorch's kernel is far faster than in 3D.

    Shape:
        slices: (D, H, W, C), weight: (C, 1, 3, 3), bias: (C,) -> (D, H, W, C)
    """
    images = slices.to(weight.dtype).permute(0, 3, 1, 2)
    with torch.autocast("cpu", enabled=False):
        return F.conv2d(images, weight, bias, padding=1, groups=len(weight)).permute(0, 2, 3, 1)


def pooled_slices(x: Tensor) -> Tensor:
    """Maxima of 2x2 in the plane, (D, H, W, C), see ``local_paths.pooled_in_plane``.

    PyTorch's pooling takes twenty times as long where channels are last.
    """
    for axis in (1, 2):
        if x.shape[axis] > 1:
            pairs = x.narrow(axis, 0, x.shape[axis] // 2 * 2).unflatten(axis, (-1, 2))
            x = torch.maximum(*pairs.unbind(axis + 1))
    return x


def enlarged_slices(x: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Linear interpolation in the plane, (D, H, W, C), which stay in that order; in 3D they would not."""
    return F.interpolate(x.permute(0, 3, 1, 2), size=size, mode="bilinear", align_corners=False).permute(0, 2, 3, 1)


def depthwise_volume(volume: Tensor, slab: slice, conv: nn.Conv3d) -> Tensor:
    """A slab of a depthwise 3x3x3 convolution (padding 1) of (D, H, W, C), as the sum of three in the plane."""
    result = depthwise_slices(volume[slab], conv.weight[:, :, 1], conv.bias)
    for offset in (-1, 1):
        near = slice(max(slab.start + offset, 0), min(slab.stop + offset, len(volume)))
        there = slice(near.start - offset - slab.start, near.stop - offset - slab.start)
        result[there] += depthwise_slices(volume[near], conv.weight[:, :, 1 + offset])
    return result


def conv3x3x3(x: Tensor, weight: Tensor) -> Tensor:
    """3x3x3 convolution with padding 1, also fast on a CPU for few outputs, for one input, and for one small volume.

    Shape:
        x: (B, in_channels, D, H, W), weight: (out_channels, in_channels, 3, 3, 3) -> (B, out_channels, D, H, W)
    """
    batch, channels, depth, height, _ = x.shape
    if x.device.type == "cpu" and len(weight) <= FEW_OUTPUTS:
        return _by_slices(x, weight)
    if x.device.type == "cpu" and channels == 1:
        return _of_neighbours(x, weight)
    if batch > 1 or x.device.type != "cpu" or depth % 2 or channels * depth * height > SMALL:
        return F.conv3d(x, weight, padding=1)
    return _by_halves(x, weight)


def _by_slices(x: Tensor, weight: Tensor) -> Tensor:
    """As convolutions of single slices with the three slices of the kernel, whose results are shifted and added.

    PyTorch's 3D kernels compute 16 outputs at a time, and of few outputs waste the rest, backwards too.
    """
    outputs = len(weight)
    slices = x.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)
    y = F.conv2d(slices, weight.permute(2, 0, 1, 3, 4).flatten(0, 1), padding=1)
    before, here, after = y.unflatten(0, (len(x), -1)).unflatten(2, (3, outputs)).unbind(2)
    return (here + _shifted(before, after)).transpose(1, 2)


def _of_neighbours(x: Tensor, weight: Tensor) -> Tensor:
    """As convolutions of single slices, whose channels are a slice and the two beside it."""
    neighbours = F.pad(x, (0, 0, 0, 0, 1, 1)).unfold(2, 3, 1)  # (B, C, D, H, W, 3)
    slices = neighbours.permute(0, 2, 1, 5, 3, 4).flatten(2, 3).flatten(0, 1)
    return F.conv2d(slices, weight.flatten(1, 2), padding=1).unflatten(0, (len(x), -1)).transpose(1, 2)


def _by_halves(x: Tensor, weight: Tensor) -> Tensor:
    """As a batch of the volume's two halves, each with the neighbouring slice of the other.

    For a single float32 volume of few channels PyTorch chooses a kernel that is several times slower than that for
    batches.
    """
    middle = x.shape[2] // 2
    x = F.pad(x, (0, 0, 0, 0, 1, 1))
    halves = torch.cat([x[:, :, : middle + 2], x[:, :, middle:]])
    return torch.cat(F.conv3d(halves, weight, padding=(0, 1, 1)).split(1), 2)
