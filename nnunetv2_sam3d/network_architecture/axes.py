"""Where the channels stand: last in tokens, second in what is convolved."""

from __future__ import annotations

from torch import Tensor


def channels_first(tokens: Tensor) -> Tensor:
    """(B, D, H, W, C) -> (B, C, D, H, W), a view."""
    return tokens.movedim(-1, 1)


def channels_last(volume: Tensor) -> Tensor:
    """(B, C, D, H, W) -> (B, D, H, W, C), a view."""
    return volume.movedim(1, -1)
