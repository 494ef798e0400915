"""How the authors of 3DSAM-adapter test: clicks on the tumour, one crop around them, background elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd, insert_crop_into_image
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import Tensor, nn

from nnunetv2_sam3d.clicks.sampling import click_generator, random_target_voxels
from nnunetv2_sam3d.evaluation.protocol import check_settings, common_settings, metrics
from nnunetv2_sam3d.nnunet.labels import Target
from nnunetv2_sam3d.nnunet.trained_fold import Volume

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
        check_settings(self.target, self.labels, self.click_counts, 1, self.tolerance_mm, self.seed)
        if len(self.crop_size) != 3 or min(self.crop_size) < 1:
            raise ValueError(f"the crop must be three positive voxel counts (D H W), got {list(self.crop_size)}")

    def settings(self) -> dict[str, Any]:
        """Everything that the metrics depend on beside the model and the data."""
        common = common_settings(self.target, self.click_counts, self.tolerance_mm, self.seed)
        return common | {"crop_size": list(self.crop_size)}

    def predictor(self, network: nn.Module, device: torch.device) -> Predict:
        """The network itself, on its device."""

        def predict(image: Tensor, points: Tensor) -> Tensor:
            with torch.inference_mode():
                return network(image.to(device), points.to(device))[0].float().cpu()

        return predict

    def evaluate(self, predictor: Predict, volume: Volume) -> dict[str, Any]:
        """One case.

        Args:
            predictor: the network, see ``Predict``.
            volume: the case.

        Returns:
            ``{"left_out": reason}``, or for each number of clicks its metrics, clicks and crop under ``"clicks"``.
        """
        target = self.target.mask(volume.segmentation)
        if not target.any():
            return {"left_out": f"no voxel of {self.target.name} to click on"}
        return {
            "target_voxels": int(target.sum()),
            "clicks": {str(count): self._with_clicks(count, predictor, volume, target) for count in self.click_counts},
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
        return {
            "metrics": metrics(prediction, target, volume.spacing_mm, self.tolerance_mm),
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
