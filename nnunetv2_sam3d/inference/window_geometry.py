"""Where the windows of clicks lie, and how they fade into what surrounds them: pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import floor

import torch
from torch import Tensor

Window = tuple[int, int, int]
"""First voxel (z, y, x) of a window; its size is the patch's."""


def place_windows(points: Tensor, size: Sequence[int], patch_size: Sequence[int]) -> list[Window]:
    """Windows around clicks, in the order of the clicks: more clicks never move the windows of earlier ones.

    A click opens a window centred on it, moved into the volume where it would leave it, unless an earlier window holds
    it well inside: at least a quarter of the patch from its border, where that is not the volume's own.

    Args:
        points: (N, 3), (z, y, x) in voxels of the volume.
        size: D, H, W of the volume, nowhere smaller than the patch.
        patch_size: D, H, W.
    """
    windows: list[Window] = []
    for point in points.tolist():
        if not any(_well_inside(point, window, size, patch_size) for window in windows):
            windows.append(_centred(point, size, patch_size))
    return windows


def clicks_inside(points: Tensor, window: Window, patch_size: Sequence[int]) -> Tensor:
    """Which of the points (N, 3) lie in a window, as bool (N,)."""
    start = torch.tensor(window, dtype=points.dtype, device=points.device)
    end = start + torch.tensor(patch_size, dtype=points.dtype, device=points.device)
    return ((points >= start - 0.5) & (points <= end - 0.5)).all(1)


@lru_cache(maxsize=8)
def window_weight(at_start: tuple[bool, ...], at_end: tuple[bool, ...], patch_size: tuple[int, ...]) -> Tensor:
    """How much a prompted window counts against what surrounds it.

    1 inside, falling smoothly over the outer quarter towards the border; the first voxel beyond it would have 0.

    Args:
        at_start: for each axis, whether the window begins where the volume does; it does not fall there.
        at_end: for each axis, whether it ends where the volume does.
        patch_size: D, H, W.

    Returns:
        patch_size, float32, everywhere above 0 and at most 1
    """
    weight = torch.ones(patch_size)
    for axis, (length, start, end) in enumerate(zip(patch_size, at_start, at_end, strict=True)):
        margin = length // 4
        ramp = (torch.arange(length) + 1.0) / (margin + 1)
        profile = torch.ones(length)
        for distance in [ramp] * (not start) + [ramp.flip(0)] * (not end):
            t = distance.clamp(max=1)
            profile = profile * t * t * (3 - 2 * t)
        weight = weight * profile.view([-1 if other == axis else 1 for other in range(3)])
    return weight


def borders(window: Window, size: Sequence[int], patch_size: Sequence[int]) -> tuple[tuple[bool, ...], ...]:
    """For each axis, whether a window begins where the volume does, and whether it ends where the volume does."""
    at_start = tuple(start == 0 for start in window)
    return at_start, tuple(start + patch == end for start, patch, end in zip(window, patch_size, size, strict=True))


def _well_inside(point: Sequence[float], window: Window, size: Sequence[int], patch_size: Sequence[int]) -> bool:
    at_start, at_end = borders(window, size, patch_size)
    return all(
        (free_start or place >= start + patch / 4)
        and (free_end or place <= start + patch - 1 - patch / 4)
        and start - 0.5 <= place <= start + patch - 0.5
        for place, start, patch, free_start, free_end in zip(point, window, patch_size, at_start, at_end, strict=True)
    )


def _centred(point: Sequence[float], size: Sequence[int], patch_size: Sequence[int]) -> Window:
    z, y, x = (
        min(max(floor(place + 0.5) - patch // 2, 0), length - patch)
        for place, length, patch in zip(point, size, patch_size, strict=True)
    )
    return z, y, x
