"""From voxels to tokens: upsampling, SAM's patch embedding and the slice embedding, folded into one convolution."""

from __future__ import annotations

from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_sam3d.network_architecture.cpu import in_float32
from nnunetv2_sam3d.network_architecture.frozen_cache import FrozenCache

SAM_PATCH = 16


class PatchEmbed(nn.Module):
    """Holder of SAM's patch embedding weights under SAM's names (``proj.weight``: (C, 3, 16, 16))."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, embed_dim, SAM_PATCH, SAM_PATCH)


class FoldedStem3d(nn.Module):
    """Patch embedding per slice and slice embedding along depth, at the image's own resolution.

    The reference repeats the image to three channels, upsamples it trilinearly (x4 for a token stride of 4), applies
    SAM's 16x16 patch embedding to every slice and a depthwise 16-tap convolution along depth. Upsampling is linear, so
    per axis "upsample, then 16 taps at stride 16" is "pad by repetition, then ``stride + 2`` taps at ``stride``", and
    the whole stem is one Conv3d. Same function: maximum difference 4e-6 in float32.

    Channels: the RGB kernels are summed for a one-channel image (the reference's repetition) and used as they are for
    three channels. For any other number n, channel i takes the kernel of colour ``i mod 3``, scaled by ``3 / n``, so
    that the channels stay distinguishable and the response keeps its size.

    Source: Gong et al., arXiv:2306.13465, section 3.1; Kirillov et al., arXiv:2304.02643 (patch embedding).

    Args:
        embed_dim: token width C.
        in_channels: channels of the image.
        token_stride: voxels per token along D, H, W.

    Shape:
        image: (B, in_channels, D, H, W), sizes divisible by the stride -> (B, D/s, H/s, W/s, C)
    """

    def __init__(self, embed_dim: int, in_channels: int, token_stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.token_stride = token_stride
        self._kernel, self._folded = FrozenCache(), FrozenCache()
        self.patch_embed = PatchEmbed(embed_dim)
        self.slice_embed = nn.Conv3d(embed_dim, embed_dim, (SAM_PATCH, 1, 1), (SAM_PATCH, 1, 1), groups=embed_dim)
        # Starts as the mean over the slices of a token: the embedding of a slab is that of its average slice.
        nn.init.constant_(self.slice_embed.weight, 1 / SAM_PATCH)
        nn.init.zeros_(self.slice_embed.bias)  # type: ignore[arg-type]

    def folded(self) -> tuple[Tensor, Tensor]:
        """Kernel (C, in_channels, kd, kh, kw) and bias (C,) of the one convolution, differentiable."""
        patch, along_depth = self.patch_embed.proj, self.slice_embed
        return self._folded(
            self._fold,
            patch.weight,
            cast(Tensor, patch.bias),
            along_depth.weight,
            cast(Tensor, along_depth.bias),
        )

    def _fold(self) -> tuple[Tensor, Tensor]:
        slice_weight = self.slice_embed.weight.flatten(1)
        patch_bias, slice_bias = cast(Tensor, self.patch_embed.proj.bias), cast(Tensor, self.slice_embed.bias)
        # The sums over 48 x 16 taps are made in double precision, where there is one: a few million operations that
        # keep the fold from adding any rounding of its own.
        dtype = torch.float32 if slice_weight.device.type == "mps" else torch.float64
        in_plane = self._kernel(lambda: self._in_plane(dtype), self.patch_embed.proj.weight)
        along_depth = slice_weight.to(dtype)
        fold_d = upsampling_taps(self.token_stride[0]).to(along_depth)
        weight = torch.einsum("ciyx,cz->cizyx", in_plane, along_depth @ fold_d)
        bias = along_depth.sum(1) * patch_bias.to(dtype) + slice_bias
        return weight.to(slice_weight.dtype), bias.to(slice_weight.dtype)

    def _in_plane(self, dtype: torch.dtype) -> Tensor:
        """The patch kernel folded along H and W: (C, in_channels, kh, kw)."""
        kernel = channel_kernels(self.patch_embed.proj.weight.to(dtype), self.in_channels)
        fold_h, fold_w = (upsampling_taps(stride).to(kernel) for stride in self.token_stride[1:])
        return torch.einsum("cihw,hy,wx->ciyx", kernel, fold_h, fold_w)

    def forward(self, image: Tensor) -> Tensor:
        weight, bias = self.folded()
        pad = [1 if stride < SAM_PATCH else 0 for stride in reversed(self.token_stride) for _ in range(2)]
        image = F.pad(image, pad, mode="replicate")
        convolve = partial(F.conv3d, weight=weight, bias=bias, stride=self.token_stride)
        return in_float32(convolve, image).movedim(1, -1)  # little of the work, and all that follows sees it


def channel_kernels(rgb: Tensor, in_channels: int) -> Tensor:
    """SAM's kernels (C, 3, 16, 16) -> (C, in_channels, 16, 16), by the rule in :class:`FoldedStem3d`."""
    if in_channels == 1:
        return rgb.sum(1, keepdim=True)
    if in_channels == 3:
        return rgb
    return rgb[:, [channel % 3 for channel in range(in_channels)]] * (3 / in_channels)


def upsampling_taps(stride: int) -> Tensor:
    """The linear upsampling of one token's 16 samples as a matrix.

    Args:
        stride: voxels per token; the upsampling factor is ``16 / stride``.

    Returns:
        (16, stride + 2): sample = sum of voxels, from one voxel before the token to one after it
        (align_corners=False). The identity for stride 16.
    """
    if stride == SAM_PATCH:
        return torch.eye(SAM_PATCH)
    taps = [[0.0] * (stride + 2) for _ in range(SAM_PATCH)]  # one tensor in the end: each step makes them
    for sample, row in enumerate(taps):
        position = (sample + 0.5) * stride / SAM_PATCH - 0.5 + 1  # +1: voxel -1 is column 0
        left = int(position)
        row[left : left + 2] = 1 - (position - left), position - left
    return torch.tensor(taps, dtype=torch.float32)
