"""The folded stem is the reference's stem: upsampling, SAM's patch embedding of every slice, slice embedding."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nnunetv2_sam3d.network_architecture.stem import FoldedStem3d, upsampling_taps

WIDTH = 12
GRID = (3, 1, 2)
STRIDES = [(2, 2, 2), (4, 4, 4), (8, 8, 8), (16, 16, 16), (4, 8, 2), (16, 4, 8), (1, 8, 16)]


def make_stem(in_channels: int, stride: tuple[int, int, int]) -> FoldedStem3d:
    torch.manual_seed(0)
    stem = FoldedStem3d(WIDTH, in_channels, stride)
    with torch.no_grad():
        stem.slice_embed.weight.add_(0.2 * torch.randn_like(stem.slice_embed.weight))
        stem.slice_embed.bias.add_(torch.randn(WIDTH))
    return stem


def make_image(in_channels: int, stride: tuple[int, int, int]) -> Tensor:
    size = [tokens * voxels for tokens, voxels in zip(GRID, stride, strict=True)]
    return torch.randn(2, in_channels, *size, generator=torch.Generator().manual_seed(1))


def plain_stem(stem: FoldedStem3d, rgb: Tensor) -> Tensor:
    """The stem as the reference computes it, from three channels at the image's resolution."""
    up = F.interpolate(rgb, size=[16 * tokens for tokens in GRID], mode="trilinear", align_corners=False)
    slices = [stem.patch_embed.proj(up[:, :, z]) for z in range(up.shape[2])]
    return stem.slice_embed(torch.stack(slices, 2)).permute(0, 2, 3, 4, 1)


@pytest.mark.parametrize("in_channels", [1, 3])
@pytest.mark.parametrize("stride", STRIDES)
def test_equals_the_plain_form(stride: tuple[int, int, int], in_channels: int) -> None:
    stem, image = make_stem(in_channels, stride), make_image(in_channels, stride)
    expected = plain_stem(stem, image.expand(-1, 3, -1, -1, -1))
    torch.testing.assert_close(stem(image), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("in_channels", [1, 3])
@pytest.mark.parametrize("stride", [(4, 4, 4), (16, 4, 8)])
def test_has_the_gradients_of_the_plain_form(stride: tuple[int, int, int], in_channels: int) -> None:
    stem, image = make_stem(in_channels, stride), make_image(in_channels, stride)
    direction = torch.randn(2, *GRID, WIDTH)

    def gradients(tokens: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad((tokens * direction).sum(), list(stem.parameters())))

    folded = gradients(stem(image))
    plain = gradients(plain_stem(stem, image.expand(-1, 3, -1, -1, -1)))
    for ours, expected in zip(folded, plain, strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5 * max(1.0, expected.abs().max().item()))


@pytest.mark.parametrize("in_channels", [2, 5, 6])
def test_rule_for_other_numbers_of_channels(in_channels: int) -> None:
    """Channel i is of colour ``i mod 3``, all of them scaled by ``3 / n``."""
    stem, image = make_stem(in_channels, (4, 4, 4)), make_image(in_channels, (4, 4, 4))
    rgb = torch.zeros(2, 3, *image.shape[2:])
    for channel in range(in_channels):
        rgb[:, channel % 3] += image[:, channel] * 3 / in_channels
    torch.testing.assert_close(stem(image), plain_stem(stem, rgb), rtol=0, atol=1e-5)


def test_equal_channels_respond_like_one_channel() -> None:
    one, six = make_stem(1, (4, 4, 4)), make_stem(6, (4, 4, 4))
    image = make_image(1, (4, 4, 4))
    torch.testing.assert_close(six(image.expand(-1, 6, -1, -1, -1)), one(image), rtol=0, atol=1e-5)


def test_starts_as_the_mean_of_the_slices() -> None:
    stem = FoldedStem3d(WIDTH, 1, (16, 16, 16))
    image = make_image(1, (16, 16, 16))
    mean = image.unflatten(2, (GRID[0], 16)).mean(3)  # the average slice of each token
    expected = torch.stack([stem.patch_embed.proj(mean[:, :, z].expand(-1, 3, -1, -1)) for z in range(GRID[0])], 1)
    torch.testing.assert_close(stem(image), expected.movedim(2, -1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2, 4, 8, 16])
def test_taps_are_the_upsampling_of_one_token(stride: int) -> None:
    line = torch.randn(1, 1, 3 * stride)
    samples = F.interpolate(line, scale_factor=16 / stride, mode="linear", align_corners=False)[0, 0, 16:32]
    border = 1 if stride < 16 else 0
    torch.testing.assert_close(upsampling_taps(stride) @ line[0, 0, stride - border : 2 * stride + border], samples)


def test_keeps_bfloat16() -> None:
    stem = make_stem(1, (4, 4, 4)).to(torch.bfloat16)
    tokens = stem(make_image(1, (4, 4, 4)).to(torch.bfloat16))
    assert tokens.dtype == torch.bfloat16
    expected = make_stem(1, (4, 4, 4))(make_image(1, (4, 4, 4)))
    assert (tokens.float() - expected).norm() < 0.02 * expected.norm()
