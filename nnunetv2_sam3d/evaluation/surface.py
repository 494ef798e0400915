"""Dice and surface Dice of two masks; both empty counts 1, one empty counts 0, as KiTS does."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np

with warnings.catch_warnings():  # it asks SciPy by names that SciPy has deprecated
    warnings.simplefilter("ignore", DeprecationWarning)
    import surface_distance

# What KiTS23 evaluates its regions with: the variation between its annotators, in mm.
KITS_TOLERANCES_MM: Mapping[str, float] = {
    "kidney and masses": 1.0330772532390826,
    "masses": 1.1328796488598762,
    "tumour": 1.1498198361434828,
}


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
