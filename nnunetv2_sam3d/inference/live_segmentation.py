"""A segmentation that follows the clicks: only what their windows reach is computed and exported anew.

nnU-Net exports whole volumes: it resamples the logits of all classes to the voxels of the image, which takes many
times longer than a click. Linear resampling is local, so that the voxels around the windows can be exported alone, by
the same arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from nnunetv2_sam3d.clicks.click import Click
from nnunetv2_sam3d.inference.click_predictor import ClickPredictor
from nnunetv2_sam3d.inference.local_resampling import labels_of, resampling_of

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
        self._resampling = resampling_of(predictor.plans, predictor.configuration, predictor.spacing, predictor.grid)

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
        labels = labels_of(logits, axes, grid, self._predictor.label_manager)
        place = tuple(
            slice(start + axis.start, start + axis.stop) for start, axis in zip(grid.crop_start, axes, strict=True)
        )
        return place, labels


def _overlap(source: Slices, box: Slices) -> tuple[Slices, Slices]:
    """What two boxes (with channels) share, counted from the first one's corner and from the second one's."""
    inside, there = [slice(None)], [slice(None)]
    for one, other in zip(source[1:], box[1:], strict=True):
        low = max(one.start, other.start)
        high = max(min(one.stop, other.stop), low)
        inside.append(slice(low - one.start, high - one.start))
        there.append(slice(low - other.start, high - other.start))
    return tuple(inside), tuple(there)
