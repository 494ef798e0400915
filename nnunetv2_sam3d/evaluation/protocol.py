"""What all test protocols with clicks share: their form, checks of their settings, and the metrics."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunetv2_sam3d.clicks.click import Click
from nnunetv2_sam3d.clicks.geometry import Geometry
from nnunetv2_sam3d.clicks.json_format import write_clicks
from nnunetv2_sam3d.clicks.slicer import write_markups
from nnunetv2_sam3d.nnunet.image_files import image_written_whole
from nnunetv2_sam3d.nnunet.labels import Target
from nnunetv2_sam3d.nnunet.trained_fold import TrainedFold, Volume
from nnunetv2_sam3d.results.measure import grid_of, read_mask, voxels_apart
from nnunetv2_sam3d.results.metrics import KITS_TOLERANCES_MM, dice, surface_dices


class ClickProtocol(Protocol):
    """A way to test a network with clicks."""

    name: str
    """in files and for the command line"""
    folder: str
    """of its results, in the fold's"""

    def settings(self) -> dict[str, Any]:
        """Everything that the metrics depend on beside the model and the data."""

    def predictor(self, network: Any, device: torch.device) -> Any:
        """What ``evaluate`` asks for predictions."""

    def evaluate(self, predictor: Any, volume: Volume) -> dict[str, Any]:
        """One case: ``{"left_out": reason}``, or for each number of clicks its metrics under ``"clicks"``."""


def clicks_title(count: int) -> str:
    """The name of a column."""
    return f"{count} click{'s' if count > 1 else ''}" if count else "automatic"


def check_settings(
    target: Target, labels: LabelManager, click_counts: Sequence[int], least: int, tolerance_mm: float, seed: int
) -> None:
    """Raises ValueError for numbers that cannot work, and for a target that the network does not know.

    Args:
        target: what is clicked on.
        labels: what the classes of the network mean.
        click_counts: numbers of clicks.
        least: the smallest number that is allowed.
        tolerance_mm: of the surface Dice.
        seed: of the clicks.
    """
    target.check(labels)
    if not click_counts or min(click_counts) < least or len(set(click_counts)) < len(click_counts):
        hint = " (0, automatic, is for --protocol whole-volume)" if least else ""
        raise ValueError(
            f"the numbers of clicks must be different and at least {least}{hint}, got {list(click_counts)}"
        )
    if not 0 < tolerance_mm < np.inf:
        raise ValueError(f"the tolerance must be a positive length in mm, got {tolerance_mm}")
    if seed < 0:
        raise ValueError(f"the seed must not be negative, got {seed}")


def common_settings(target: Target, click_counts: Sequence[int], tolerance_mm: float, seed: int) -> dict[str, Any]:
    """The settings that every protocol has."""
    return {
        "target": target.name,
        "target_labels": list(target.labels),
        "click_counts": list(click_counts),
        "seed": seed,
        "tolerances_mm": surface_tolerances_mm(tolerance_mm),
    }


def surface_tolerances_mm(tolerance_mm: float) -> dict[str, float]:
    """Names of the surface metrics and their tolerances: the chosen one, then KiTS's."""
    kits = {f"NSD {mm:.2f} mm (KiTS, {region})": mm for region, mm in KITS_TOLERANCES_MM.items()}
    return {f"NSD {tolerance_mm:g} mm": tolerance_mm, **kits}


def metrics(
    prediction: np.ndarray, target: np.ndarray, spacing_mm: Sequence[float], tolerance_mm: float
) -> dict[str, float]:
    """Dice and the surface Dices of two masks (z, y, x)."""
    tolerances_mm = surface_tolerances_mm(tolerance_mm)
    surfaces = surface_dices(prediction, target, spacing_mm, list(tolerances_mm.values()))
    return {"Dice": dice(prediction, target), **dict(zip(tolerances_mm, surfaces, strict=True))}


def annotation_of(fold: TrainedFold, volume: Volume) -> tuple[np.ndarray, tuple[float, ...], float]:
    """A case as nnU-Net's validation compares it.

    Returns:
        labels (z, y, x) on the original grid, their spacing in mm, and how far they lie from the image in the patient,
        in voxels; nnU-Net warns of the latter and compares voxel by voxel.

    Raises:
        ValueError: if the annotation is not there, cannot be read, or has another size or other voxels than the image.
    """
    reader = fold.plans.plans["image_reader_writer"]
    mask = read_mask(fold.annotation_file(volume.case), reader)
    image = grid_of(f"{volume.case}, the image", volume.properties, fold.plans.transpose_forward)
    return mask.values, mask.spacing_mm, voxels_apart(image, mask)


MASKS, PLACED = "masks", "placed"


def mask_file(output: Path, count: int, case: str, file_ending: str) -> Path:
    """Where a mask is: a folder for each number of clicks, such as nnU-Net's own tools take."""
    return output / MASKS / clicks_title(count).replace(" ", "_") / f"{case}{file_ending}"


def clicks_file(output: Path, case: str) -> Path:
    """Where the clicks of a case are."""
    return output / PLACED / f"{case}.mrk.json"


def keep_mask(output: Path, fold: TrainedFold, volume: Volume, count: int, segmentation: np.ndarray) -> None:
    """Writes labels (z, y, x) with the geometry of the original image."""
    ending = fold.dataset_json["file_ending"]
    with image_written_whole(mask_file(output, count, volume.case, ending), ending) as partial:
        fold.plans.image_reader_writer_class().write_seg(segmentation, str(partial), dict(volume.properties))


def keep_clicks(output: Path, fold: TrainedFold, volume: Volume, clicks: Sequence[Click]) -> None:
    """Writes clicks, voxels of the original image, in their order, as 3D Slicer and ``predict --clicks`` read them.

    Images without patient coordinates get this package's own file, in voxels.
    """
    transposed = volume.properties["shape_before_cropping"]
    shape = [transposed[axis] for axis in np.argsort(fold.plans.transpose_forward)]
    geometry = Geometry.from_properties(volume.properties, shape)
    file = clicks_file(output, volume.case)
    file.parent.mkdir(parents=True, exist_ok=True)
    if geometry.lps_from_array is not None:
        write_markups(file, clicks, geometry)
    else:
        write_clicks(file.with_name(f"{volume.case}.json"), clicks, geometry, space="ijk")
