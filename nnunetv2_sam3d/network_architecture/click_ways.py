"""How far every voxel is from the clicks if only changes of the image count."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunetv2_sam3d.network_architecture.click_maps import SIGNS, places_on_grid

STEP = 0.02  # what a step costs where the image is constant, in its normalised grey values
ROUNDS = 4
UNREACHED = 1e4


def cheapest_ways(
    image: Tensor, points: Tensor, image_size: Sequence[int], signs: Tensor, rounds: int = ROUNDS
) -> Tensor:
    """The cost of the cheapest way from a click to each voxel, for foreground and for background clicks.

    A way goes from voxel to neighbouring voxel along the axes; a step costs the difference of their grey values (of
    the image's means over 3x3x3 voxels) and ``STEP``. Swept along each axis, forwards and backwards, ``rounds`` times:
    ways with more turns than that may be found too dear.

    Args:
        image: (B, 1, D, H, W), normalised.
        points: (B, N, 3) as (z, y, x) in voxels of an image of ``image_size``.
        image_size: the image's size in which the points are given.
        signs: (B, N), 1, -1, or 0 for no click.

    Returns:
        (B, 2, D, H, W), foreground first; ``UNREACHED`` or more without any click of the sign.
    """
    gray = F.avg_pool3d(F.pad(image.float(), (1,) * 6, mode="replicate"), 3, 1)
    grid = gray.shape[2:]
    last = torch.tensor([length - 1 for length in grid], device=points.device)
    z, y, x = places_on_grid(points, image_size, grid).round().long().clamp_min(0).minimum(last).unbind(-1)
    index = ((z * grid[1] + y) * grid[2] + x)[:, None].expand(-1, len(SIGNS), -1)
    start = torch.stack([torch.where(signs == sign, 0.0, UNREACHED) for sign in SIGNS], 1).to(gray)
    costs = gray.new_full((len(gray), len(SIGNS), grid.numel()), UNREACHED)
    costs = costs.scatter_reduce(2, index, start, "amin").unflatten(2, grid)
    steps = [gray.diff(dim=axis).abs() + STEP for axis in (2, 3, 4)]
    for _ in range(rounds):
        for axis, step in zip((2, 3, 4), steps, strict=True):
            costs = _swept(costs, step, axis)
    return costs


def _swept(costs: Tensor, step: Tensor, axis: int) -> Tensor:
    """Ways along one axis, in both directions."""
    slices, between = list(costs.unbind(axis)), step.unbind(axis)
    for place in range(1, len(slices)):
        slices[place] = torch.minimum(slices[place], slices[place - 1] + between[place - 1])
    for place in reversed(range(len(slices) - 1)):
        slices[place] = torch.minimum(slices[place], slices[place + 1] + between[place])
    return torch.stack(slices, axis)
