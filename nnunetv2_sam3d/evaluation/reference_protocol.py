"""How the authors of 3DSAM-adapter test: clicks on the tumour, one crop around them, background elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd, insert_crop_into_image
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import Tensor

from nnunetv2_sam3d.evaluation.clicks import click_generator, random_target_voxels
from nnunetv2_sam3d.evaluation.surface import KITS_TOLERANCES_MM, dice, surface_dices
from nnunetv2_sam3d.evaluation.targets import Target
from nnunetv2_sam3d.evaluation.volumes import Volume

Predict = Callable[[Tensor, Tensor], Tensor]
"""image (1, C, D, H, W) and points (1, N, 3), (z, y, x) voxels of it -> logits (classes, D, H, W)"""


@dataclass(frozen=True)
class ReferenceProtocol:
    """The test protocol of 3DSAM-adapter, with seeded clicks.

    For each number of clicks: that many random voxels of the target; one crop whose middle is the middle of the clicks'
    bounding box (rounded down), filled up with zeros where it leaves the volume, as nnU-Net fills its windows;
    probability above 0.5 is the target; what lies outside the crop is background. Clicks that lie so far apart that the
    crop misses some are given to the network as far as they are in it. All of it happens on the grid of the
    preprocessed data, which is the authors' when the plans have a spacing of 1 mm.

    Source: Gong et al., arXiv:2306.13465, and the behaviour of the public implementation, whose clicks are not seeded.

    Args:
        target: what is clicked on and measured.
        labels: what the classes of the network mean.
        crop_size: voxels (D, H, W).
        click_counts: numbers of clicks, each with clicks of its own.
        tolerance_mm: of the surface Dice.
        seed: of the clicks.

    Raises:
        ValueError: for numbers that cannot work, and for a target that the network does not know.
    """

    target: Target
    labels: LabelManager
    crop_size: tuple[int, int, int] = (128, 128, 128)
    click_counts: tuple[int, ...] = (1, 3, 10)
    tolerance_mm: float = 5.0
    seed: int = 0

    name = "reference"
    folder = "reference_protocol_with_clicks"

    def __post_init__(self) -> None:
        self.target.check(self.labels)
        if not self.click_counts or min(self.click_counts) < 1 or len(set(self.click_counts)) < len(self.click_counts):
            raise ValueError(f"the numbers of clicks must be different and at least 1, got {list(self.click_counts)}")
        if len(self.crop_size) != 3 or min(self.crop_size) < 1:
            raise ValueError(f"the crop must be three positive voxel counts (D H W), got {list(self.crop_size)}")
        if not 0 < self.tolerance_mm < np.inf:
            raise ValueError(f"the tolerance must be a positive length in mm, got {self.tolerance_mm}")
        if self.seed < 0:
            raise ValueError(f"the seed must not be negative, got {self.seed}")

    @property
    def tolerances_mm(self) -> dict[str, float]:
        """Names of the surface figures, and their tolerances."""
        kits = {f"NSD {mm:.2f} mm (KiTS, {region})": mm for region, mm in KITS_TOLERANCES_MM.items()}
        return {f"NSD {self.tolerance_mm:g} mm": self.tolerance_mm, **kits}

    def settings(self) -> dict[str, Any]:
        """Everything that the figures depend on beside the model and the data."""
        return {
            "target": self.target.name,
            "target_labels": list(self.target.labels),
            "click_counts": list(self.click_counts),
            "seed": self.seed,
            "crop_size": list(self.crop_size),
            "tolerances_mm": self.tolerances_mm,
        }

    def evaluate(self, predict: Predict, volume: Volume) -> dict[str, Any]:
        """One case.

        Args:
            predict: the network, see ``Predict``.
            volume: the case.

        Returns:
            ``{"left_out": reason}``, or for each number of clicks its figures, clicks and crop under ``"clicks"``.
        """
        target = self.target.mask(volume.segmentation)
        if not target.any():
            return {"left_out": f"no voxel of {self.target.name} to click on"}
        return {
            "target_voxels": int(target.sum()),
            "clicks": {str(count): self._with_clicks(count, predict, volume, target) for count in self.click_counts},
        }

    def _with_clicks(self, count: int, predict: Predict, volume: Volume, target: np.ndarray) -> dict[str, Any]:
        clicks = random_target_voxels(target, count, click_generator(self.seed, volume.case, count))
        start = crop_start(clicks, self.crop_size)
        box = [[low, low + size] for low, size in zip(start, self.crop_size, strict=True)]
        inside = np.all((clicks >= start) & (clicks < np.add(start, self.crop_size)), axis=1)
        crop = np.asarray(crop_and_pad_nd(volume.image, box, 0), np.float32)
        points = torch.from_numpy(clicks[inside] - np.array(start)).float()
        probability = self.target.probability(predict(torch.from_numpy(crop)[None], points[None]), self.labels)
        prediction = insert_crop_into_image(np.zeros_like(target), (probability > 0.5).numpy(), box)
        if self.labels.has_ignore_label:
            prediction &= volume.segmentation != self.labels.ignore_label
        surfaces = surface_dices(prediction, target, volume.spacing_mm, list(self.tolerances_mm.values()))
        return {
            "figures": {"Dice": dice(prediction, target), **dict(zip(self.tolerances_mm, surfaces, strict=True))},
            "points_zyx": clicks.tolist(),
            "points_outside_crop": int((~inside).sum()),
            "crop_start_zyx": start,
            "target_voxels_outside_crop": int(target.sum() - crop_and_pad_nd(target, box, 0).sum()),
            "predicted_voxels": int(prediction.sum()),
        }


def crop_start(clicks: np.ndarray, crop_size: tuple[int, ...]) -> list[int]:
    """First voxel, (z, y, x), of the crop whose middle is the middle of the clicks' bounding box; may be negative."""
    middle = (clicks.min(0) + clicks.max(0)) // 2
    return [int(centre) - size // 2 for centre, size in zip(middle, crop_size, strict=True)]
