"""The adapters against their formulas, on grids of every shape, and in parts against at once."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nnunetv2_sam3d.network_architecture.adapters import (
    ADAPTERS,
    Adapter3d,
    DualPathAdapter3d,
    OriginalAdapter3d,
    make_adapter,
)
from nnunetv2_sam3d.network_architecture.config import PLANES
from nnunetv2_sam3d.network_architecture.cpu import as_on_gpus
from nnunetv2_sam3d.network_architecture.cpu_adapters import adapt_
from nnunetv2_sam3d.network_architecture.cpu_memory import Scratch
from nnunetv2_sam3d.network_architecture.local_paths import InPlaneConv3d, pooled_in_plane

WIDTH, BOTTLENECK = 12, 5
GRIDS = [(4, 6, 8), (3, 5, 7), (3, 1, 5), (2, 4, 1), (1, 3, 3), (2, 1, 1), (5, 2, 3), (1, 1, 1)]
with_each_adapter = pytest.mark.parametrize("name", ADAPTERS)
with_each_grid = pytest.mark.parametrize("grid", GRIDS)
with_each_plane = pytest.mark.parametrize("plane", PLANES)


def strong_adapter(name: str, plane: str = "slice") -> Adapter3d:
    """An adapter in which every weight counts, normalisation included."""
    torch.manual_seed(0)
    adapter = make_adapter(name, WIDTH, BOTTLENECK, plane)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return adapter


def tokens_of(grid: tuple[int, int, int], batch: int = 2) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(batch, *grid, WIDTH)


def in_plane(volume: Tensor, layer: InPlaneConv3d) -> Tensor:
    """1x3x3 slice by slice, 1x1x1 as a product, the norm from its definition."""
    slices = [
        F.conv2d(
            volume[:, :, z], layer.depthwise.weight[:, :, 0], layer.depthwise.bias, padding=1, groups=volume.shape[1]
        )
        for z in range(volume.shape[2])
    ]
    mixed = torch.einsum("bcdhw,oc->bodhw", torch.stack(slices, 2), layer.pointwise.weight.flatten(1))
    mixed = mixed + layer.pointwise.bias.view(1, -1, 1, 1, 1)
    mean = mixed.mean((2, 3, 4), keepdim=True)
    variance = mixed.var((2, 3, 4), unbiased=False, keepdim=True)
    normal = (mixed - mean) / (variance + 1e-5).sqrt()
    return (normal * layer.norm.weight.view(1, -1, 1, 1, 1) + layer.norm.bias.view(1, -1, 1, 1, 1)).clamp(min=0)


def pooled(volume: Tensor) -> Tensor:
    """The largest of each whole 2x2 of a slice; an edge of one token stays."""
    for axis in (3, 4):
        if volume.shape[axis] > 1:
            whole = volume.narrow(axis, 0, volume.shape[axis] // 2 * 2)
            volume = whole.unflatten(axis, (-1, 2)).amax(axis + 1)
    return volume


def dual_path(adapter: DualPathAdapter3d, tokens: Tensor) -> Tensor:
    """DESIGN's formulas for UNet++ with gate, in the slice plane."""
    h = (tokens @ adapter.linear1.weight.t() + adapter.linear1.bias).clamp(min=0).permute(0, 4, 1, 2, 3)
    conv = adapter.global_conv
    g = F.conv3d(h, conv.weight, conv.bias, padding=1, groups=h.shape[1]).clamp(min=0)
    path = adapter.local_unetpp
    x00 = in_plane(h, path.conv_0_0)
    x10 = in_plane(pooled(x00), path.conv_1_0)
    up = torch.stack(
        [
            F.interpolate(x10[:, :, z], size=x00.shape[3:], mode="bilinear", align_corners=False)
            for z in range(x10.shape[2])
        ],
        2,
    )
    x01 = in_plane(torch.cat([x00, up], 1), path.conv_0_1)
    mixed = torch.einsum("bcdhw,oc->bodhw", g, adapter.fusion_gate.weight.flatten(1))
    a = 1 / (1 + torch.exp(-mixed - adapter.fusion_gate.bias.view(1, -1, 1, 1, 1)))
    f = (g + a * x01).permute(0, 2, 3, 4, 1)
    return tokens + (f @ adapter.linear2.weight.t() + adapter.linear2.bias).clamp(min=0)


@with_each_grid
def test_the_dual_path_is_its_formulas(grid: tuple[int, int, int]) -> None:
    adapter, tokens = strong_adapter("dualpath"), tokens_of(grid)
    torch.testing.assert_close(adapter(tokens), dual_path(adapter, tokens), atol=1e-5, rtol=1e-5)


def test_the_published_plane_is_that_of_width_and_depth() -> None:
    tokens = tokens_of((4, 6, 8))
    adapter = strong_adapter("dualpath", "published")
    turned = strong_adapter("dualpath")
    with torch.no_grad():  # the global path keeps its axes, so its kernel has to turn with the volume
        turned.global_conv.weight.copy_(adapter.global_conv.weight.permute(0, 1, 3, 4, 2))
    expected = dual_path(turned, tokens.permute(0, 2, 3, 1, 4)).permute(0, 3, 1, 2, 4)
    torch.testing.assert_close(adapter(tokens), expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(strong_adapter("dualpath")(tokens), expected, atol=1e-2)


@with_each_adapter
@with_each_grid
@with_each_plane
def test_in_parts_on_gpus_and_at_once_are_the_same(
    name: str, grid: tuple[int, int, int], plane: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nnunetv2_sam3d.network_architecture.cpu.CHUNK_TOKENS", 13)
    # in double precision, since the norm of two tokens that hardly differ makes much of rounding
    adapter, tokens = strong_adapter(name, plane).double(), tokens_of(grid).double()
    expected = adapter(tokens)
    assert expected.shape == tokens.shape
    with torch.no_grad():
        in_parts = tokens.clone()
        for sample in in_parts:
            adapt_(adapter, sample, Scratch())
        torch.testing.assert_close(in_parts, expected, atol=1e-5, rtol=1e-5)
    with as_on_gpus():
        torch.testing.assert_close(adapter(tokens), expected, atol=1e-5, rtol=1e-5)


@with_each_adapter
def test_every_parameter_gets_a_gradient(name: str) -> None:
    adapter = strong_adapter(name)
    (adapter(tokens_of((3, 4, 5))) ** 2).sum().backward()
    assert [parameter for parameter, value in adapter.named_parameters() if value.grad is None] == []


@pytest.mark.parametrize("name", [name for name, adapter in ADAPTERS.items() if "original" in adapter.starts_from])
def test_without_its_local_path_a_dual_path_is_the_original_it_started_from(name: str) -> None:
    original, adapter = strong_adapter("original"), strong_adapter(name)
    taken = adapter.from_other({key: value.clone() for key, value in original.state_dict().items()})
    missing, unexpected = adapter.load_state_dict(taken, strict=False)
    assert not unexpected
    if isinstance(adapter, DualPathAdapter3d):
        adapter.fuse = lambda g, local: g  # type: ignore[method-assign]
    tokens = tokens_of((3, 4, 5))
    torch.testing.assert_close(adapter(tokens), original(tokens), atol=1e-6, rtol=1e-6)


def test_the_wide_original_has_the_dual_paths_size() -> None:
    for width, bottleneck in ((64, 32), (768, 384), (1280, 640)):
        with torch.device("meta"):
            wide, dual = (
                sum(value.numel() for value in make_adapter(name, width, bottleneck, "slice").parameters())
                for name in ("original_wide", "dualpath")
            )
        assert abs(wide - dual) / dual < 0.01


def test_the_wide_originals_new_units_learn() -> None:
    original, wide = strong_adapter("original"), strong_adapter("original_wide")
    wide.load_state_dict(wide.from_other(original.state_dict()))
    (wide(tokens_of((3, 4, 5))) ** 2).sum().backward()
    assert wide.linear2.weight.grad[:, BOTTLENECK:].abs().sum() > 0


@pytest.mark.parametrize("name", ["dualpath", "dualpath_conv", "dualpath_fft"])
def test_a_quiet_start_is_nearly_the_original(name: str) -> None:
    torch.manual_seed(0)
    original, adapter = OriginalAdapter3d(WIDTH, BOTTLENECK), make_adapter(name, WIDTH, BOTTLENECK, "slice")
    adapter.load_state_dict(adapter.from_other(original.state_dict()), strict=False)
    tokens = tokens_of((4, 6, 8))
    loud = (adapter(tokens) - original(tokens)).norm()
    adapter.quieten()
    quiet = (adapter(tokens) - original(tokens)).norm()
    assert 0 < quiet < 0.15 * loud


def test_odd_edges_lose_their_last_row_and_single_tokens_stay() -> None:
    volume = torch.arange(15.0).view(1, 1, 1, 5, 3)
    assert pooled_in_plane(volume).flatten().tolist() == [4.0, 10.0]
    assert pooled_in_plane(volume[..., :1]).shape == (1, 1, 1, 2, 1)


def test_planes_travel_with_the_weights() -> None:
    published = strong_adapter("dualpath", "published")
    fresh = make_adapter("dualpath", WIDTH, BOTTLENECK, "slice")
    fresh.load_state_dict(published.state_dict())
    tokens = tokens_of((4, 6, 8))
    assert fresh.plane == "published"
    torch.testing.assert_close(fresh(tokens), published(tokens))


def test_the_earlier_convex_gate_is_refused_with_a_sentence() -> None:
    adapter = strong_adapter("dualpath")
    state = adapter.state_dict() | {"gate.weight": torch.zeros(BOTTLENECK, 2 * BOTTLENECK, 1, 1, 1)}
    with pytest.raises(ValueError, match=r"nnunetv2_sam3d 0\.1.*Train again"):
        adapter.load_state_dict(state)


def test_two_adapters_cannot_share_a_name() -> None:
    with pytest.raises(ValueError, match="two adapters are called 'original'"):
        type("Another", (Adapter3d,), {"name": "original"})


def test_bottlenecks_must_be_positive() -> None:
    with pytest.raises(ValueError, match="at least 1 wide, got 0"):
        make_adapter("original", WIDTH, 0, "slice")


@pytest.mark.parametrize("name", [name for name in ADAPTERS if name != "dualpath_fft"])
def test_compiles_in_one_graph(name: str) -> None:
    """FFTs have no compiled form in PyTorch's default backend; the graph is captured whole for all others."""
    adapter, tokens = strong_adapter(name), tokens_of((3, 4, 5))
    compiled = torch.compile(adapter, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(tokens), adapter(tokens), atol=1e-5, rtol=1e-5)
