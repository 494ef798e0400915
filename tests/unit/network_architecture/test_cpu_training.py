"""Gradients that processors compute chunk by chunk are those of autograd, to what float64 (and float32) can show."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from nnunetv2_sam3d.network_architecture import cpu
from nnunetv2_sam3d.network_architecture.cpu_memory import Scratch
from nnunetv2_sam3d.network_architecture.cpu_training import with_attention, with_mlp
from nnunetv2_sam3d.network_architecture.enlarged_convolution import enlarged_conv3x3x3
from nnunetv2_sam3d.network_architecture.image_encoder import WindowAttention3d
from nnunetv2_sam3d.network_architecture.layers import MLP
from nnunetv2_sam3d.network_architecture.windows import window_layout

WIDTH = 16
FROZEN = [(), ("qkv", "proj", "lin", "rel_pos_h", "rel_pos_w"), ("bias", "norm", "rel_pos"), ("weight",)]
CASES = [*((names, torch.float64) for names in FROZEN), ((), torch.float32)]


@pytest.fixture(params=[8, 100, 2048], autouse=True)
def part_tokens(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(cpu, "CHUNK_TOKENS", request.param)
    return request.param


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def gradients(result: Tensor, x: Tensor, module: nn.Module) -> dict[str, Tensor]:
    weights = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
    of_result = torch.randn(result.shape, generator=torch.Generator().manual_seed(1)).to(result)
    found = torch.autograd.grad(result, [x, *weights.values()], of_result)
    return dict(zip(["x", *weights], found, strict=True))


def filled(module: nn.Module, frozen: Sequence[str]) -> nn.Module:
    for name, weight in module.named_parameters():
        nn.init.normal_(weight, std=0.3)
        weight.requires_grad_(not any(part in name for part in frozen))
    return module


TOLERANCES = {torch.float64: 1e-11, torch.float32: 1e-4}


def check(mine: Callable[[], Tensor], plain: Callable[[], Tensor], x: Tensor, module: nn.Module) -> None:
    """Twice, since the second time finds memory that the first has used."""
    expected = plain()
    of_expected = gradients(expected, x, module)
    for _ in range(2):
        found = mine()
        torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCES[x.dtype])
        found_gradients = gradients(found, x, module)
        for name, gradient in of_expected.items():
            tolerance = TOLERANCES[x.dtype] * max(1.0, float(gradient.abs().max()))
            torch.testing.assert_close(found_gradients[name], gradient, rtol=0, atol=tolerance, msg=name)


@pytest.mark.parametrize(("frozen", "dtype"), CASES)
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("grid", [(16, 8, 8), (12, 9, 10), (3, 5, 4)])
def test_attention(grid: tuple[int, int, int], shifted: bool, frozen: Sequence[str], dtype: torch.dtype) -> None:
    module = nn.ModuleDict({"norm": nn.LayerNorm(WIDTH), "attn": WindowAttention3d(WIDTH, 2, 27)})
    filled(module, frozen).to(dtype)
    norm, attn = module["norm"], module["attn"]
    layout = window_layout(grid, shifted, torch.device("cpu"))
    x = torch.randn(2, grid[0] * grid[1] * grid[2], WIDTH, dtype=dtype, requires_grad=True)
    scratch, before = Scratch(), x.detach().clone()

    def plain() -> Tensor:
        return x + layout.from_windows(attn(norm(layout.into_windows(x)), layout))

    check(lambda: with_attention(x, norm, attn, layout, scratch), plain, x, module)
    assert torch.equal(x, before)


@pytest.mark.parametrize(("frozen", "dtype"), CASES)
def test_mlp(frozen: Sequence[str], dtype: torch.dtype) -> None:
    module = nn.ModuleDict({"norm": nn.LayerNorm(WIDTH), "mlp": MLP(WIDTH, 4 * WIDTH, nn.GELU)})
    filled(module, frozen).to(dtype)
    norm, mlp = module["norm"], module["mlp"]
    x = torch.randn(2, 301, WIDTH, dtype=dtype, requires_grad=True)
    scratch, before = Scratch(), x.detach().clone()
    check(lambda: with_mlp(x, norm, mlp, scratch), lambda: x + mlp(norm(x)), x, module)
    assert torch.equal(x, before)


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("scale", [1, 2, 3])
def test_convolution_of_an_enlarged_volume(trained: bool, scale: int) -> None:
    conv = nn.Conv3d(5, 3, 3, bias=False, dtype=torch.float64).requires_grad_(trained)
    x = torch.randn(2, 5, 9, 4, 6, dtype=torch.float64, requires_grad=True)

    def plain() -> Tensor:
        with cpu.as_on_gpus():
            return enlarged_conv3x3x3(x, conv.weight, scale)

    check(lambda: enlarged_conv3x3x3(x, conv.weight, scale), plain, x, conv)


def test_a_gradient_that_others_hold_is_left_alone() -> None:
    module = nn.ModuleDict({"norm": nn.LayerNorm(WIDTH), "mlp": MLP(WIDTH, 4 * WIDTH, nn.GELU)}).double()
    x = torch.randn(1, 30, WIDTH, dtype=torch.float64, requires_grad=True)
    of_result = torch.ones(1, 30, WIDTH, dtype=torch.float64)
    with_mlp(x, module["norm"], module["mlp"], Scratch()).backward(of_result)
    assert torch.equal(of_result, torch.ones_like(of_result))


def test_only_without_autocast() -> None:
    x = torch.zeros(1)
    assert cpu.trained_in_chunks(x)
    with torch.no_grad():
        assert not cpu.trained_in_chunks(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert not cpu.trained_in_chunks(x)
    with cpu.as_on_gpus():
        assert not cpu.trained_in_chunks(x)
