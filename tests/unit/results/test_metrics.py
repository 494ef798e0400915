"""All measures of a mask against shapes whose values are known, and HD95 against MONAI."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.metrics import compute_hausdorff_distance, compute_surface_dice

from nnunetv2_sam3d.results.metrics import measure

ISOTROPIC = (1.0, 1.0, 1.0)


def ball(radius_mm: float, centre: tuple[float, float, float], shape=(50, 50, 50), spacing=ISOTROPIC) -> np.ndarray:
    z, y, x = np.indices(shape) * np.reshape(spacing, (3, 1, 1, 1))
    return (z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2 < radius_mm**2


def cube(start: int, shape=(40, 40, 40)) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[10:20, 10:20, start : start + 10] = True
    return mask


def test_concentric_spheres_are_apart_by_the_difference_of_their_radii() -> None:
    small, large = ball(10, (25, 25, 25)), ball(15, (25, 25, 25))
    found = measure(small, large, ISOTROPIC, 4.0)
    assert found.hd95_mm == pytest.approx(5, abs=0.6)
    assert found.dice == pytest.approx(2 * 10**3 / (10**3 + 15**3), abs=0.01)
    assert found.surface_dice < 0.1  # corners of voxels
    assert measure(small, large, ISOTROPIC, 6.0).surface_dice == pytest.approx(1)
    assert found.reference_ml == pytest.approx(4 / 3 * math.pi * 15**3 / 1000, rel=0.02)
    assert found.volume_error_ml == pytest.approx(4 / 3 * math.pi * (10**3 - 15**3) / 1000, rel=0.02)
    assert found.volume_error_percent == pytest.approx(100 * (10**3 / 15**3 - 1), abs=1)


@pytest.mark.parametrize("shift", [1, 3, 7])
def test_a_shifted_cube(shift: int) -> None:
    spacing_mm = (2.0, 1.0, 0.5)
    found = measure(cube(10 + shift), cube(10), spacing_mm, 0.5 * shift)
    assert found.dice == pytest.approx(1 - shift / 10)
    assert found.hd95_mm == pytest.approx(0.5 * shift)  # the faces across x moved by so much
    assert found.surface_dice == pytest.approx(1)
    assert found.reference_ml == found.predicted_ml == pytest.approx(1.0)  # 1000 voxels of 1 mm^3


def test_the_position_in_the_volume_and_a_larger_volume_change_nothing() -> None:
    prediction, reference = ball(6, (12, 12, 12)), ball(7, (13, 12, 12))
    expected = measure(prediction, reference, ISOTROPIC, 1.0, count_lesions=True)
    padding = ((30, 5), (0, 40), (17, 3))
    assert (
        measure(np.pad(prediction, padding), np.pad(reference, padding), ISOTROPIC, 1.0, count_lesions=True) == expected
    )


@pytest.mark.parametrize("seed", range(3))
def test_monai_agrees(seed: int) -> None:
    """MONAI's HD95 counts surface voxels, ours weighs surface elements: they agree to a fraction of a voxel."""
    shift = np.random.default_rng(seed).uniform(-4, 4, 3)
    prediction, reference = ball(11, tuple(25 + shift)), ball(12, (25, 25, 25))
    found = measure(prediction, reference, ISOTROPIC, 1.5)
    one, two = (torch.from_numpy(mask)[None, None].float() for mask in (prediction, reference))
    theirs = compute_hausdorff_distance(one, two, include_background=True, percentile=95, spacing=ISOTROPIC)
    assert found.hd95_mm == pytest.approx(float(theirs), abs=0.5)
    nsd = compute_surface_dice(one, two, [1.5], include_background=True, spacing=ISOTROPIC, use_subvoxels=True)
    assert found.surface_dice == pytest.approx(float(nsd), abs=1e-5)


@pytest.mark.parametrize(
    ("predicted", "annotated", "score", "name"),
    [(False, False, 1.0, "both"), (True, False, 0.0, "reference"), (False, True, 0.0, "prediction")],
)
def test_the_rule_for_empty_masks(predicted: bool, annotated: bool, score: float, name: str) -> None:
    prediction, reference = cube(10) & predicted, cube(10) & annotated
    found = measure(prediction, reference, ISOTROPIC, 1.0, count_lesions=True)
    assert (found.dice, found.surface_dice, found.empty) == (score, score, name)
    assert math.isnan(found.hd95_mm)
    assert math.isnan(found.volume_error_percent) is not annotated
    assert (found.lesions, found.detected, found.false_lesions) == (int(annotated), 0, int(predicted))


def test_lesions() -> None:
    reference = ball(4, (10, 10, 10)) | ball(4, (10, 10, 30)) | ball(4, (30, 30, 30))
    prediction = ball(3, (10, 10, 13)) | ball(3, (40, 40, 40)) | ball(3, (40, 10, 10))
    found = measure(prediction, reference, ISOTROPIC, 1.0, count_lesions=True)
    assert (found.lesions, found.detected, found.false_lesions) == (3, 1, 2)
    assert measure(prediction, reference, ISOTROPIC, 1.0).lesions is None


def test_voxels_that_touch_by_a_corner_are_one_lesion() -> None:
    reference = np.zeros((6, 6, 6), bool)
    reference[1, 1, 1] = reference[2, 2, 2] = True
    assert measure(reference, reference, ISOTROPIC, 1.0, count_lesions=True).lesions == 1
