"""The measures of one mask against its reference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from nnunetv2_sam3d.evaluation import surface


@dataclass(frozen=True)
class Measures:
    """What is measured of one structure in one case.

    Attributes:
        dice: 0 to 1; both masks empty 1, one empty 0.
        surface_dice: likewise, at the structure's tolerance.
        hd95_mm: the larger one of both directed 95th percentiles of the surface distances, each weighted by surface
            area; NaN if a mask is empty.
        reference_ml: volume of the reference.
        predicted_ml: volume of the prediction.
        lesions: connected components of the reference; ``None`` if the structure's lesions are not counted.
        detected: those of them that the prediction touches.
        false_lesions: connected components of the prediction that touch no reference.
    """

    dice: float
    surface_dice: float
    hd95_mm: float
    reference_ml: float
    predicted_ml: float
    lesions: int | None = None
    detected: int | None = None
    false_lesions: int | None = None

    @property
    def volume_error_ml(self) -> float:
        """Predicted minus reference volume."""
        return self.predicted_ml - self.reference_ml

    @property
    def volume_error_percent(self) -> float:
        """The same in percent of the reference; NaN if that is empty."""
        return 100 * self.volume_error_ml / self.reference_ml if self.reference_ml else math.nan

    @property
    def empty(self) -> str:
        """``both``, ``reference``, ``prediction`` or nothing."""
        if self.reference_ml:
            return "" if self.predicted_ml else "prediction"
        return "reference" if self.predicted_ml else "both"


def measure(
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing_mm: Sequence[float],
    tolerance_mm: float,
    *,
    count_lesions: bool = False,
) -> Measures:
    """Compares two masks. Only the box around both is looked at, so that memory follows the structure, not the scan.

    Args:
        prediction: bool, (z, y, x).
        reference: likewise.
        spacing_mm: of the voxels, (z, y, x).
        tolerance_mm: of the surface Dice.
        count_lesions: whether connected components are counted.

    Raises:
        ValueError: for arrays that are not bool, differ in shape or are not three-dimensional, and for a spacing or
            tolerance that is no length.
    """
    voxel_ml = math.prod(spacing_mm) / 1000
    dice = surface.dice(prediction, reference)
    box = _box(prediction, reference)
    prediction, reference = prediction[box], reference[box]
    hd95_mm = math.nan
    if prediction.any() and reference.any():
        distances = surface.surface_distances(prediction, reference, spacing_mm)
        surface_dice = float(surface.surface_distance.compute_surface_dice_at_tolerance(distances, tolerance_mm))
        hd95_mm = float(surface.surface_distance.compute_robust_hausdorff(distances, 95))
    else:
        surface_dice = surface.surface_dice(prediction, reference, spacing_mm, tolerance_mm)
    return Measures(
        dice,
        surface_dice,
        hd95_mm,
        float(reference.sum()) * voxel_ml,
        float(prediction.sum()) * voxel_ml,
        *(_lesions(prediction, reference) if count_lesions else ()),
    )


def _box(*masks: np.ndarray) -> tuple[slice, ...]:
    """The smallest box that holds all masks; an empty one if they are empty."""
    limits = []
    for axis in range(masks[0].ndim):
        others = tuple(other for other in range(masks[0].ndim) if other != axis)
        occupied = np.flatnonzero(np.logical_or.reduce([mask.any(axis=others) for mask in masks]))
        limits.append(slice(int(occupied[0]), int(occupied[-1]) + 1) if len(occupied) else slice(0, 0))
    return tuple(limits)


def _lesions(prediction: np.ndarray, reference: np.ndarray) -> tuple[int, int, int]:
    """Lesions, detected and false ones; components are 26-connected, one common voxel is a detection."""
    neighbours = np.ones((3, 3, 3), bool)
    lesions, count = ndimage.label(reference, neighbours)
    found, found_count = ndimage.label(prediction, neighbours)
    both = prediction & reference
    detected = len(np.unique(lesions[both]))
    true = len(np.unique(found[both]))
    return count, detected, found_count - true
