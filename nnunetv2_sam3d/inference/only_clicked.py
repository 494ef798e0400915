"""The structures that were clicked on, out of a whole segmentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from nnunetv2_sam3d.clicks.click import FOREGROUND, Click
from nnunetv2_sam3d.nnunet.labels import find_target

NEAR_MM = 5.0


def only_clicked(
    segmentation: np.ndarray,
    clicks: Sequence[Click],
    labels: Mapping[str, Any],
    spacing_mm: Sequence[float],
    near_mm: float = NEAR_MM,
) -> tuple[np.ndarray, list[Click]]:
    """Of the labels clicked on, the connected components that hold the foreground clicks.

    A region counts as one structure, and its voxels keep their labels. A click that misses its label by a little takes
    the component that is nearest to it; one without a label takes the label that is there. Voxels that share a corner
    are connected.

    Args:
        segmentation: (z, y, x).
        clicks: in voxels of it.
        labels: ``labels`` of ``dataset.json``.
        spacing_mm: (z, y, x).
        near_mm: how far a click may miss.

    Returns:
        the segmentation with background elsewhere, and the foreground clicks that no structure was near to.
    """
    kept = np.zeros(segmentation.shape, bool)
    missed: list[Click] = []
    components: dict[tuple[int, ...], np.ndarray] = {}
    for click in clicks:
        if click.sign != FOREGROUND:
            continue
        values = None if click.label is None else find_target(labels, str(click.label)).labels
        nearest = _nearest(segmentation, click.zyx, values, spacing_mm, near_mm)
        if nearest is None:
            missed.append(click)
            continue
        values = values or (int(segmentation[nearest]),)
        if values not in components:
            components[values] = ndimage.label(np.isin(segmentation, values), np.ones((3, 3, 3)))[0]
        kept |= components[values] == components[values][nearest]
    return np.where(kept, segmentation, 0).astype(segmentation.dtype), missed


def _nearest(
    segmentation: np.ndarray,
    zyx: Sequence[float],
    values: Sequence[int] | None,
    spacing_mm: Sequence[float],
    near_mm: float,
) -> tuple[int, int, int] | None:
    """The voxel of one of the values (of any label by default) whose centre is nearest; ``None`` if none is near."""
    spacing = np.asarray(spacing_mm, float)
    here = np.clip(np.rint(zyx), 0, np.array(segmentation.shape) - 1).astype(int)
    reach = np.ceil(near_mm / spacing).astype(int) + 1
    low, high = np.maximum(here - reach, 0), here + reach + 1
    around = segmentation[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    found = np.argwhere(around > 0 if values is None else np.isin(around, values)) + low
    # a click within a voxel is in it, also if that is longer than what counts as near
    beside = np.maximum(np.abs(found - np.asarray(zyx)) - 0.5, 0)
    distances = np.linalg.norm(beside * spacing, axis=1)
    if not len(found) or distances.min() > near_mm:
        return None
    z, y, x = found[np.lexsort((np.linalg.norm((found - np.asarray(zyx)) * spacing, axis=1), distances))[0]]
    return int(z), int(y), int(x)
