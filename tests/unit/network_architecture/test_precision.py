"""bfloat16 on CPUs: only where it is faster, only the products, and close enough."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from nnunetv2_sam3d.network_architecture.config import VARIANTS
from nnunetv2_sam3d.network_architecture.cpu import cpu_precision
from nnunetv2_sam3d.network_architecture.sam3d import SAM3D

Make = Callable[..., SAM3D]
PROBES = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")


def processor(monkeypatch: pytest.MonkeyPatch, has: str | None = None, maker: str = "AuthenticAMD") -> None:
    monkeypatch.setattr(Path, "read_text", lambda path: f"vendor_id : {maker}")
    for probe in PROBES:
        monkeypatch.setattr(torch.cpu, probe, partial(operator.eq, probe, has), raising=False)


@pytest.mark.parametrize("probe", PROBES)
def test_auto_is_what_the_processor_has(monkeypatch: pytest.MonkeyPatch, probe: str) -> None:
    processor(monkeypatch)
    assert cpu_precision("auto") == "float32"
    assert cpu_precision("bfloat16") == "bfloat16"  # overridden
    processor(monkeypatch, probe)
    assert cpu_precision("auto") == "bfloat16"
    assert cpu_precision("float32") == "float32"


def test_auto_is_what_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """AVX512-BF16 of Intel's processors, where AMX is hidden: 169 GFLOP/s instead of float32's 306 to 355."""
    processor(monkeypatch, PROBES[1], "GenuineIntel")
    assert cpu_precision("auto") == "float32"
    processor(monkeypatch, PROBES[0], "GenuineIntel")
    assert cpu_precision("auto") == "bfloat16"


def test_torch_without_the_probes_means_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    for probe in PROBES:
        monkeypatch.delattr(torch.cpu, probe, raising=False)
    assert cpu_precision("auto") == "float32"


def test_other_precisions_are_refused() -> None:
    with pytest.raises(ValueError, match="precision must be one of .*'float16'"):
        cpu_precision("float16")


@pytest.mark.parametrize("adapter", ["original", "dualpath"])
@pytest.mark.parametrize(("seed", "shape"), [(0, (32, 64, 64)), (1, (36, 40, 28)), (2, (16, 32, 64))])
def test_logits_of_vit_tiny(adapter: str, seed: int, shape: tuple[int, int, int]) -> None:
    """Products in bfloat16, float32 logits, within 2 % of float32's; a cold gate, where the normalised path counts."""
    torch.manual_seed(seed)
    network = SAM3D(replace(VARIANTS["vit_tiny"], adapter=adapter))
    other = SAM3D(network.config, "bfloat16")
    other.load_state_dict(network.state_dict())
    image, points = torch.randn(1, 1, *shape), torch.tensor([[[3.0, 30.0, 11.0]]])
    products: set[torch.dtype] = set()
    other.encoder.neck_3d[0][0].register_forward_hook(lambda module, given, out: products.add(out.dtype))
    with torch.no_grad():
        expected, logits = network(image, points), other(image, points)
    assert products == {torch.bfloat16}
    assert logits.dtype == torch.float32
    error = (logits - expected).norm() / expected.norm()
    assert 1e-5 < error < 2e-2, error


def test_weights_and_gradients_stay_float32(make_network: Make) -> None:
    network = SAM3D(make_network(adapter="dualpath", checkpointing=True).config, "bfloat16")
    network(torch.randn(1, 1, 16, 32, 16)).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.dtype == parameter.grad.dtype == torch.float32 and parameter.grad.isfinite().all(), name


def test_auto_is_for_inference_alone(make_network: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    processor(monkeypatch, PROBES[0])
    network = SAM3D(make_network().config, "auto")
    products: list[torch.dtype] = []
    network.encoder.neck_3d[0][0].register_forward_hook(lambda module, given, out: products.append(out.dtype))
    network(torch.randn(1, 1, 8, 16, 8))
    with torch.inference_mode():
        network(torch.randn(1, 1, 8, 16, 8))
    assert products == [torch.float32, torch.bfloat16]


def test_trained_convolutions_stay_float32(make_network: Make) -> None:
    """PyTorch's bfloat16 gradients of their weights hold unwritten memory now and then; 1x1x1 are matrix products."""
    network = SAM3D(make_network(adapter="dualpath").config, "bfloat16")
    convolutions = [m for m in network.modules() if isinstance(m, torch.nn.Conv3d) and m.kernel_size != (1, 1, 1)]
    seen: list[torch.dtype] = []
    for module in convolutions:
        module.register_forward_hook(lambda module, given, out: seen.append(out.dtype))
    network(torch.randn(1, 1, 16, 32, 16))
    assert len(seen) > 10 and set(seen) == {torch.float32}


def test_the_callers_autocast_wins(make_network: Make) -> None:
    network = SAM3D(make_network().config, "bfloat16")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert network(torch.randn(1, 1, 8, 16, 8)).dtype == torch.bfloat16


def test_compiles_in_one_graph(make_network: Make) -> None:
    network = SAM3D(make_network().config, "bfloat16")
    image = torch.randn(1, 1, 8, 16, 8)
    torch.compiler.reset()
    with torch.no_grad():
        compiled = torch.compile(network, fullgraph=True, backend="eager")(image)
        # not in parts, so that it rounds elsewhere
        torch.testing.assert_close(compiled, network(image), rtol=0, atol=2e-2)
