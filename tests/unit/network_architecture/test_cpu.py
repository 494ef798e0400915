"""What processors compute, in parts and slices, is the same function as all at once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_sam3d.network_architecture import cpu, cpu_convolutions, image_encoder
from nnunetv2_sam3d.network_architecture.cpu_memory import Scratch
from nnunetv2_sam3d.network_architecture.sam3d import SAM3D
from nnunetv2_sam3d.trainers.recipes import RECIPES, apply_freezing

Make = Callable[..., SAM3D]
SIZES = [(16, 20, 12), (48, 36, 40), (8, 16, 16)]


@pytest.fixture(params=[8, 100, 2048], autouse=True)
def part_tokens(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(cpu, "CHUNK_TOKENS", request.param)
    return request.param


def at_once(network: SAM3D, *inputs: Tensor) -> Tensor:
    with cpu.as_on_gpus(), torch.inference_mode():
        return network(*inputs)


@pytest.mark.parametrize("adapter", ["original", "dualpath"])
@pytest.mark.parametrize("size", SIZES)
def test_same_logits(make_network: Make, adapter: str, size: tuple[int, ...]) -> None:
    network = make_network(adapter=adapter)
    generator = torch.Generator().manual_seed(1)
    image, points = torch.randn(2, 1, *size, generator=generator), 4 * torch.rand(2, 3, 3, generator=generator)
    expected = at_once(network, image, points)
    with torch.inference_mode():
        torch.testing.assert_close(network(image, points), expected, rtol=0, atol=2e-5)
    with torch.enable_grad():  # what training computes
        torch.testing.assert_close(network(image, points).detach(), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("adapter", ["original", "dualpath"])
def test_bfloat16_is_as_close_to_float32_as_all_at_once(
    make_network: Make, monkeypatch: pytest.MonkeyPatch, adapter: str
) -> None:
    network = make_network(adapter=adapter)
    image = torch.randn(1, 1, 32, 32, 32, generator=torch.Generator().manual_seed(1))
    exact = at_once(network, image)
    network.cpu_precision = "bfloat16"
    with torch.inference_mode():
        in_parts = network(image)
        monkeypatch.setattr(image_encoder, "in_chunks", lambda x: False)
        rough = network(image)
    assert 0 < (in_parts - exact).norm() < 1.3 * (rough - exact).norm()


def test_input_is_left_alone(make_network: Make) -> None:
    block = make_network(adapter="dualpath").encoder.blocks[0]
    network = make_network(adapter="dualpath")
    tokens = torch.randn(1, 4, 6, 5, network.config.embed_dim)
    before = tokens.clone()
    with torch.inference_mode():
        block(tokens, network.encoder._layouts((4, 6, 5), tokens.device)[0])
        block.adapter(tokens)
    assert torch.equal(tokens, before)


@pytest.mark.parametrize("adapter", ["original", "dualpath", "dualpath_conv"])
def test_with_scratch_memory_the_input_becomes_the_result(make_network: Make, adapter: str) -> None:
    network, scratch = make_network(adapter=adapter), Scratch()
    tokens = torch.randn(2, 9, 6, 5, network.config.embed_dim)
    plain, shifted = network.encoder._layouts((9, 6, 5), tokens.device)
    with torch.inference_mode():
        expected = network.encoder.blocks[1](network.encoder.blocks[0](tokens, shifted), plain)
        for _ in range(2):  # the second pass finds the first one's memory
            mine = tokens.clone()
            for block, layout in zip(network.encoder.blocks, (shifted, plain), strict=False):
                assert block(mine, layout, scratch) is mine
            torch.testing.assert_close(mine, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("adapter", ["original", "dualpath"])
def test_tokens_in_any_memory_order(make_network: Make, adapter: str) -> None:
    network = make_network(adapter=adapter)
    block, layout = network.encoder.blocks[0], network.encoder._layouts((4, 6, 5), torch.device("cpu"))[0]
    tokens = torch.randn(2, network.config.embed_dim, 4, 6, 5).movedim(1, -1)
    with torch.inference_mode():
        assert torch.equal(block(tokens, layout), block(tokens.contiguous(), layout))


@pytest.mark.parametrize("depth", [1, 2, 7])
def test_depthwise_convolution_slab_by_slab(depth: int) -> None:
    conv = nn.Conv3d(6, 6, 3, padding=1, groups=6)
    volume = torch.randn(depth, 5, 4, 6)
    with torch.no_grad():
        expected = conv(volume.permute(3, 0, 1, 2)[None])[0].permute(1, 2, 3, 0)
        found = torch.cat([cpu_convolutions.depthwise_volume(volume, slab, conv) for slab in cpu.slabs(volume)])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_slices_are_convolved_in_float32_under_autocast() -> None:
    slices, weight = torch.randn(2, 5, 4, 6), torch.randn(6, 1, 3, 3)
    expected = F.conv2d(slices.permute(0, 3, 1, 2), weight, padding=1, groups=6).permute(0, 2, 3, 1)
    with torch.autocast("cpu", torch.bfloat16):
        found = cpu_convolutions.depthwise_slices(slices, weight)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_training_and_compilation_work_on_all_tokens_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = torch.zeros(1)
    assert not cpu.in_chunks(tokens)
    with torch.no_grad():
        assert cpu.in_chunks(tokens)
        assert not cpu.in_chunks(tokens.to("meta"))
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        assert not cpu.in_chunks(tokens)


def gradients(network: SAM3D, *inputs: Tensor) -> dict[str, Tensor]:
    network.zero_grad()
    network(*inputs).square().mean().backward()
    return {name: weight.grad for name, weight in network.named_parameters() if weight.grad is not None}


def assert_same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Of the encoder; some are zero but for rounding: of a key's bias, and of those that a norm removes."""
    for name in expected:
        if name.startswith("encoder.") and not name.endswith(("depthwise.bias", "pointwise.bias")):
            scale = expected[name].abs().max()
            assert scale > 0, name
            # rounding turns single units of a ReLU on or off: 3e-4 measured
            torch.testing.assert_close(found[name] / scale, expected[name] / scale, rtol=0, atol=1e-3, msg=name)


@pytest.mark.parametrize("recipe", ["DualPath", "Full"])
@pytest.mark.parametrize("size", SIZES)
def test_recomputation_changes_no_gradient(make_network: Make, recipe: str, size: tuple[int, ...]) -> None:
    network = make_network(adapter=RECIPES[recipe].adapter)
    trained = sum(len(group) for group in apply_freezing(network, RECIPES[recipe]))
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(2, 1, *size, generator=generator), 4 * torch.rand(2, 3, 3, generator=generator)
    expected = gradients(network, *inputs)
    network.encoder.checkpointing = True
    found = gradients(network, *inputs)
    assert found.keys() == expected.keys() and len(found) == trained
    assert_same_gradients(found, expected)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("adapter", ["original", "dualpath"])
def test_processors_train_as_gpus_do(make_network: Make, adapter: str, checkpointing: bool) -> None:
    network = make_network(adapter=adapter, checkpointing=checkpointing)
    image = torch.randn(2, 1, 48, 36, 40, generator=torch.Generator().manual_seed(1))
    found = gradients(network, image)
    with cpu.as_on_gpus():
        expected = gradients(network, image)
    assert_same_gradients(found, expected)


def test_recomputation_keeps_the_autocast(make_network: Make) -> None:
    network = make_network(adapter="dualpath")
    network.cpu_training_precision = "bfloat16"
    image = torch.randn(1, 1, 48, 36, 40, generator=torch.Generator().manual_seed(1))
    expected = gradients(network, image)
    network.encoder.checkpointing = True
    products: list[torch.dtype] = []
    network.encoder.blocks[0].mlp.register_forward_hook(lambda module, given, out: products.append(out.dtype))
    found = gradients(network, image)
    assert set(products) == {torch.bfloat16}
    distance = sum((found[name] - expected[name]).square().sum() for name in found)
    assert distance < 0.05**2 * sum(gradient.square().sum() for gradient in expected.values())
