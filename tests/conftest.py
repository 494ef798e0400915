"""What every test gets: options, isolation from the machine, small networks and checkpoints made from them."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nnunetv2_sam3d.network_architecture.config import SAM3DConfig
from nnunetv2_sam3d.network_architecture.sam3d import SAM3D

PROJECT = Path(__file__).resolve().parents[1]
SHARED = PROJECT.parent / "shared"

# The smallest network that has everything: both table lengths, shifted and unshifted blocks, all four taps.
SMALL: dict[str, Any] = {
    "embed_dim": 32,
    "depth": 4,
    "num_heads": 2,
    "global_attn_indexes": (1, 3),
    "out_channels": 16,
    "decoder_channels": 8,
    "prompt_mlp_dim": 32,
    "position_grid": 4,
}


def pytest_sessionstart() -> None:
    # Shells start background jobs with Ctrl-C ignored, which the commands under test would inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):  # each its share of the cores
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(workers)))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-slow", action="store_true", help="run the tests that take minutes, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--run-slow"):
        return
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="takes minutes; run with --run-slow"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With ``-n``, one process runs a file's tests, and one those of integration/: fixtures and models are made once.

    Not by --dist loadgroup, whose groups pytest 9.2 loses.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::")[0]
            return "integration" if "/integration/" in file else file

    return ByFile(config, log)


@pytest.fixture(autouse=True)
def _isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the weights that this machine's user has, or leaves any for the next one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg-cache"))
    monkeypatch.delenv("nnUNet_sam_checkpoint", raising=False)


@pytest.fixture(autouse=True)
def _imported() -> None:
    """Modules that import others when they are asked for their file do so now, and not while nnU-Net asks them.

    Some of transformers, which other tests import; nnU-Net's search for a trainer would fail as sys.modules grows.
    """
    for module in list(sys.modules.values()):
        with contextlib.suppress(ImportError):
            getattr(module, "__file__", None)


@pytest.fixture
def nnunet_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with nnU-Net's three folders raw, preprocessed and results, of which none exists yet."""
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    return tmp_path


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder beside the project with the golden numbers and development data, which is not committed."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is absent: the golden numbers and development data are not part of the repository")
    return SHARED


@pytest.fixture(scope="session")
def make_network() -> Callable[..., SAM3D]:
    """A function that builds a small network in which no weight has a value that hides an error."""

    def make(seed: int = 0, **sizes: Any) -> SAM3D:
        torch.manual_seed(seed)
        network = SAM3D(SAM3DConfig(**(SMALL | sizes)))
        with torch.no_grad():
            for name, value in network.state_dict().items():
                if name.endswith(".attn.lr"):
                    value.fill_(0.7)  # one in every file seen, but a weight like any other
                elif not name.endswith(".published_plane"):  # which plane, not a weight
                    value.add_(torch.randn_like(value), alpha=0.5 if ".rel_pos_" in name else 0.05)
        return network.eval()

    return make


@pytest.fixture
def reference_content() -> Callable[[SAM3D], dict[str, Any]]:
    """A function that returns what a 3DSAM-adapter ``best.pth.tar`` with a network's weights would hold."""
    return _reference_content


def _reference_content(network: SAM3D) -> dict[str, Any]:
    encoder: dict[str, Tensor] = {}
    decoder: dict[str, Tensor] = {}
    prompt: dict[str, Tensor] = {"positional_encoding_gaussian_matrix": torch.randn(3, 8)}
    for name, tensor in network.state_dict().items():
        part, key = name.split(".", 1)
        if tensor.ndim == 5:
            tensor = tensor.permute(0, 1, 3, 4, 2).contiguous()  # (D, H, W) -> the reference's (H, W, D)
        if part == "encoder":
            encoder[key.removeprefix("stem.")] = tensor
        elif part == "prompt_encoder":
            prompt["transformer." + key.replace(".cross_attn.", ".cross_attn_image_to_token.")] = tensor
            if ".cross_attn." in key:
                prompt["transformer." + key.replace(".cross_attn.", ".cross_attn_token_to_image.")] = -tensor
        else:
            owner, number, rest = key.split(".", 2)
            owner = {"heads": f"mlahead.head{int(number) + 2}", "fuse": f"cls.{number}", "seg_layers": "cls.3"}[owner]
            decoder[f"{owner}.{rest}"] = tensor
    for block in range(0, network.config.depth, 2):
        encoder[f"blocks.{block}.attn_mask"] = torch.full((8, 4, 4), -100.0)
    optimizer = {
        "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.randn(4)}},
        "param_groups": [{"lr": 4e-4, "betas": (0.9, 0.999), "params": [0]}],
    }
    content = {
        "epoch": 7,
        "best_val_loss": np.float64(0.4321),
        "encoder_dict": encoder,
        "decoder_dict": decoder,
        "encoder_opt": optimizer,
        "feature_opt": optimizer,
        "decoder_opt": optimizer,
    }
    if network.prompt_encoder is not None:  # four are stored, the last one counts
        unused = [{key: torch.randn_like(tensor) for key, tensor in prompt.items()} for _ in range(3)]
        content["feature_dict"] = [*unused, prompt]
    return content
