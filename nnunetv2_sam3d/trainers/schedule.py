"""AdamW, and its learning rate's way down."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn
from torch.optim import AdamW, Optimizer

END_FACTOR = 0.01


def adamw(groups: Iterable[Sequence[nn.Parameter]], initial_lr: float, weight_decay: float) -> AdamW:
    """The one optimizer of a recipe's groups.

    With PyTorch's calls for many weights at once, its default on GPUs alone: the same numbers on CPUs, too, without ten
    calls for each weight, for as much memory as the trained weights take, when activations are gone. They raise the
    weights' versions, which its fused calls do not.
    """
    parameters = [{"params": group} for group in groups]
    return AdamW(parameters, lr=initial_lr, weight_decay=weight_decay, foreach=True)


class LinearDecay:
    """From the initial learning rate to a hundredth of it, linearly in the epoch.

    The values are those of ``torch.optim.lr_scheduler.LinearLR(start_factor=1, end_factor=0.01)``. nnU-Net sets the
    epoch itself, ``step(current_epoch)``, which torch's class deprecates.

    Args:
        optimizer: all its groups get the same rate.
        initial_lr: rate at epoch 0.
        epochs: epoch at which the end would be reached.
    """

    def __init__(self, optimizer: Optimizer, initial_lr: float, epochs: int) -> None:
        self.optimizer = optimizer
        self.initial_lr = initial_lr
        self.epochs = epochs
        self.step(0)

    def step(self, epoch: int) -> None:
        """Sets the rate of an epoch."""
        progress = min(epoch / self.epochs, 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = self.initial_lr * (1 + (END_FACTOR - 1) * progress)
