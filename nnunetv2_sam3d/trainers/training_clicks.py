"""Clicks in the steps of a trainer."""

from __future__ import annotations

from zlib import crc32

import numpy as np
import torch
from torch import Tensor, distributed, nn

from nnunetv2_sam3d.clicks.simulation import Clicks, SimulatedClicks
from nnunetv2_sam3d.network_architecture.sam3d import SAM3D

# names in nnU-Net's log, of Dice losses over the crops of validation that show the target
AUTOMATIC_LOSSES = "val_losses_target_automatic"
CLICKED_LOSSES = "val_losses_target_with_clicks"


def seed_of(fold: int | str, repeat: int = 1) -> int:
    """Seed of the clicks of a fold in a repeat."""
    which = "" if repeat == 1 else f" in repeat {repeat}"
    return crc32(f"clicks of fold {fold}{which}".encode())


class ClickSteps:
    """Gives each step its clicks and keeps what validation says about them.

    Args:
        simulated: draws the clicks.
        rank: of the process.
    """

    def __init__(self, simulated: SimulatedClicks, rank: int = 0) -> None:
        self.simulated = simulated
        self.rank = rank
        self._losses: list[tuple[float, float]] = []
        self.begin(0)

    def begin(self, epoch: int) -> None:
        """Begins an epoch of training or of validation."""
        self._epoch, self._step = epoch, 0
        self._losses.clear()

    def of_training(self, network: SAM3D, data: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Points and signs of the next training step. In automatic steps all entries are padding (sign 0).

        Automatic steps have points, too, because a network under DDP must use every trained parameter in every step.

        Args:
            network: without wrappers; in some steps with signed clicks it predicts once, to be corrected. That is a
                pass of its own, since neither DDP nor torch.compile let a step begin with half a network.
            data: (B, C, D, H, W), on the network's device.
            target: as the loss gets it.
        """
        masks = target.cpu().numpy()
        clicks = self.simulated.for_training(masks, self._epoch, self._step, self.rank)
        if self.simulated.is_corrected(self._epoch, self._step):
            with torch.no_grad():
                logits = network(data, *_tensors(clicks, data.device))
            clicks = self.simulated.corrected(clicks, masks, logits)
        self._step += 1
        return _tensors(clicks, data.device)

    def validate(self, network: SAM3D, loss: nn.Module, data: Tensor, target: Tensor) -> None:
        """Notes the losses of the crops that show the target, without and with clicks.

        Args:
            network: without wrappers.
            loss: of logits and target, within this process.
            data: (B, C, D, H, W), on the network's device.
            target: as the loss gets it, on the network's device.
        """
        clicks = self.simulated.for_validation(target.cpu().numpy(), self._epoch, self._step, self.rank)
        self._step += 1
        shown = clicks.signs.any(1)
        if shown.any():
            points, signs = _tensors(Clicks(clicks.points[shown], clicks.signs[shown]), data.device)
            chosen = torch.from_numpy(shown).to(data.device)
            with torch.no_grad():
                features = network.encode(data[chosen])
                automatic = loss(network.decode(features), target[chosen])
                clicked = loss(network.decode(features, points, signs), target[chosen])
            self._losses.append((automatic.item(), clicked.item()))

    def mean_losses(self, all_processes: bool = False) -> dict[str, float]:
        """Means of this validation by their names in the log, NaN where no crop showed the target."""
        losses = [self._losses]
        if all_processes:
            losses = [[] for _ in range(distributed.get_world_size())]
            distributed.all_gather_object(losses, self._losses)
        pairs = np.array([pair for process in losses for pair in process]).reshape(-1, 2)
        means = pairs.mean(0).tolist() if len(pairs) else [np.nan, np.nan]
        return dict(zip((AUTOMATIC_LOSSES, CLICKED_LOSSES), means, strict=True))


def _tensors(clicks: Clicks, device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(clicks.points).to(device), torch.from_numpy(clicks.signs).to(device)
