"""Trained models as sessions use them: those that take clicks, and any other, which shows the clicked structure."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from nnunetv2_sam3d.clicks.click import BACKGROUND, Click
from nnunetv2_sam3d.inference.click_predictor import ClickPredictor, click_in_words
from nnunetv2_sam3d.inference.live_segmentation import LiveSegmentation
from nnunetv2_sam3d.inference.only_clicked import only_clicked
from nnunetv2_sam3d.inference.stock_predictor import StockPredictor
from nnunetv2_sam3d.memory.model import GB, available_bytes
from nnunetv2_sam3d.nnunet.labels import Target, foreground

_log = logging.getLogger(__name__)


class VolumeTooLarge(ValueError):
    """A volume whose prediction would not fit into the memory that is free; says how much it needs."""


def click_label(labels: Mapping[str, Any], target: Target) -> str:
    """What a click on a target is called, so that ``find_target`` finds it: its name, or its numbers."""
    named = foreground(labels).get(target.name)
    return target.name if named == target.labels else ",".join(map(str, target.labels))


class ClickModel:
    """A model that was trained with clicks.

    Args:
        predictor: with an image of its own.
        target: what the mask shows.
        only: show the clicked structures alone.
    """

    def __init__(self, predictor: ClickPredictor, target: Target, *, only: bool = False) -> None:
        self._predictor, self._target, self._only = predictor, target, only
        self.channels = predictor.windows.config.in_channels
        self._labels = predictor.dataset_json["labels"]
        self.label = click_label(self._labels, target)
        self._live: LiveSegmentation | None = None

    def set_image(self, image: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
        self._live = None
        check_memory(self._predictor, image.shape, spacing)
        self._predictor.set_image(image, spacing)
        self._live = LiveSegmentation(self._predictor)
        return self._target.mask(self._live.automatic)

    def stop(self) -> None:
        self._predictor.windows.turns.stop()

    def check(self, clicks: Sequence[Click]) -> None:
        self._predictor.check(clicks)

    def mask(self, clicks: Sequence[Click]) -> np.ndarray:
        return self._target.mask(self.segmentation(clicks))

    def segmentation(self, clicks: Sequence[Click]) -> np.ndarray:
        assert self._live is not None  # the session has an image
        if not clicks:
            return self._live.automatic
        segmentation = self._live.with_clicks(clicks)
        if not self._only:
            return segmentation
        kept, missed = only_clicked(segmentation, clicks, self._labels, self._predictor.spacing)
        for click in missed:
            _log.warning("no %s was found near %s", self._target.name, click_in_words(click))
        return kept


class AutomaticModel:
    """A model that knows no clicks: they choose among the structures that it found.

    Args:
        predictor: with an image of its own.
        channels: of an image.
        target: what the mask shows.
    """

    def __init__(self, predictor: ClickPredictor | StockPredictor, channels: int, target: Target) -> None:
        self._predictor, self._target, self.channels = predictor, target, channels
        self._labels = predictor.dataset_json["labels"]
        self.label = click_label(self._labels, target)
        self._segmentation: np.ndarray | None = None

    def set_image(self, image: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
        self._segmentation = None
        check_memory(self._predictor, image.shape, spacing)
        if isinstance(self._predictor, ClickPredictor):
            self._predictor.set_image(image, spacing)
            self._segmentation = self._predictor.predict()
        else:
            self._segmentation = self._predictor.predict(image, spacing)
        return self._target.mask(self._segmentation)

    def stop(self) -> None:
        own = self._predictor
        (own.windows if isinstance(own, ClickPredictor) else own).turns.stop()

    def check(self, clicks: Sequence[Click]) -> None:
        if any(click.sign == BACKGROUND for click in clicks):
            raise ValueError(
                "the model was trained without clicks: a click shows the structure that it found there, and none can "
                "be taken away. Click on structures only, or serve a model that was trained with clicks"
            )

    def mask(self, clicks: Sequence[Click]) -> np.ndarray:
        return self._target.mask(self.segmentation(clicks))

    def segmentation(self, clicks: Sequence[Click]) -> np.ndarray:
        assert self._segmentation is not None  # the session has an image
        if not clicks:
            return self._segmentation
        kept, missed = only_clicked(self._segmentation, clicks, self._labels, self._predictor.spacing)
        if clicks[-1] in missed:
            raise ValueError(f"the model found no {self._target.name} near {click_in_words(clicks[-1])}")
        return kept


def check_memory(predictor: ClickPredictor | StockPredictor, shape: Sequence[int], spacing: Sequence[float]) -> None:
    """Refuses a volume before memory is taken for it.

    Args:
        predictor: which resamples volumes to its own spacing.
        shape: (C, z, y, x).
        spacing: mm, (z, y, x); with a wrong one a small volume may become huge.

    Raises:
        VolumeTooLarge: if the prediction would not fit.
        ValueError: for a volume that is thinner than a voxel of the model.
    """
    wanted = predictor.configuration.spacing
    lengths = [shape[1 + axis] * spacing[axis] for axis in predictor.plans.transpose_forward][-len(wanted) :]
    grid = [round(length / target) for length, target in zip(lengths, wanted, strict=True)]
    if min(grid) < 1:
        raise ValueError(
            f"the volume is thinner than a voxel of the model: {list(shape[1:])} voxels of {list(spacing)} mm, those "
            f"of the model are {[round(float(length), 3) for length in wanted]} mm. Is the spacing right?"
        )
    if len(wanted) == 2:  # each slice for itself
        grid.append(shape[1 + predictor.plans.transpose_forward[0]])
    cells, voxels = prod(grid), prod(shape[1:])
    image = (16 * cells + 8 * voxels) * shape[0]  # resampled in double precision
    if isinstance(predictor, ClickPredictor):
        prediction = predictor.prediction_bytes(cells, voxels)
    else:  # logits in half precision, and twice while they are exported
        prediction = (12 * cells + 4 * voxels) * predictor.label_manager.num_segmentation_heads
    needed = image + prediction
    free = available_bytes()
    if free is not None and needed > free:
        raise VolumeTooLarge(
            f"the volume would have {' x '.join(map(str, grid))} voxels at the model's voxel size, which takes about "
            f"{needed / GB:.3g} GB of memory; {free / GB:.3g} GB are free. Crop it, or check its spacing, "
            f"{list(spacing)} mm"
        )
