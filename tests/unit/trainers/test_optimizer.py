"""The trainers' AdamW is PyTorch's, and tables computed from weights notice its steps."""

from __future__ import annotations

import pytest
import torch

from nnunetv2_sam3d.network_architecture.frozen_cache import FrozenCache
from nnunetv2_sam3d.trainers.optimizer import adamw


def test_tables_follow_its_steps() -> None:
    weight, frozen = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    optimizer, of_weight, of_frozen = adamw([[weight]], torch.device("cpu"), 0.1, 0.0), FrozenCache(), FrozenCache()
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []
    for _ in range(2):
        with torch.no_grad():
            kept.append((of_weight(lambda: weight * 2, weight), of_frozen(lambda: frozen * 2, frozen)))
        weight.grad = torch.ones(3)
        optimizer.step()
    assert torch.allclose(kept[1][0], 2 * torch.tensor(0.9), atol=1e-5)
    assert kept[0][1] is kept[1][1]


@pytest.mark.parametrize("order", ["as the weight", "transposed", "expanded"])
def test_same_steps_as_the_plain_one(order: str) -> None:
    """Whatever order a gradient has in memory; ``torch.autograd.grad`` returns any."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(3, 5, generator=generator)
    weights = [torch.nn.Parameter(start.clone()) for _ in range(2)]
    mine = adamw([[weights[0]]], torch.device("cpu"), 1e-2, 0.1)
    plain = torch.optim.AdamW([weights[1]], lr=1e-2, weight_decay=0.1, foreach=False, fused=False)
    for _ in range(5):
        gradient = torch.randn(3, 5, generator=generator)
        if order == "transposed":
            gradient = gradient.t().contiguous().t()
        elif order == "expanded":
            gradient = gradient[:1].expand(3, 5)
        for weight, optimizer in zip(weights, (mine, plain), strict=True):
            weight.grad = gradient
            optimizer.step()
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-6, atol=1e-6)


def test_a_checkpoint_of_the_plain_one_goes_on() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    plain = torch.optim.AdamW([weight], lr=1e-2)
    weight.grad = torch.ones(3)
    plain.step()
    mine = adamw([[weight]], torch.device("cpu"), 1e-2, 0.0)
    mine.load_state_dict(plain.state_dict())
    assert mine.param_groups[0]["fused"] is True
    version = weight._version
    mine.step()
    assert weight._version > version and mine.state[weight]["step"] == 2
