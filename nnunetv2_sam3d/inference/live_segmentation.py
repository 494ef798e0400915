"""A segmentation that follows the clicks: only what their windows reach is computed and exported anew.

nnU-Net exports whole volumes: it resamples the logits of all classes to the voxels of the image, which takes many
times longer than a click. Linear resampling is local, so that the voxels around the windows can be exported alone, by
the same arithmetic.
"""

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
from torch import Tensor

from nnunetv2_sam3d.clicks.click import Click
from nnunetv2_sam3d.inference.click_predictor import ClickPredictor

Slices = tuple[slice, ...]


class LiveSegmentation:
    """The segmentation of a predictor's image, which equals what the predictor gives with the same clicks.

    Args:
        predictor: with an image set. It is predicted without clicks at once.
    """

    def __init__(self, predictor: ClickPredictor) -> None:
        self._predictor = predictor
        self._automatic_logits = predictor.logits()
        self.automatic = predictor.segmentation(self._automatic_logits)
        self._current = self.automatic.copy()
        self._touched: list[Slices] = []
        self._resampling = _resampling_of(predictor)

    def with_clicks(self, clicks: Sequence[Click]) -> np.ndarray:
        """The segmentation with these clicks and no earlier ones.

        Args:
            clicks: at least one; arguments and errors as in
                :meth:`~nnunetv2_sam3d.inference.click_predictor.ClickPredictor.predict`.

        Returns:
            labels of ``dataset.json``, (z, y, x); the next call changes the array.
        """
        if self._resampling is None:
            self._current[...] = self._predictor.segmentation(self._predictor.logits(clicks))
            return self._current
        parts = self._predictor.window_logits(clicks)
        # in nnU-Net's order of axes, as the logits
        current, automatic = (
            each.transpose(self._predictor.plans.transpose_forward) for each in (self._current, self.automatic)
        )
        for place in self._touched:
            current[place] = automatic[place]
        self._touched = []
        for box, _ in parts:
            if exported := self._exported(box, parts):
                place, current[place] = exported
                self._touched.append(place)
        return self._current

    def _exported(self, box: Slices, parts: Sequence[tuple[Slices, Tensor]]) -> tuple[Slices, np.ndarray] | None:
        """The voxels of the image, transposed, that a window's logits reach, and the labels there; ``None`` if none."""
        assert self._resampling is not None
        grid = self._predictor.grid
        reached = [axis.reached(window) for axis, window in zip(self._resampling, box[1:], strict=True)]
        axes = [axis for axis in reached if axis is not None]
        if len(axes) < len(reached):
            return None
        source = (slice(None), *(slice(axis.first, axis.last) for axis in axes))
        logits = self._automatic_logits[source].clone()
        for other, part in parts:
            inside, there = _overlap(source, other)
            logits[inside] = part[there]
        kept = logits.numpy().dtype
        # as nnU-Net: resampled in double precision, kept in the logits' own
        values = logits.numpy() if grid.shape == grid.cropped_shape else logits.numpy().astype(float)
        for number, axis in enumerate(axes, 1):
            values = axis.resample(values, number)
        labels: Any = self._predictor.label_manager.convert_logits_to_segmentation(values.astype(kept, copy=False))
        place = tuple(
            slice(start + axis.start, start + axis.stop) for start, axis in zip(grid.crop_start, axes, strict=True)
        )
        return place, np.asarray(labels)


@dataclass(frozen=True)
class _Reached:
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
class _Axis:
    """How one axis of the grid, ``old`` voxels long, is resampled to ``new`` voxels of the image."""

    old: int
    new: int
    linear: bool

    def reached(self, window: slice) -> _Reached | None:
        """What a window of the grid can reach: voxels between its first neighbour and its last one."""
        places = self.old / self.new * (np.arange(self.new) + 0.5) - 0.5
        places = np.clip(places, 0, self.old - 1)  # beyond the outer centres the edge goes on
        near = np.flatnonzero((places > window.start - 1) & (places < window.stop))
        if not len(near):  # the voxels of the image are longer than the window
            return None
        start, stop = int(near[0]), int(near[-1]) + 1
        found = places[start:stop]
        return _Reached(start, stop, found, self.linear, int(found[0]), min(int(found[-1]) + 2, self.old))


def _resampling_of(predictor: ClickPredictor) -> list[_Axis] | None:
    """How nnU-Net resamples the logits along each axis; ``None`` where it is not local, or not known."""
    function = predictor.configuration.resampling_fn_probabilities
    if not isinstance(function, partial) or function.func is not resample_data_or_seg_to_shape:
        return None
    options = {"order": 3, "order_z": 0, "force_separate_z": False, "is_seg": False} | function.keywords
    if options["order"] != 1 or options["order_z"] != 0 or options["is_seg"]:
        return None
    threshold = {name: options[name] for name in ("separate_z_anisotropy_threshold",) if name in options}
    spacing = [predictor.spacing[axis] for axis in predictor.plans.transpose_forward]
    separate, stacked = determine_do_sep_z_and_axis(
        options["force_separate_z"], predictor.configuration.spacing, spacing, **threshold
    )
    grid = predictor.grid
    return [
        _Axis(old, new, not separate or axis != stacked)
        for axis, (old, new) in enumerate(zip(grid.shape, grid.cropped_shape, strict=True))
    ]


def _overlap(source: Slices, box: Slices) -> tuple[Slices, Slices]:
    """What two boxes (with channels) share, counted from the first one's corner and from the second one's."""
    inside, there = [slice(None)], [slice(None)]
    for one, other in zip(source[1:], box[1:], strict=True):
        low = max(one.start, other.start)
        high = max(min(one.stop, other.stop), low)
        inside.append(slice(low - one.start, high - one.start))
        there.append(slice(low - other.start, high - other.start))
    return tuple(inside), tuple(there)
