"""The DualPath adapters compute what the public 3DMedSAM-FDA adapters computed, gradients included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nnunetv2_sam3d.network_architecture.adapters import DualPathAdapter3d, make_adapter
from nnunetv2_sam3d.network_architecture.cpu_adapters import adapt_
from nnunetv2_sam3d.network_architecture.cpu_memory import Scratch
from nnunetv2_sam3d.network_architecture.sam3d import SAM3D
from nnunetv2_sam3d.weights.checkpoint_file import read_checkpoint
from nnunetv2_sam3d.weights.reading import load_model, read_weights

pytestmark = pytest.mark.golden

PUBLIC = {"dualpath": "unetlocal", "dualpath_conv": "convlocal", "dualpath_fft": "fftlocal"}
ATOL = 1e-4  # of logits and taps; measured: 6e-6


@pytest.fixture(scope="module", params=PUBLIC)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def golden(shared: Path, name: str) -> dict[str, Any]:
    return torch.load(shared / "golden" / f"dualpath_adapter_{PUBLIC[name]}.pt", weights_only=True)


@pytest.fixture(scope="module")
def io(shared: Path) -> dict[str, Any]:
    content = torch.load(shared / "golden" / "reference_tiny_io.pt", weights_only=True)
    return {"image": content["image"].float(), "points": content["points_dhw"][None]}


@pytest.fixture(scope="module")
def file(shared: Path, golden: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as the public training writes it: the reference's, with other adapters."""
    content = dict(read_checkpoint(shared / "golden" / "reference_tiny.pth.tar"))
    encoder = {key: value for key, value in content["encoder_dict"].items() if ".adapter." not in key}
    content["encoder_dict"] = encoder | golden["adapter_dict"]
    target = tmp_path_factory.mktemp("public") / "best.pth.tar"
    torch.save(content, target)
    return target


@pytest.fixture(scope="module")
def network(file: Path) -> SAM3D:
    return load_model(file)


def to_dhw(tensor: Tensor) -> Tensor:
    """Tokens (B, H, W, D, C) -> (B, D, H, W, C)."""
    return tensor.permute(0, 3, 1, 2, 4).contiguous()


def in_our_axes(key: str, tensor: Tensor) -> Tensor:
    """A 3D kernel (O, I, H, W, D) -> (O, I, D, H, W); the local path's stays in its plane."""
    return tensor.permute(0, 1, 4, 2, 3) if key == "global_conv.weight" else tensor


@pytest.fixture
def alone(golden: dict[str, Any], name: str) -> DualPathAdapter3d:
    """The golden adapter by itself."""
    prefix = f"blocks.{golden['alone']['block']}.adapter."
    weights = {key.removeprefix(prefix): value for key, value in golden["adapter_dict"].items() if prefix in key}
    bottleneck, width = weights["linear1.weight"].shape
    adapter = make_adapter(name, width, bottleneck, "published")
    assert isinstance(adapter, DualPathAdapter3d)
    state = {key: in_our_axes(key, value) for key, value in weights.items()}
    adapter.load_state_dict(state | {"published_plane": torch.ones(())})
    return adapter


def test_the_adapter_alone(alone: DualPathAdapter3d, golden: dict[str, Any]) -> None:
    tokens, expected = to_dhw(golden["alone"]["tokens_hwdc"]), to_dhw(golden["alone"]["out_hwdc"])
    torch.testing.assert_close(alone(tokens), expected, rtol=0, atol=1e-5)
    with torch.no_grad():
        in_parts = tokens.clone(memory_format=torch.contiguous_format)
        for sample in in_parts:
            adapt_(alone, sample, Scratch())
        torch.testing.assert_close(in_parts, expected, rtol=0, atol=1e-5)


def test_gradients_of_the_adapter_alone(alone: DualPathAdapter3d, golden: dict[str, Any]) -> None:
    """A bias in front of a norm has no gradient but rounding; it is small beside that of its layer's weight."""
    record = golden["alone"]
    tokens = to_dhw(record["tokens_hwdc"]).requires_grad_()
    (to_dhw(record["weight_of_sum"]) * alone(tokens)).sum().backward()
    assert error(tokens.grad, to_dhw(record["grad_tokens"])) < 1e-4
    ours = dict(alone.named_parameters())
    assert set(ours) == set(record["grads"])
    for key, gradient in record["grads"].items():
        expected = in_our_axes(key, gradient)
        of_weight = record["grads"][key.replace("bias", "weight")].norm()
        if key.endswith("bias") and gradient.norm() < 1e-4 * of_weight:
            assert ours[key].grad.norm() < 1e-4 * of_weight, key
        else:
            assert error(ours[key].grad, expected) < 1e-4, key


def error(value: Tensor | None, expected: Tensor) -> float:
    assert value is not None
    return float((value - expected).norm() / expected.norm())


def test_the_files_adapter_and_plane_are_told_from_its_names(file: Path, network: SAM3D, name: str) -> None:
    config = read_weights(file).config
    assert config is not None
    assert (config.adapter, config.adapter_plane) == (name, "published")
    assert network.config == config
    assert {module.plane for module in network.modules() if isinstance(module, DualPathAdapter3d)} == {"published"}


def test_taps_and_logits_with_30_points(network: SAM3D, golden: dict[str, Any], io: dict[str, Any]) -> None:
    with torch.no_grad():
        features = network.encode(io["image"])
        logits = network.decode(features, io["points"])
    for tap, expected in zip(features.taps, golden["encoder_features_c8_dhw4"], strict=True):
        torch.testing.assert_close(tap[0:1, ::8, ::4, ::4, ::4], expected, rtol=0, atol=ATOL)
    torch.testing.assert_close(logits[..., ::4, ::4, ::4], golden["logits_prompted_30"], rtol=0, atol=ATOL)


def test_logits_in_automatic_mode(file: Path, golden: dict[str, Any], io: dict[str, Any]) -> None:
    from nnunetv2_sam3d.weights.reading import network_from

    network = network_from(read_weights(file, automatic=True)).eval()
    with torch.no_grad():
        logits = network(io["image"])
    torch.testing.assert_close(logits[..., ::4, ::4, ::4], golden["logits_auto"], rtol=0, atol=ATOL)


def test_logits_in_bfloat16(network: SAM3D, io: dict[str, Any]) -> None:
    """Within 2 % of float32's, which are the reference's. Of a part of the image: some processors take minutes."""
    other = SAM3D(network.config, "bfloat16").eval()
    other.load_state_dict(network.state_dict())
    image, points = io["image"][..., 48:80, 32:96, 32:96], torch.tensor([[[9.0, 30.0, 41.0], [20.0, 12.0, 33.0]]])
    with torch.no_grad():
        assert 1e-5 < error(other(image, points), network(image, points)) < 2e-2


def test_the_adapters_change_the_result(golden: dict[str, Any], shared: Path) -> None:
    """By more than the tolerance, so that the reference's own logits could not pass."""
    reference = torch.load(shared / "golden" / "reference_tiny_io.pt", weights_only=True)
    assert (golden["logits_prompted_30"] - reference["logits_prompted_30"]).abs().max() > 100 * ATOL
