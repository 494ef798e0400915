"""Layers that compute the same function in a cheaper way."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from nnunetv2_sam3d.network_architecture import cpu
from nnunetv2_sam3d.network_architecture.cpu_convolutions import conv3x3x3
from nnunetv2_sam3d.network_architecture.enlarged_convolution import enlarged_conv3x3x3
from nnunetv2_sam3d.network_architecture.windows import window_layout


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


def test_enlarged_by_slabs_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    volume, weight = torch.randn(2, 3, 7, 4, 5), torch.randn(6, 3, 3, 3, 3)
    with torch.no_grad():
        expected = enlarged_conv3x3x3(volume, weight, 2)
        monkeypatch.setattr(cpu, "CHUNK_TOKENS", 40)  # two slices
        torch.testing.assert_close(enlarged_conv3x3x3(volume, weight, 2), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("outputs", [3, 8])
@pytest.mark.parametrize("shape", [(1, 1, 4, 6, 8), (2, 1, 3, 5, 4), (1, 4, 4, 6, 8), (2, 4, 5, 6, 8), (1, 1, 1, 2, 2)])
def test_convolutions_in_other_forms(shape: tuple[int, ...], outputs: int) -> None:
    volume = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(outputs, shape[1], 3, 3, 3, dtype=torch.float64, requires_grad=True)
    expected, found = F.conv3d(volume, weight, padding=1), conv3x3x3(volume, weight)
    torch.testing.assert_close(found, expected)
    for one, other in zip(
        torch.autograd.grad(found.square().sum(), (volume, weight)),
        torch.autograd.grad(expected.square().sum(), (volume, weight)),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("grid", [(8, 16, 16), (9, 6, 12), (1, 2, 3)])
def test_moving_into_windows_and_back(grid: tuple[int, int, int], shifted: bool) -> None:
    layout = window_layout(grid, shifted, torch.device("cpu"))
    count = grid[0] * grid[1] * grid[2]
    tokens = torch.randn(2, count, 3, dtype=torch.float64, requires_grad=True)
    windows = layout.into_windows(tokens)
    assert torch.equal(windows.flatten(1, 2), tokens[:, layout.gather])
    assert torch.equal(layout.from_windows(windows), tokens)
    factors = torch.randn_like(windows)
    found = torch.autograd.grad(layout.from_windows(windows * factors).square().sum(), tokens)[0]
    expected = tokens * 2 * factors.flatten(1, 2)[:, layout.scatter].square()
    torch.testing.assert_close(found, expected)
    windows = windows.detach().requires_grad_()
    layout.from_windows(windows).sum().backward()
    assert windows.grad is not None and windows.grad.sum() == tokens.numel()  # none in padding
