"""Recording the paths of the adapters, and leaving one out, against known answers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from nnunetv2_sam3d.network_architecture import cpu as parts
from nnunetv2_sam3d.network_architecture.adapter_paths import (
    PATHS,
    PathMetrics,
    PathRecord,
    recorded_paths,
    two_path_adapters,
    without,
)
from nnunetv2_sam3d.network_architecture.cpu import as_on_gpus
from nnunetv2_sam3d.network_architecture.sam3d import SAM3D

MakeNetwork = Callable[..., SAM3D]
SIZE = (12, 20, 24)  # 3 x 5 x 6 tokens
DUALPATHS = ("dualpath", "dualpath_no_gate", "dualpath_local_only", "dualpath_conv", "dualpath_fft")
with_each_dualpath = pytest.mark.parametrize("adapter", DUALPATHS)


def image_of(batch: int = 2) -> Tensor:
    return torch.randn(batch, 1, *SIZE, generator=torch.Generator().manual_seed(5))


def silence(network: SAM3D) -> SAM3D:
    """Lets the UNet++ of all blocks say nothing."""
    for adapter in two_path_adapters(network).values():
        torch.nn.init.zeros_(adapter.local_unetpp.conv_0_1.norm.weight)
        torch.nn.init.zeros_(adapter.local_unetpp.conv_0_1.norm.bias)
    return network


def same_weights(make_network: MakeNetwork, source: SAM3D, adapter: str) -> SAM3D:
    """A network of another adapter that has all weights that it shares with the source."""
    network = make_network(adapter=adapter, seed=1)
    source.set_adapter_plane("slice")  # the fixture's noise is on the weight that says so, too
    ours = {name.replace(".global_conv.", ".conv."): value for name, value in source.state_dict().items()}
    ours |= source.state_dict()
    network.load_state_dict({name: ours[name] for name in network.state_dict()})
    return network


def test_metrics_are_those_of_all_values_together() -> None:
    torch.manual_seed(0)
    gate, local, g = torch.rand(2, 5, 3, 4, 6), torch.rand(2, 5, 3, 4, 6), torch.rand(2, 5, 3, 4, 6)
    record = PathRecord()
    for slab in (slice(0, 1), slice(1, 3)):
        record.add(gate[:, :, slab], local[:, :, slab], (g + gate * local)[:, :, slab])
    expected = (gate.mean(), gate.std(correction=0), (gate * local).norm() / (g + gate * local).norm())
    assert record.metrics == pytest.approx([float(value) for value in expected], rel=1e-6)
    assert record.tokens == 2 * 3 * 4 * 6


def test_a_narrow_gate_keeps_its_spread() -> None:
    """Half of the values a little above 0.95, half of them below: float32 sums of squares would lose that."""
    gate = torch.full((1, 8, 16, 16, 16), 0.95, dtype=torch.float64)
    gate[:, ::2] += 1e-6
    gate[:, 1::2] -= 1e-6
    record = PathRecord()
    record.add(gate, gate, gate)
    assert record.metrics.gate_sd == pytest.approx(1e-6, rel=1e-3)


@with_each_dualpath
def test_recording_changes_no_result_and_is_the_same_in_parts(
    adapter: str, make_network: MakeNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, image = make_network(adapter=adapter), image_of()
    monkeypatch.setattr(parts, "CHUNK_TOKENS", 30)  # a slice of tokens at a time
    with torch.no_grad():
        expected = network(image)
        with recorded_paths(network) as in_parts:
            assert torch.equal(network(image), expected)
        with as_on_gpus(), recorded_paths(network) as at_once:
            network(image)
    assert list(in_parts) == list(at_once) == [0, 1, 2, 3]
    for index, record in in_parts.items():
        assert record.tokens == at_once[index].tokens == 2 * 3 * 5 * 6
        assert record.metrics == pytest.approx(at_once[index].metrics, abs=1e-5)
    assert all("fuse" not in vars(kind) for kind in two_path_adapters(network).values())


def test_gradients_are_those_without_recording(make_network: MakeNetwork) -> None:
    network, image = make_network(adapter="dualpath").train(), image_of()
    network(image).square().mean().backward()
    name, weight = next((n, p) for n, p in network.named_parameters() if n.endswith("0.adapter.fusion_gate.weight"))
    expected, weight.grad = weight.grad, None
    with recorded_paths(network) as records:
        network(image).square().mean().backward()
    assert torch.equal(weight.grad, expected), name
    assert not records[0].sums.requires_grad


def test_known_gates_and_shares(make_network: MakeNetwork) -> None:
    def figures(network: SAM3D) -> list[PathMetrics]:
        with torch.no_grad(), recorded_paths(network) as records:
            network(image_of())
        return [record.metrics for record in records.values()]

    assert all((f.gate_mean, f.gate_sd) == (1, 0) for f in figures(make_network(adapter="dualpath_no_gate")))
    assert all(f.local_share == pytest.approx(1) for f in figures(make_network(adapter="dualpath_local_only")))
    assert all(f.local_share == 0 < f.gate_sd for f in figures(silence(make_network(adapter="dualpath"))))
    assert all(0.01 < f.local_share < 0.99 for f in figures(make_network(adapter="dualpath")))
    half = make_network(adapter="dualpath")
    for adapter in two_path_adapters(half).values():
        torch.nn.init.zeros_(adapter.fusion_gate.weight)
        torch.nn.init.zeros_(adapter.fusion_gate.bias)
    assert all((f.gate_mean, f.gate_sd) == (0.5, 0) for f in figures(half))
    assert figures(make_network(adapter="original")) == figures(make_network(adapter="original_wide")) == []


def test_without_the_local_path_it_is_the_original_adapter(make_network: MakeNetwork) -> None:
    network = make_network(adapter="dualpath")
    original = same_weights(make_network, network, "original")
    for grad in (False, True):  # in parts and at once
        with torch.set_grad_enabled(grad):
            expected, whole = original(image_of()), network(image_of())
            with without(network, "local"):
                assert torch.allclose(network(image_of()), expected, atol=1e-5)
            assert not torch.allclose(whole, expected, atol=1e-3)
            assert torch.equal(network(image_of()), whole)


@torch.no_grad()
def test_without_the_global_path_it_is_the_local_one_alone(make_network: MakeNetwork) -> None:
    network = make_network(adapter="dualpath")
    alone = same_weights(make_network, network, "dualpath_local_only")
    with without(network, "global"), recorded_paths(network) as records:
        assert torch.allclose(network(image_of()), alone(image_of()), atol=1e-5)
    assert all(record.metrics.local_share == pytest.approx(1) for record in records.values())
    expected = alone(image_of())
    with without(alone, "global"):  # it has none
        assert torch.equal(alone(image_of()), expected)


@torch.no_grad()
def test_a_silent_path_is_not_missed(make_network: MakeNetwork) -> None:
    network = silence(make_network(adapter="dualpath"))
    expected = network(image_of())
    with without(network, "local"):
        assert torch.equal(network(image_of()), expected)
    with without(network, "global"):
        assert not torch.allclose(network(image_of()), expected, atol=1e-3)


@torch.no_grad()
def test_adapters_are_put_back_after_an_error(make_network: MakeNetwork) -> None:
    network = make_network(adapter="dualpath")
    expected = network(image_of())
    for path in PATHS:
        with pytest.raises(KeyError), without(network, path):
            raise KeyError
    assert torch.equal(network(image_of()), expected)
    with pytest.raises(ValueError, match="'both'"), without(network, "both"):
        pass


@torch.no_grad()
def test_maps_are_the_same_metrics_token_by_token(make_network: MakeNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    network = make_network(adapter="dualpath")
    monkeypatch.setattr(parts, "CHUNK_TOKENS", 30)
    with recorded_paths(network, keep_tokens=True) as in_parts:
        network(image_of(1))
    with as_on_gpus(), recorded_paths(network, keep_tokens=True) as at_once:
        network(image_of(1))
    for index, record in in_parts.items():
        assert record.gate_map().shape == record.share_map().shape == (3, 5, 6)
        assert torch.allclose(record.gate_map(), at_once[index].gate_map(), atol=1e-5)
        assert torch.allclose(record.share_map(), at_once[index].share_map(), atol=1e-4)
        assert float(record.gate_map().mean()) == pytest.approx(record.metrics.gate_mean)
        parted = PathRecord()
        some = torch.rand(3, 5, 6) < 0.5
        parted.include(record, some)
        assert (parted.tokens, parted.metrics.gate_mean) == (
            int(some.sum()), pytest.approx(float(record.gate_map()[some].mean())),
        )  # fmt: skip
        parted.include(record, ~some)
        assert parted.metrics == pytest.approx(record.metrics)
