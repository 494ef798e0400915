"""The plain form of the network is the same function as ours: the same weights give the same logits and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from nnunetv2_sam3d.benchmark.plain import PlainSAM3D
from nnunetv2_sam3d.network_architecture.sam3d import SAM3D

Make = Callable[..., SAM3D]
POINTS = torch.tensor([[[3.0, 30.0, 11.0], [12.5, 8.25, 2.0]]])


def pair(make_network: Make, **sizes: Any) -> tuple[SAM3D, PlainSAM3D]:
    ours = make_network(**sizes)
    plain = PlainSAM3D(ours.config)
    plain.load_state_dict(ours.state_dict())  # strict: the same names and shapes
    return ours, plain.eval()


@pytest.mark.parametrize("adapter", ["original", "dualpath"])
@pytest.mark.parametrize(
    ("patch", "sizes"),
    [
        ((64, 32, 64), {}),  # several whole windows, shifted ones too
        ((20, 45, 18), {}),  # padding of voxels and of tokens
        ((16, 64, 40), {"token_stride": (2, 8, 4), "in_channels": 3, "decoder_scale": 4}),
    ],
)
def test_same_logits(make_network: Make, adapter: str, patch: tuple[int, int, int], sizes: dict[str, Any]) -> None:
    ours, plain = pair(make_network, adapter=adapter, **sizes)
    image = torch.randn(2, ours.config.in_channels, *patch, generator=torch.Generator().manual_seed(1))
    points = POINTS.expand(2, -1, -1)
    with torch.no_grad():
        torch.testing.assert_close(plain(image, points), ours(image, points), rtol=0, atol=1e-4)
        torch.testing.assert_close(plain(image), ours(image), rtol=0, atol=1e-4)


def test_same_logits_without_prompt_encoder(make_network: Make) -> None:
    ours, plain = pair(make_network, prompt_encoder=False)
    image = torch.randn(1, 1, 40, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(plain(image), ours(image), rtol=0, atol=1e-4)


@pytest.mark.parametrize("adapter", ["original", "dualpath"])
def test_same_gradients(make_network: Make, adapter: str) -> None:
    ours, plain = pair(make_network, adapter=adapter)
    image = torch.randn(1, 1, 24, 48, 32, generator=torch.Generator().manual_seed(1))
    for network in (ours, plain):
        network(image, POINTS).square().mean().backward()
    expected = dict(plain.named_parameters())
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None and expected[name].grad is not None, name
        difference = (parameter.grad - expected[name].grad).norm()
        assert difference <= 1e-3 * expected[name].grad.norm() + 1e-6, name


def test_other_numbers_of_channels_are_refused(make_network: Make) -> None:
    with pytest.raises(ValueError, match="1 or 3 channels, not 2"):
        PlainSAM3D(make_network(in_channels=2).config)
