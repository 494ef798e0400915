"""What only a GPU shows: `python -m pytest -m gpu --run-slow`. Written without one at hand."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nnunetv2_sam3d.network_architecture.sam3d import SAM3D

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
SHAPE = (24, 20, 28)


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products in float32, not in TF32."""
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("adapter", ["original", "dualpath", "dualpath_conv", "dualpath_fft"])
def test_logits_and_gradients_are_the_cpus(adapter: str, make_network: Callable[..., SAM3D]) -> None:
    network = make_network(adapter=adapter).prepare(SHAPE)
    image = torch.randn(1, 1, *SHAPE)
    results = []
    for device in ("cpu", "cuda"):
        copy = make_network(adapter=adapter).prepare(SHAPE)
        copy.load_state_dict(network.state_dict())
        logits = copy.to(device)(image.to(device))
        logits.square().mean().backward()
        gradients = {name: p.grad.cpu() for name, p in copy.named_parameters() if p.grad is not None}
        results.append((logits.detach().cpu(), gradients))
    (ours, gradients), (theirs, others) = results
    assert (ours - theirs).norm() < 1e-4 * ours.norm()
    assert set(gradients) == set(others)
    for name, gradient in gradients.items():
        assert (gradient - others[name]).norm() < 1e-3 * gradient.norm() + 1e-6, name


@pytest.mark.parametrize("adapter", ["original", "dualpath", "dualpath_conv"])
def test_compiles_without_graph_breaks(adapter: str, make_network: Callable[..., SAM3D]) -> None:
    network = make_network(adapter=adapter).prepare(SHAPE).cuda()
    image = torch.randn(1, 1, *SHAPE, device="cuda")
    expected = network(image)
    compiled = torch.compile(network, fullgraph=True)(image)
    assert (compiled - expected).norm() < 1e-2 * expected.norm()


@pytest.mark.slow
def test_faster_and_smaller_than_the_plain_form(tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    subprocess.run(
        [
            str(Path(sys.executable).parent / "nnUNetv2_sam3d"), "benchmark", "--device", "cuda", "--what", "step",
            "--form", "ours", "plain", "--precision", "float16", "--repeats", "3", "--json", str(file),
        ],
        check=True,
    )  # fmt: skip
    ours, plain = (
        next(record for record in json.loads(file.read_text())["records"] if record["form"] == form)
        for form in ("ours", "plain")
    )
    assert plain["seconds"] > 6 * ours["seconds"]
    assert ours["peak_cuda_bytes"] < plain["peak_cuda_bytes"] / 3
