"""What bfloat16 on CPUs does to the Dice of a trained model."""

from __future__ import annotations

from dataclasses import replace

import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import Tensor

from nnunetv2_sam3d.network_architecture.config import VARIANTS
from nnunetv2_sam3d.network_architecture.sam3d import SAM3D
from nnunetv2_sam3d.trainers.losses import DiceCELoss

EDGE, STEPS, BATCH, HELD_OUT = 32, 120, 2, 16


def spheres(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noisy volumes (count, 1, D, H, W) with a bright ball in each, and the balls."""
    generator = torch.Generator().manual_seed(seed)
    radius = 5 + 5 * torch.rand(count, 1, 1, 1, generator=generator)
    centre = 10 + (EDGE - 20) * torch.rand(count, 3, generator=generator)
    places = torch.stack(torch.meshgrid(*[torch.arange(EDGE)] * 3, indexing="ij"), -1)
    balls = (places[None] - centre[:, None, None, None]).norm(dim=-1) < radius
    image = 1.5 * balls + torch.randn(balls.shape, generator=generator)
    return image[:, None], balls[:, None]


def dice(network: SAM3D, image: Tensor, balls: Tensor) -> Tensor:
    """Of each volume."""
    with torch.no_grad():
        found = torch.cat([network(volume[None]).argmax(1, keepdim=True) for volume in image]) == 1
    common, sizes = (found & balls).flatten(1).sum(1), found.flatten(1).sum(1) + balls.flatten(1).sum(1)
    return 2 * common / sizes


def test_dice_of_a_trained_model() -> None:
    """Trained in float32, everything in it; 16 volumes that training has not seen."""
    torch.manual_seed(0)
    network = SAM3D(replace(VARIANTS["vit_tiny"], adapter="dualpath"))
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0)
    loss_of = DiceCELoss(LabelManager({"background": 0, "ball": 1}, None), batch_dice=False).train()
    for step in range(STEPS):
        image, balls = spheres(BATCH, 1000 + step)
        loss = loss_of(network(image), balls.float())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    network.eval()
    reduced = SAM3D(network.config, "bfloat16").eval()
    reduced.load_state_dict(network.state_dict())
    image, balls = spheres(HELD_OUT, 0)
    exact, rounded = dice(network, image, balls), dice(reduced, image, balls)
    assert exact.mean() > 0.85, exact
    assert not torch.equal(exact, rounded)  # bfloat16 was at work
    assert abs(exact.mean() - rounded.mean()) < 0.002, (exact, rounded)
