"""Dice and surface Dice against shapes whose values are known, and against MONAI."""

from __future__ import annotations

import numpy as np
import pytest

from nnunetv2_sam3d.results.metrics import dice, surface_dice, surface_dices, surface_distances

SPACING_MM = (3.0, 1.0, 0.8)


def box(start: tuple[int, int, int], stop: tuple[int, int, int], shape: tuple[int, int, int] = (24, 28, 26)):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(low, high) for low, high in zip(start, stop, strict=True))] = True
    return mask


def blob(seed: int, shape: tuple[int, int, int] = (20, 24, 22)) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(np.random.default_rng(seed).normal(size=shape), 3) > 0.02


def test_dice_of_two_boxes():
    # 8 x 8 x 8 voxels each, of which 6 x 8 x 8 are shared
    assert dice(box((4, 4, 4), (12, 12, 12)), box((6, 4, 4), (14, 12, 12))) == pytest.approx(6 / 8)
    assert dice(box((4, 4, 4), (12, 12, 12)), box((14, 4, 4), (20, 12, 12))) == 0.0


def test_surface_dice_in_millimetres_and_not_in_voxels():
    """Two wide plates, 2 voxels = 6 mm apart in z: the broad faces agree from 6 mm on, the rims before."""
    lower, upper = box((4, 2, 2), (8, 26, 24)), box((6, 2, 2), (10, 26, 24))
    below, at = surface_dices(lower, upper, SPACING_MM, [5.9, 6.0])
    assert below < 0.75
    assert at == pytest.approx(1.0)
    # the same voxels along x are 1.6 mm apart
    assert surface_dice(box((2, 2, 4), (22, 26, 8)), box((2, 2, 6), (22, 26, 10)), SPACING_MM, 1.6) == pytest.approx(1)


def test_equal_masks_agree_at_zero_tolerance():
    assert surface_dice(blob(1), blob(1), SPACING_MM, 0.0) == pytest.approx(1.0)


@pytest.mark.parametrize("measure", [dice, lambda a, b: surface_dice(a, b, SPACING_MM, 1.0)])
def test_empty_masks_as_kits_counts_them(measure):
    full, empty = blob(0), np.zeros((20, 24, 22), bool)
    assert measure(empty, empty) == 1.0
    assert measure(full, empty) == 0.0
    assert measure(empty, full) == 0.0


@pytest.mark.parametrize("seed", range(3))
def test_surface_dice_agrees_with_monai(seed):
    monai = pytest.importorskip("monai.metrics", reason="MONAI is the second opinion; pip install monai")
    import torch

    prediction, reference = blob(seed), blob(seed) ^ box((5, 6, 7), (9, 13, 12), (20, 24, 22))
    # between the distances that voxels of this spacing can have: MONAI rounds to float32
    for tolerance in (1.05, 2.3, 4.9):
        expected = monai.compute_surface_dice(
            *(torch.from_numpy(mask)[None, None] for mask in (prediction, reference)),
            class_thresholds=[tolerance], include_background=True, spacing=SPACING_MM, use_subvoxels=True,
        )  # fmt: skip
        assert surface_dice(prediction, reference, SPACING_MM, tolerance) == pytest.approx(expected.item(), abs=1e-6)


def test_misuse_is_told():
    full, empty = blob(0), np.zeros((20, 24, 22), bool)
    with pytest.raises(ValueError, match="uint8"):
        dice(full.astype(np.uint8), full)
    with pytest.raises(ValueError, match="same grid"):
        surface_dice(full, full[1:], SPACING_MM, 1.0)
    with pytest.raises(ValueError, match="three lengths"):
        surface_dice(full, full, (1.0, 1.0), 1.0)
    with pytest.raises(ValueError, match="tolerance"):
        surface_dice(full, full, SPACING_MM, float("nan"))
    with pytest.raises(ValueError, match="empty"):
        surface_distances(full, empty, SPACING_MM)
