"""The one optimizer of all trainers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


def adamw(
    groups: Sequence[Sequence[nn.Parameter]], device: torch.device, lr: float, weight_decay: float
) -> torch.optim.AdamW:
    """AdamW of some groups of parameters, fused on CPUs, where that takes a third of the time."""
    fused = True if device.type == "cpu" else None  # PyTorch chooses elsewhere
    optimizer = torch.optim.AdamW([{"params": group} for group in groups], lr, weight_decay=weight_decay, fused=fused)
    optimizer.register_step_post_hook(_raise_versions)
    return optimizer


def _raise_versions(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Tells tables computed from weights (``FrozenCache``) of the step: fused, AdamW (torch 2.14) does not."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            torch.autograd.graph.increment_version(parameter)
