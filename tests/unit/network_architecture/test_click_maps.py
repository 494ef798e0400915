"""What goes beyond the reference's clicks: nothing at first, nothing without clicks, and where it should be after."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from nnunetv2_sam3d.network_architecture.config import SAM3DConfig
from nnunetv2_sam3d.network_architecture.prompt_encoder import SIGMAS, click_maps, is_addition
from nnunetv2_sam3d.network_architecture.sam3d import SAM3D

Make = Callable[..., SAM3D]
IMAGE = torch.randn(2, 1, 16, 20, 12, generator=torch.Generator().manual_seed(3))
POINTS = torch.tensor([[[3.0, 12.0, 7.5], [10.0, 2.0, 1.0]], [[0.0, 0.0, 0.0], [8.0, 8.0, 8.0]]])
SIGNS = torch.tensor([[1.0, -1.0], [0.0, 1.0]])
BEYOND = {"signed_clicks": True, "click_maps": True}


def logits_of(network: SAM3D, *clicks: Tensor) -> Tensor:
    with torch.no_grad():
        return network(IMAGE, *clicks)


def fresh(network: SAM3D, **more: bool) -> SAM3D:
    """A network with the same weights, of the kind that `more` says, as loading a file makes it."""
    again = SAM3D(SAM3DConfig(**(network.config.to_dict() | more))).eval()
    again.load_state_dict(network.state_dict())
    return again


@pytest.mark.parametrize("more", [BEYOND, {"click_maps": True}, {"signed_clicks": True}])
def test_at_first_it_is_the_reference(make_network: Make, more: dict[str, bool]) -> None:
    reference = make_network()
    network = fresh(reference, **more)
    for clicks in [(), (POINTS,), (POINTS, torch.ones(2, 2)), (POINTS, SIGNS.abs())]:
        torch.testing.assert_close(logits_of(network, *clicks), logits_of(reference, *clicks), rtol=0, atol=1e-6)
    added = {name for name, _ in network.named_parameters()} - {name for name, _ in reference.named_parameters()}
    assert added == {name for name in network.state_dict() if is_addition(name)} != set()
    assert all((network.get_parameter(name) == 0).all() for name in added)


def test_a_new_network_begins_at_zero() -> None:
    sizes = {"embed_dim": 32, "depth": 4, "num_heads": 2, "global_attn_indexes": (1, 3), "out_channels": 16}
    network = SAM3D(SAM3DConfig(**sizes, **BEYOND))
    assert {name for name, value in network.named_parameters() if is_addition(name) and not value.any()} == {
        "prompt_encoder.background",
        "prompt_encoder.click_maps.to_taps.weight",
    }


def test_without_clicks_it_changes_nothing_whatever_it_learned(make_network: Make) -> None:
    network = make_network(**BEYOND)  # no weight is zero there
    assert network.prompt_encoder.click_maps.to_taps.weight.all()
    automatic = logits_of(network)
    torch.testing.assert_close(logits_of(network, POINTS, torch.zeros(2, 2)), automatic, rtol=0, atol=1e-5)
    with torch.no_grad():
        network.prompt_encoder.click_maps.to_taps.weight.zero_()
    assert torch.equal(logits_of(network), automatic)


def test_maps_make_a_clicks_place_matter(make_network: Make) -> None:
    reference, network = make_network(), make_network(click_maps=True)
    network.load_state_dict(reference.state_dict())
    with torch.no_grad():
        network.prompt_encoder.click_maps.to_taps.weight.normal_(generator=torch.Generator().manual_seed(0))
    changed = (logits_of(network, POINTS) - logits_of(reference, POINTS)).abs().amax((0, 1))
    assert changed.max() > 1e-2
    other = logits_of(network, POINTS.flip(0))
    assert not torch.allclose(other, logits_of(network, POINTS))


def test_gaussians_around_the_clicks() -> None:
    """Voxels 0-3 are token 0, so that its centre is at voxel 1.5."""
    points = torch.tensor([[[1.5, 5.5, 9.5], [1.5, 5.5, 25.5]]])
    maps = click_maps(points, (8, 16, 32), (2, 4, 8), torch.tensor([[1.0, -1.0]]))
    assert maps.shape == (1, 2, 4, 8, 6)
    z, y, x = torch.meshgrid(torch.arange(2), torch.arange(4), torch.arange(8), indexing="ij")
    for place, (column, sigma) in enumerate((column, sigma) for column in (2, 6) for sigma in SIGMAS):
        expected = torch.exp(-(z**2 + (y - 1) ** 2 + (x - column) ** 2) / (2 * sigma**2))
        torch.testing.assert_close(maps[0, ..., place], expected)


def test_of_several_clicks_the_nearest_counts_and_of_none_nothing() -> None:
    two = torch.tensor([[[1.5, 1.5, 1.5], [1.5, 1.5, 13.5]]])
    both = click_maps(two, (4, 4, 16), (1, 1, 4))
    each = [click_maps(two[:, [number]], (4, 4, 16), (1, 1, 4)) for number in range(2)]
    torch.testing.assert_close(both, torch.maximum(*each))
    assert not both[..., 3:].any()
    assert not click_maps(two, (4, 4, 16), (1, 1, 4), torch.zeros(1, 2)).any()
    assert not click_maps(two[:, :0], (4, 4, 16), (1, 1, 4)).any()


def test_strides_may_differ_between_axes() -> None:
    maps = click_maps(torch.tensor([[[3.0, 1.5, 7.5]]]), (8, 8, 16), (8, 2, 1))  # strides 1, 4, 16
    assert maps[0, 3, :, 0, 0].tolist() == pytest.approx([1.0, torch.tensor(-0.5).exp().item()])
    assert maps[0, :, 0, 0, 0].tolist() == pytest.approx(torch.exp(-((torch.arange(8) - 3) ** 2) / 2).tolist())


@pytest.mark.parametrize("signs", [torch.zeros(2, 2), SIGNS])
def test_every_parameter_has_a_gradient_in_steps_with_and_without_clicks(make_network: Make, signs: Tensor) -> None:
    """DDP waits for those that have none."""
    network = make_network(**BEYOND).train()
    network(IMAGE, POINTS, signs).square().mean().backward()
    assert not [name for name, value in network.named_parameters() if value.grad is None]
    for name, value in network.named_parameters():
        if is_addition(name):
            assert value.grad.any() == bool(signs.any()), name


def test_precision_of_the_taps_stays(make_network: Make) -> None:
    network = make_network(**BEYOND)
    exact = logits_of(network, POINTS, SIGNS)
    network.cpu_precision = "bfloat16"
    rough = logits_of(network, POINTS, SIGNS)
    assert rough.dtype == torch.float32
    assert ((rough - exact).norm() / exact.norm()) < 0.1


@pytest.mark.parametrize("name", sorted(BEYOND))
def test_needs_a_prompt_encoder(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} needs a prompt encoder"):
        SAM3DConfig(prompt_encoder=False, **{name: True})
    with pytest.raises(ValueError, match=f"{name} must be true or false, got 'yes'"):
        SAM3DConfig(**{name: "yes"})
