"""What can be computed once is computed once, follows the weights, and nothing grows with the number of steps."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch

from nnunetv2_sam3d.network_architecture import image_encoder as encoder
from nnunetv2_sam3d.network_architecture import stem, windows
from nnunetv2_sam3d.network_architecture.sam3d import SAM3D
from nnunetv2_sam3d.trainers.recipes import DUALPATH, apply_freezing

Make = Callable[..., SAM3D]
PATCH = (36, 8, 16)
TABLES = {
    "kernel": (stem, "channel_kernels"),
    "plane": (encoder, "_plane"),
    "line": (encoder, "_line"),
    "relative": (encoder, "relative_table"),
    "layout": (windows, "make_layout"),
    "prepared": (encoder, "make_layout"),
    "upsampling": (stem, "upsampling_taps"),
}
BLOCKS = 4
BUFFERS = ("attn.lr", "adapter.published_plane")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each table was computed."""
    counted: Counter[str] = Counter()

    def counting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            counted[name] += 1
            return function(*arguments)

        return call

    for name, (module, attribute) in TABLES.items():
        monkeypatch.setattr(module, attribute, counting(name, getattr(module, attribute)))
    windows._cached.cache_clear()
    return counted


def train(network: SAM3D, steps: int) -> None:
    groups = apply_freezing(network, DUALPATH)
    optimizer = torch.optim.AdamW([{"params": group} for group in groups], lr=1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        network(torch.randn(1, 1, *PATCH)).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("prepared", [True, False])
def test_training_computes_frozen_tables_once(make_network: Make, calls: Counter[str], prepared: bool) -> None:
    network = make_network(adapter="dualpath")
    if prepared:
        network.prepare(PATCH)
    train(network, 3)
    assert calls["kernel"] == calls["plane"] == 1  # SAM's patch kernel and positions are frozen
    assert calls["line"] == 3  # depth_embed is trained
    assert calls["relative"] == BLOCKS * (2 + 3)  # rel_pos_h and _w are frozen, rel_pos_d is trained
    assert calls["layout"] + calls["prepared"] == 2  # shifted and unshifted windows, for all blocks and steps


def test_inference_computes_everything_once(make_network: Make, calls: Counter[str]) -> None:
    network, image = make_network(adapter="dualpath").prepare(PATCH), torch.randn(1, 1, *PATCH)
    for _ in range(3):
        with torch.inference_mode():
            network(image)
    assert calls == {"kernel": 1, "plane": 1, "line": 1, "relative": 3 * BLOCKS, "prepared": 2, "upsampling": 3}


def test_tables_follow_the_weights(make_network: Make) -> None:
    """After a training step, another state dict, another grid, another type: always what a fresh network computes."""
    network, image = make_network(adapter="dualpath"), torch.randn(1, 1, *PATCH)

    def check() -> None:
        fresh = SAM3D(network.config).to(network.encoder.pos_embed.dtype)
        fresh.load_state_dict(network.state_dict())
        for size in (PATCH, (16, 8, 12)):
            part = image[:, :, : size[0], : size[1], : size[2]].to(network.encoder.pos_embed.dtype)
            with torch.no_grad():
                assert torch.equal(network(part), fresh(part))

    check()
    train(network, 1)
    check()
    network.load_state_dict(make_network(seed=1, adapter="dualpath").state_dict())
    check()
    network.to(torch.float64)
    check()


def test_gradients_reach_what_inference_has_kept(make_network: Make) -> None:
    network, image = make_network(), torch.randn(1, 1, *PATCH)
    with torch.inference_mode():
        network(image)
    network(image).square().mean().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_nothing_grows_with_the_steps(make_network: Make, checkpointing: bool) -> None:
    network = make_network(adapter="dualpath", checkpointing=checkpointing).prepare(PATCH)

    def alive() -> tuple[int, int]:
        gc.collect()
        tensors = [thing for thing in gc.get_objects() if isinstance(thing, torch.Tensor)]
        return len(tensors), sum(tensor.nbytes for tensor in tensors)

    def work() -> None:
        train(network, 2)
        with torch.inference_mode():
            network(torch.randn(1, 1, *PATCH))
        network.zero_grad()

    work()
    before = alive()
    for _ in range(3):
        work()
    assert alive() == before


def test_state_dict_holds_nothing_of_it(make_network: Make) -> None:
    network = make_network(adapter="dualpath").prepare(PATCH)
    train(network, 1)
    with torch.inference_mode():
        network(torch.randn(1, 1, 16, 16, 16))
    parameters = {name for name, _ in network.named_parameters()}
    others = {f"encoder.blocks.{block}.{name}" for block in range(BLOCKS) for name in BUFFERS}
    assert set(network.state_dict()) == parameters | others
