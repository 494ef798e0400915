"""Where the clicks are, told to every tap at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nnunetv2_sam3d.network_architecture.config import TAPS
from nnunetv2_sam3d.network_architecture.layers import channels_first

SIGMAS = (1.0, 2.0, 4.0)  # tokens
SIGNS = (1, -1)
GAIN = 8.0  # AdamW moves all weights at one pace; these begin at zero and have far to go


class ClickMaps3d(nn.Module):
    """Adds to each tap what a linear layer makes of Gaussians around the clicks.

    The reference's clicks reach the image only through its ten global queries, which can say what was clicked on but
    hardly where. The mask decoder convolves each tap before it joins them, so from the taps a click's place meets the
    features of its neighbourhood. Goes beyond the reference: the layer is zero at first, and without clicks it adds
    nothing whatever it has learned, since it has no bias.

    Args:
        width: channels of the taps.

    Shape:
        taps: four of (B, C, d, h, w), points: (B, N, 3) in (z, y, x) voxels of an image of ``image_size``,
        signs: (B, N), 1 for foreground, -1 for background, 0 for no click, ``None`` for foreground alone -> like taps
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.to_taps = nn.Linear(len(SIGNS) * len(SIGMAS), TAPS * width, bias=False)
        nn.init.zeros_(self.to_taps.weight)

    def forward(
        self, taps: Sequence[Tensor], points: Tensor, image_size: Sequence[int], signs: Tensor | None = None
    ) -> list[Tensor]:
        maps = click_maps(points, image_size, taps[0].shape[2:], signs)
        added = channels_first(self.to_taps(GAIN * maps)).chunk(TAPS, 1)
        return [tap + more.to(tap.dtype) for tap, more in zip(taps, added, strict=True)]


def click_maps(points: Tensor, image_size: Sequence[int], grid: Sequence[int], signs: Tensor | None = None) -> Tensor:
    """Gaussians around the clicks, the highest where they overlap.

    Args:
        points: (B, N, 3) as (z, y, x) in voxels of the image, voxel centre = integer.
        image_size: voxels of the image along D, H, W.
        grid: tokens over the whole image (d, h, w).
        signs: (B, N), see :class:`ClickMaps3d`.

    Returns:
        (B, d, h, w, 6): foreground clicks at each of ``SIGMAS``, then background clicks; 1 at a click, 0 everywhere
        without any.
    """
    size = torch.tensor([tuple(image_size), tuple(grid)], dtype=torch.float32, device=points.device)
    places = (points.float() + 0.5) * (size[1] / size[0]) - 0.5  # in tokens, token centre = integer
    along = [
        (torch.arange(length, device=points.device) - places[..., axis, None]) ** 2 for axis, length in enumerate(grid)
    ]
    squared = along[0][..., None, None] + along[1][..., None, :, None] + along[2][..., None, None, :]  # (B, N, d, h, w)
    signs = torch.ones(points.shape[:2], device=points.device) if signs is None else signs
    maps = []
    for sign in SIGNS:
        others = (signs != sign)[..., None, None, None]
        none = squared.new_full((len(points), 1, *grid), torch.inf)  # also where there are no points at all
        nearest = torch.cat([squared.masked_fill(others, torch.inf), none], 1).amin(1)
        maps += [torch.exp(-nearest / (2 * sigma**2)) for sigma in SIGMAS]
    return torch.stack(maps, -1)
