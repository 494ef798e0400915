"""nnU-Net's linear resampling of logits, of parts of a volume: the same values by the same arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from nnunetv2.preprocessing.resampling.default_resampling import (
    determine_do_sep_z_and_axis,
    resample_data_or_seg_to_shape,
)
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor

from nnunetv2_sam3d.clicks.geometry import PreprocessedGrid


@dataclass(frozen=True)
class Part:
    """Voxels ``start`` to ``stop`` of one axis of the image, and the grid's from which they are resampled.

    Attributes:
        places: of the voxels in the grid, in voxels of it.
        linear: or the nearest.
        first: of the grid.
        last: of the grid, the one behind it.
    """

    start: int
    stop: int
    places: np.ndarray
    linear: bool
    first: int
    last: int

    def resample(self, values: np.ndarray, axis: int) -> np.ndarray:
        """Takes ``first`` to ``last`` of the grid along an axis, gives ``start`` to ``stop`` of the image."""
        low = np.floor(self.places if self.linear else self.places + 0.5).astype(int)
        share = self.places - low
        lower = values.take(low - self.first, axis)
        if not self.linear or not share.any():
            return lower
        upper = values.take(np.minimum(low + 1, self.last - 1) - self.first, axis)
        share = share.reshape([-1 if number == axis else 1 for number in range(values.ndim)])
        return lower * (1 - share) + upper * share


@dataclass(frozen=True)
class Axis:
    """How one axis of the grid, ``old`` voxels long, is resampled to ``new`` voxels of the image."""

    old: int
    new: int
    linear: bool

    @property
    def places(self) -> np.ndarray:
        """The voxels of the image, in voxels of the grid."""
        places = self.old / self.new * (np.arange(self.new) + 0.5) - 0.5
        return np.clip(places, 0, self.old - 1)  # beyond the outer centres the edge goes on

    def part(self, start: int, stop: int) -> Part:
        """Some voxels of the image."""
        found = self.places[start:stop]
        return Part(start, stop, found, self.linear, int(found[0]), min(int(found[-1]) + 2, self.old))

    def reached(self, window: slice) -> Part | None:
        """What a window of the grid can reach: voxels between its first neighbour and its last one."""
        places = self.places
        near = np.flatnonzero((places > window.start - 1) & (places < window.stop))
        # none: the voxels of the image are longer than the window
        return self.part(int(near[0]), int(near[-1]) + 1) if len(near) else None


def resampling_of(
    plans: PlansManager, configuration: ConfigurationManager, spacing_mm: Sequence[float], grid: PreprocessedGrid
) -> list[Axis] | None:
    """How nnU-Net resamples the logits along each axis; ``None`` where it is not local, or not known.

    Args:
        plans: of the model.
        configuration: of the model.
        spacing_mm: of the image, (z, y, x).
        grid: of the preprocessed image.
    """
    options = _local_options(configuration)
    if options is None:
        return None
    threshold = {name: options[name] for name in ("separate_z_anisotropy_threshold",) if name in options}
    transposed = [spacing_mm[axis] for axis in plans.transpose_forward]
    separate, stacked = determine_do_sep_z_and_axis(
        options["force_separate_z"], configuration.spacing, transposed, **threshold
    )
    return [
        Axis(old, new, not separate or axis != stacked)
        for axis, (old, new) in enumerate(zip(grid.shape, grid.cropped_shape, strict=True))
    ]


def is_local(configuration: ConfigurationManager) -> bool:
    """Whether a voxel's labels follow from the logits next to it, so that an image can be exported by parts."""
    return _local_options(configuration) is not None


def _local_options(configuration: ConfigurationManager) -> dict[str, Any] | None:
    """How nnU-Net's own function resamples logits; ``None`` if another one does, or not linearly."""
    function = configuration.resampling_fn_probabilities
    if not isinstance(function, partial) or function.func is not resample_data_or_seg_to_shape:
        return None
    options = {"order": 3, "order_z": 0, "force_separate_z": False, "is_seg": False} | function.keywords
    return options if options["order"] == 1 and options["order_z"] == 0 and not options["is_seg"] else None


def labels_of(logits: Tensor, parts: Sequence[Part], grid: PreprocessedGrid, labels: LabelManager) -> np.ndarray:
    """The labels of a box of the image, by nnU-Net's arithmetic.

    Args:
        logits: (classes, D, H, W) of the grid, from ``first`` to ``last`` of each axis' part.
        parts: of the axes.
        grid: of the preprocessed image.
        labels: nnU-Net's.

    Returns:
        (D, H, W), transposed as the grid, from ``start`` to ``stop`` of each axis' part.
    """
    kept = logits.numpy().dtype
    # as nnU-Net: resampled in double precision, kept in the logits' own
    values = logits.numpy() if grid.shape == grid.cropped_shape else logits.numpy().astype(float)
    for number, part in enumerate(parts, 1):
        values = part.resample(values, number)
    return np.asarray(labels.convert_logits_to_segmentation(values.astype(kept, copy=False)))
