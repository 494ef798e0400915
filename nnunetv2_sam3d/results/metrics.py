"""The measures of one mask against its reference."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

with warnings.catch_warnings():  # it asks SciPy by names that SciPy has deprecated
    warnings.simplefilter("ignore", DeprecationWarning)
    import surface_distance

# What KiTS23 evaluates its regions with: the variation between its annotators, in mm.
KITS_TOLERANCES_MM: Mapping[str, float] = {
    "kidney and masses": 1.0330772532390826,
    "masses": 1.1328796488598762,
    "tumour": 1.1498198361434828,
}


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
    volumetric = dice(prediction, reference)
    box = _box(prediction, reference)
    prediction, reference = prediction[box], reference[box]
    hd95_mm = math.nan
    if prediction.any() and reference.any():
        distances = surface_distances(prediction, reference, spacing_mm)
        of_surfaces = float(surface_distance.compute_surface_dice_at_tolerance(distances, tolerance_mm))
        hd95_mm = float(surface_distance.compute_robust_hausdorff(distances, 95))
    else:
        of_surfaces = surface_dice(prediction, reference, spacing_mm, tolerance_mm)
    return Measures(
        volumetric,
        of_surfaces,
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
        occupied = np.flatnonzero(np.any([mask.any(axis=others) for mask in masks], axis=0))
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


def dice(prediction: np.ndarray, reference: np.ndarray) -> float:
    """Volumetric Dice, 2 |A n B| / (|A| + |B|).

    Args:
        prediction: bool, (z, y, x).
        reference: likewise.

    Returns:
        0 to 1; both masks empty: 1, one empty: 0.

    Raises:
        ValueError: for arrays that are not bool or differ in shape.
    """
    _check(prediction, reference)
    voxels = int(prediction.sum()) + int(reference.sum())
    return 2 * int((prediction & reference).sum()) / voxels if voxels else 1.0


def surface_dice(
    prediction: np.ndarray, reference: np.ndarray, spacing_mm: Sequence[float], tolerance_mm: float
) -> float:
    """Surface Dice (NSD): the share of both surfaces that lies within the tolerance of the other one.

    Source: Nikolov et al., arXiv:1809.04430, in the authors' own implementation, which KiTS uses, too.

    Args:
        prediction: bool, (z, y, x).
        reference: likewise.
        spacing_mm: of the voxels, (z, y, x).
        tolerance_mm: distance that still counts as agreement.

    Returns:
        0 to 1; both masks empty: 1, one empty: 0.

    Raises:
        ValueError: for arrays that are not bool, differ in shape or are not three-dimensional, and for a spacing or
            tolerance that is no length.
    """
    return surface_dices(prediction, reference, spacing_mm, [tolerance_mm])[0]


def surface_dices(
    prediction: np.ndarray, reference: np.ndarray, spacing_mm: Sequence[float], tolerances_mm: Sequence[float]
) -> list[float]:
    """:func:`surface_dice` at several tolerances; the distances, which take the time, are computed once."""
    for tolerance in tolerances_mm:
        if not 0 <= tolerance < np.inf:
            raise ValueError(f"the tolerance must be a distance in mm, got {tolerance}")
    if not (prediction.any() and reference.any()):
        _check(prediction, reference)
        return [float(prediction.any() == reference.any())] * len(tolerances_mm)
    distances = surface_distances(prediction, reference, spacing_mm)
    return [
        float(surface_distance.compute_surface_dice_at_tolerance(distances, tolerance)) for tolerance in tolerances_mm
    ]


def surface_distances(
    prediction: np.ndarray, reference: np.ndarray, spacing_mm: Sequence[float]
) -> dict[str, np.ndarray]:
    """Distances of all surface elements to the other surface, and the elements' areas.

    Args:
        prediction: bool, (z, y, x), not empty.
        reference: likewise.
        spacing_mm: of the voxels, (z, y, x).

    Returns:
        ``distances_gt_to_pred``, ``distances_pred_to_gt`` (mm), ``surfel_areas_gt``, ``surfel_areas_pred`` (mm^2), what
        the functions of ``surface_distance`` take.

    Raises:
        ValueError: for arrays that are not bool, differ in shape, are empty or not three-dimensional, and for a spacing
            that is none.
    """
    _check(prediction, reference)
    if len(spacing_mm) != 3 or not all(0 < value < np.inf for value in spacing_mm):
        raise ValueError(f"the spacing must be three lengths in mm (z, y, x), got {list(spacing_mm)}")
    if prediction.ndim != 3:
        raise ValueError(f"surfaces need masks of shape (z, y, x), got {prediction.shape}")
    if not (prediction.any() and reference.any()):
        raise ValueError("an empty mask has no surface: decide empty masks before asking for distances")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return surface_distance.compute_surface_distances(reference, prediction, [float(value) for value in spacing_mm])


def _check(prediction: np.ndarray, reference: np.ndarray) -> None:
    for name, mask in (("prediction", prediction), ("reference", reference)):
        if mask.dtype != bool:
            raise ValueError(f"the {name} must be a bool array, got {mask.dtype}; compare it with the label first")
    if prediction.shape != reference.shape:
        raise ValueError(
            f"prediction and reference must be on the same grid, got {prediction.shape} and {reference.shape} voxels"
        )
