"""Small layers that several parts share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MLP(nn.Module):
    """Two linear layers around an activation.

    Shape:
        x: (..., C) -> (..., C)
    """

    def __init__(self, width: int, hidden: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.lin1 = nn.Linear(width, hidden)
        self.lin2 = nn.Linear(hidden, width)
        self.act = activation()

    def forward(self, x: Tensor) -> Tensor:
        return self.lin2(self.act(self.lin1(x)))


class ChannelLayerNorm3d(nn.Module):
    """LayerNorm over the channels of a channels-first volume (SAM's LayerNorm2d, lifted).

    Shape:
        x: (B, C, D, H, W) -> (B, C, D, H, W)
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x.movedim(1, -1), self.weight.shape, self.weight, self.bias, self.eps)
        return x.movedim(-1, 1)


def channels_first(tokens: Tensor) -> Tensor:
    """(B, D, H, W, C) -> (B, C, D, H, W), a view."""
    return tokens.movedim(-1, 1)


def channels_last(volume: Tensor) -> Tensor:
    """(B, C, D, H, W) -> (B, D, H, W, C), a view."""
    return volume.movedim(1, -1)
