"""Trained models as sessions use them: those that take clicks, and any other, which shows the clicked structure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nnunetv2_sam3d.clicks.click import BACKGROUND, Click
from nnunetv2_sam3d.inference.click_predictor import ClickPredictor, describe
from nnunetv2_sam3d.inference.only_clicked import only_clicked
from nnunetv2_sam3d.inference.stock_predictor import StockPredictor
from nnunetv2_sam3d.nnunet.labels import Target, foreground


def click_label(labels: dict[str, Any], target: Target) -> str:
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

    def set_image(self, image: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
        self._predictor.set_image(image, spacing)
        return self._target.mask(self._predictor.predict())

    def check(self, clicks: Sequence[Click]) -> None:
        self._predictor.check(clicks)

    def mask(self, clicks: Sequence[Click]) -> np.ndarray:
        return self._target.mask(self._predictor.predict(clicks, only=self._only))


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
        if isinstance(self._predictor, ClickPredictor):
            self._predictor.set_image(image, spacing)
            self._segmentation = self._predictor.predict()
        else:
            self._segmentation = self._predictor.predict(image, spacing)
        return self._target.mask(self._segmentation)

    def check(self, clicks: Sequence[Click]) -> None:
        if any(click.sign == BACKGROUND for click in clicks):
            raise ValueError(
                "the model was trained without clicks: a click shows the structure that it found there, and none can "
                "be taken away. Click on structures only, or serve a model that was trained with clicks"
            )

    def mask(self, clicks: Sequence[Click]) -> np.ndarray:
        assert self._segmentation is not None  # the session has an image
        kept, missed = only_clicked(self._segmentation, clicks, self._labels, self._predictor.spacing)
        if clicks[-1] in missed:
            raise ValueError(f"the model found no {self._target.name} near {describe(clicks[-1])}")
        return self._target.mask(kept)
