"""The one optimizer of all trainers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


def adamw(
    groups: Sequence[Sequence[nn.Parameter]], device: torch.device, lr: float, weight_decay: float
) -> torch.optim.AdamW:
    """AdamW of some groups of parameters, fused on CPUs, where that takes a third of the time.

    PyTorch's (2.14) fused step on CPUs reads gradients as if they lay in memory as their weights do, and does not raise
    the version of weights, by which tables computed from them (``FrozenCache``) notice. Hooks see to both.
    """
    fused = True if device.type == "cpu" else None  # PyTorch chooses elsewhere
    optimizer = torch.optim.AdamW([{"params": group} for group in groups], lr, weight_decay=weight_decay, fused=fused)

    def keep_choice(loaded: torch.optim.Optimizer) -> None:
        """A checkpoint brings that of the device that it was trained on."""
        for group in loaded.param_groups:
            group["fused"] = fused

    optimizer.register_step_pre_hook(_lay_out_gradients)
    optimizer.register_step_post_hook(_raise_versions)
    optimizer.register_load_state_dict_post_hook(keep_choice)
    return optimizer


def _lay_out_gradients(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Gradients in the memory order of their weights; those of ``torch.autograd.grad`` may have another."""
    for parameter in _parameters(optimizer):
        if parameter.grad is not None and parameter.grad.stride() != parameter.stride():
            parameter.grad = torch.empty_like(parameter).copy_(parameter.grad)


def _raise_versions(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    for parameter in _parameters(optimizer):
        torch.autograd.graph.increment_version(parameter)


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
