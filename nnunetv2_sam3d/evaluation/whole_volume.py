"""What a click is worth: the whole volume, automatic first, then click after click where a user would correct it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from nnunetv2_sam3d.clicks.click import Click
from nnunetv2_sam3d.clicks.geometry import PreprocessedGrid
from nnunetv2_sam3d.clicks.sampling import click_generator, correcting_click, random_target_voxels
from nnunetv2_sam3d.evaluation.protocol import (
    annotation_of,
    check_settings,
    common_settings,
    keep_clicks,
    keep_mask,
    metrics,
)
from nnunetv2_sam3d.inference.only_clicked import only_clicked
from nnunetv2_sam3d.inference.window_predictor import WindowPredictor
from nnunetv2_sam3d.network_architecture.sam3d import SAM3D
from nnunetv2_sam3d.nnunet.labels import Target
from nnunetv2_sam3d.nnunet.trained_fold import TrainedFold, Volume


class Predictor(Protocol):
    """What the protocol needs of :class:`~nnunetv2_sam3d.inference.window_predictor.WindowPredictor`."""

    def set_image(self, image: Tensor) -> None:
        """(C, D, H, W), as nnU-Net preprocesses it."""

    def automatic(self) -> Tensor:
        """Logits (classes, D, H, W) without clicks."""

    def logits(self, points: Tensor, signs: Tensor) -> Tensor:
        """Logits with clicks: (N, 3) as (z, y, x) in voxels, and (N,), 1 or -1."""


class PlacedClick(NamedTuple):
    """A click of the protocol.

    Attributes:
        point_zyx: voxel of the preprocessed data.
        sign: 1 on the target, -1 where it was found and is not.
        placed: ``first``; ``error``, in the middle of the largest one; or ``random`` in the target, as no error was
            left that the network could be told.
    """

    point_zyx: tuple[int, int, int]
    sign: int
    placed: str


@dataclass(frozen=True)
class WholeVolumeProtocol:
    """Dice and surface Dice against the number of clicks, for whole volumes on the grid of the original images.

    No click is nnU-Net's automatic sliding window, with the metrics of its validation. The first click is the middle of
    the target: the voxel of its largest connected part that lies deepest. Each later one is the middle of the largest
    connected error of the prediction with all clicks before, on the preprocessed grid; voxels that were clicked on
    before no longer count as errors, so that no click is repeated in vain. Networks with signed clicks are told missed
    and surplus voxels, others only missed ones. Where no such error is left, a random target voxel is clicked on.

    Deepest voxel of the largest error: as in the evaluation of interactive segmentation since Xu et al., "Deep
    Interactive Object Selection", arXiv:1603.04042.

    Args:
        target: what is clicked on and measured.
        fold: whose preprocessed data, annotations and plans are used.
        signed_clicks: whether the network knows background clicks.
        click_counts: numbers of clicks, 0 for automatic; the clicks of a smaller number begin those of a larger one.
        tolerance_mm: of the surface Dice.
        seed: of random clicks.
        mirror_axes: that nnU-Net mirrors in prediction, as the checkpoint says.
        only_clicked: whether a prediction keeps only the structures that were clicked on
            (:mod:`~nnunetv2_sam3d.inference.only_clicked`), as promptable networks without automatic mode do.
        keep: folder for the masks and for the clicks as 3D Slicer reads them; without one they are not kept.

    Raises:
        ValueError: for numbers that cannot work, and for a target that the network does not know.
    """

    target: Target
    fold: TrainedFold
    signed_clicks: bool = False
    click_counts: tuple[int, ...] = (0, 1, 3, 5, 10)
    tolerance_mm: float = 5.0
    seed: int = 0
    mirror_axes: Sequence[int] | None = None
    only_clicked: bool = False
    keep: Path | None = None

    name = "whole-volume"
    folder = "clicks"
    only_clicked_folder = "only_clicked"

    def __post_init__(self) -> None:
        check_settings(self.target, self.fold.labels, self.click_counts, 0, self.tolerance_mm, self.seed)

    def settings(self) -> dict[str, Any]:
        """Everything that the metrics depend on beside the model and the data."""
        counts = sorted(self.click_counts)
        settings = common_settings(self.target, counts, self.tolerance_mm, self.seed)
        settings["signed_clicks"] = self.signed_clicks
        return settings | ({"only_clicked": True} if self.only_clicked else {})

    def predictor(self, network: SAM3D, device: torch.device) -> WindowPredictor:
        """nnU-Net's sliding window with its mirroring, and prompted windows."""
        return WindowPredictor(
            [network], self.fold.configuration.patch_size, mirror_axes=self.mirror_axes, device=device
        )

    def evaluate(self, predictor: Predictor, volume: Volume) -> dict[str, Any]:
        """One case.

        Args:
            predictor: see ``Predictor``.
            volume: the preprocessed case.

        Returns:
            ``{"left_out": reason}``, or for each number of clicks its metrics under ``"clicks"``, and all clicks in
            their order under ``"placed"``.
        """
        annotation, spacing_mm, apart = annotation_of(self.fold, volume)
        target, original_target = self.target.mask(volume.segmentation), self.target.mask(annotation)
        if not (target.any() and original_target.any()):
            return {"left_out": f"no voxel of {self.target.name} to click on"}
        predictor.set_image(torch.from_numpy(np.array(volume.image[:], np.float32)))
        labels = self.fold.labels
        clicks: list[PlacedClick] = []
        found = {}
        shown = np.zeros_like(target)
        for count in range(max(self.click_counts) + 1):
            if count:
                clicks.append(self._next_click(shown, target, clicks, volume))
            logits = _logits(predictor, clicks)
            shown = self.target.mask(np.asarray(labels.convert_logits_to_segmentation(logits)))
            if self.only_clicked and clicks:
                shown = _clicked(shown, [Click(c.point_zyx, sign=c.sign) for c in clicks], volume.spacing_mm)
            if labels.has_ignore_label:
                shown &= volume.segmentation != labels.ignore_label
            if count in self.click_counts:
                segmentation = self.fold.original_segmentation(logits, volume.properties)
                prediction = self.target.mask(segmentation)
                if self.only_clicked and clicks:
                    prediction = _clicked(prediction, self._in_image(volume, clicks), spacing_mm)
                    segmentation = np.where(prediction, segmentation, 0)
                if self.keep:
                    keep_mask(self.keep, self.fold, volume, count, segmentation)
                if labels.has_ignore_label:
                    prediction &= annotation != labels.ignore_label
                found[str(count)] = {
                    "metrics": metrics(prediction, original_target, spacing_mm, self.tolerance_mm),
                    "predicted_voxels": int(prediction.sum()),
                }
        if self.keep:
            keep_clicks(self.keep, self.fold, volume, self._in_image(volume, clicks))
        return {
            "target_voxels": int(original_target.sum()),
            **({"voxels_apart": apart} if apart else {}),
            "clicks": found,
            "placed": [click._asdict() for click in clicks],
        }

    def _in_image(self, volume: Volume, clicks: Sequence[PlacedClick]) -> list[Click]:
        """In voxels of the original image."""
        forward = self.fold.plans.transpose_forward
        grid = PreprocessedGrid.from_properties(volume.properties, forward, volume.segmentation.shape)
        label = self.target.name if self.target.name in self.fold.dataset_json["labels"] else None
        places = grid.to_image([click.point_zyx for click in clicks])
        return [Click(tuple(place), label, click.sign) for place, click in zip(places, clicks, strict=True)]

    def _next_click(
        self, shown: np.ndarray, target: np.ndarray, clicks: Sequence[PlacedClick], volume: Volume
    ) -> PlacedClick:
        if not clicks:
            shown = np.zeros_like(target)
        elif not self.signed_clicks:
            shown = shown & target
        pointed_at = tuple(np.array([click.point_zyx for click in clicks], int).reshape(-1, 3).T)
        told = shown.copy()
        told[pointed_at] = target[pointed_at]
        if (found := correcting_click(told, target, volume.spacing_mm)) is not None:
            return PlacedClick(*found, "error" if clicks else "first")
        generator = click_generator(self.seed, volume.case, len(clicks) + 1)
        z, y, x = random_target_voxels(target, 1, generator)[0].tolist()
        return PlacedClick((z, y, x), 1, "random")


def _clicked(mask: np.ndarray, clicks: Sequence[Click], spacing_mm: Sequence[float]) -> np.ndarray:
    """Of a mask of the target, what the clicks are on."""
    unlabelled = [Click(click.zyx, sign=click.sign) for click in clicks]  # there is but one structure in the mask
    return only_clicked(mask.astype(np.uint8), unlabelled, {}, spacing_mm)[0].astype(bool)


def _logits(predictor: Predictor, clicks: Sequence[PlacedClick]) -> Tensor:
    if not clicks:
        return predictor.automatic()
    points = torch.tensor([click.point_zyx for click in clicks], dtype=torch.float32)
    return predictor.logits(points, torch.tensor([click.sign for click in clicks], dtype=torch.float32))
