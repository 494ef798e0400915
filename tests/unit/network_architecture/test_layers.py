"""Layers that compute the same function in a cheaper way."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from nnunetv2_sam3d.network_architecture.layers import enlarged_conv3x3x3


@pytest.mark.parametrize("scale", [1, 2, 4])
@pytest.mark.parametrize("shape", [(1, 5, 4, 6, 8), (3, 2, 3, 5, 2)])
def test_convolving_before_enlarging_is_the_same_function(scale: int, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    volume = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(7, shape[1], 3, 3, 3, dtype=torch.float64, requires_grad=True)
    enlarged = F.interpolate(volume, scale_factor=scale, mode="trilinear", align_corners=True)
    expected, found = F.conv3d(enlarged, weight, padding=1), enlarged_conv3x3x3(volume, weight, scale)
    # float32: the enlarging matrices are as exact as that
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6 * expected.abs().max().item())
    for one, other in zip(
        torch.autograd.grad(found.square().sum(), (volume, weight)),
        torch.autograd.grad(expected.square().sum(), (volume, weight)),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * other.abs().max().item())
