"""Simulated clicks: where they may lie, and where they must."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunetv2_sam3d.clicks.sampling import correcting_click, random_points, target_points

SHAPE = (6, 7, 8)
quick = settings(deadline=None, derandomize=True, max_examples=40)


def mask(*boxes: tuple[slice, slice, slice], shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    out = np.zeros(shape, bool)
    for box in boxes:
        out[box] = True
    return out


# --- random clicks ---


@quick
@given(st.integers(0, 2**32), st.integers(0, 12), st.integers(0, 9))
def test_target_points_are_different_voxels_of_the_target(seed: int, count: int, size: int) -> None:
    target = np.zeros(SHAPE, bool)
    target.ravel()[np.random.default_rng(seed).permutation(target.size)[:size]] = True
    points = target_points(target, count, np.random.default_rng(seed))
    assert points.shape == (min(count, size), 3)
    assert len(np.unique(points, axis=0)) == len(points)
    assert target[tuple(points.T)].all()
    assert np.array_equal(points, target_points(target, count, np.random.default_rng(seed)))


def test_every_voxel_of_the_target_is_as_likely() -> None:
    target = mask((slice(1, 3), slice(2, 4), slice(5, 6)))
    counts = np.zeros(SHAPE, int)
    generator = np.random.default_rng(0)
    for _ in range(2000):
        counts[tuple(target_points(target, 1, generator)[0])] += 1
    assert (counts[target] > 420).all()  # 500 each, standard deviation 19
    assert counts[target].sum() == 2000


def test_random_points_fill_the_crop() -> None:
    points = random_points(SHAPE, 5000, np.random.default_rng(0))
    assert points.shape == (5000, 3)
    assert points.min(0).tolist() == [0, 0, 0]
    assert points.max(0).tolist() == [size - 1 for size in SHAPE]
    assert np.array_equal(points[:7], random_points(SHAPE, 5000, np.random.default_rng(0))[:7])
    assert random_points(SHAPE, 0, np.random.default_rng(0)).shape == (0, 3)


# --- correcting clicks ---


def test_nothing_wrong_needs_no_click() -> None:
    target = mask((slice(1, 4), slice(1, 4), slice(1, 4)))
    assert correcting_click(target, target) is None
    assert correcting_click(mask(), mask()) is None


def test_missed_target_gets_a_foreground_click_in_its_middle() -> None:
    target = mask((slice(1, 4), slice(2, 7), slice(1, 6)))
    assert correcting_click(mask(), target) == ((2, 4, 3), 1)


def test_surplus_gets_a_background_click_in_its_middle() -> None:
    target = mask((slice(0, 2), slice(0, 2), slice(0, 2)))
    surplus = mask((slice(3, 6), slice(3, 6), slice(3, 8)))
    assert correcting_click(target | surplus, target) == ((4, 4, 5), -1)


def test_the_largest_error_is_corrected_first() -> None:
    missed, surplus = mask((slice(0, 3), slice(0, 3), slice(0, 3))), mask((slice(4, 6), slice(4, 7), slice(4, 8)))
    assert correcting_click(surplus, missed) == ((1, 1, 1), 1)  # 27 voxels against 24
    surplus |= mask((slice(3, 4), slice(4, 7), slice(4, 8)))
    point, sign = correcting_click(surplus, missed)
    assert (point, sign) == ((4, 5, 5), -1)  # of two deepest voxels as near to the centre, the first
    # many small errors are none of them the largest
    speckle = np.zeros(SHAPE, bool)
    speckle[::2, ::2, ::2] = True
    far = speckle & ~mask((slice(0, 4), slice(0, 4), slice(0, 4)))
    assert correcting_click(far, missed) == ((1, 1, 1), 1)


def test_missed_before_surplus_and_earlier_before_later_where_sizes_are_equal() -> None:
    first, second = mask((slice(0, 1), slice(0, 3), slice(0, 1))), mask((slice(5, 6), slice(0, 3), slice(7, 8)))
    assert correcting_click(first, second) == ((5, 1, 7), 1)
    assert correcting_click(mask(), first | second) == ((0, 1, 0), 1)


def test_a_thin_error_is_clicked_in_its_middle_and_not_at_its_end() -> None:
    """All of its voxels are as near to the surface."""
    assert correcting_click(mask(), mask((slice(2, 3), slice(3, 4), slice(1, 8)))) == ((2, 3, 4), 1)


def test_the_click_lies_on_the_error_where_its_centre_of_mass_does_not() -> None:
    ring = mask((slice(2, 3), slice(0, 7), slice(0, 7)))
    ring[2, 1:6, 1:6] = False
    (z, y, x), sign = correcting_click(mask(), ring)
    assert ring[z, y, x]
    assert sign == 1


def test_spacing_decides_what_is_deep() -> None:
    """Two lobes: a tall thin one along z with coarse slices is the deeper one in millimetres."""
    target = mask((slice(0, 3), slice(0, 3), slice(0, 3)), shape=(8, 8, 12))  # a cube
    target |= mask((slice(1, 2), slice(1, 2), slice(3, 7)), shape=target.shape)  # a bridge
    target |= mask((slice(1, 2), slice(0, 8), slice(7, 12)), shape=target.shape)  # a plate of one slice
    empty = np.zeros_like(target)
    point, _ = correcting_click(empty, target)
    assert point == (1, 1, 1)  # in voxels, the cube is deeper
    point, _ = correcting_click(empty, target, (9.0, 1.0, 1.0))
    assert target[point] and point[0] == 1 and point[2] == 9  # with thick slices, the plate is


def test_an_error_at_the_border_ends_there() -> None:
    assert correcting_click(mask(), mask((slice(0, 3), slice(0, 3), slice(0, 3)))) == ((1, 1, 1), 1)


@quick
@given(st.integers(0, 2**32))
def test_the_click_is_an_error_of_its_sign(seed: int) -> None:
    generator = np.random.default_rng(seed)
    prediction, target = generator.random((2, *SHAPE)) < 0.3
    found = correcting_click(prediction, target, (2.0, 1.0, 0.5))
    assert found is not None
    point, sign = found
    assert (target[point], prediction[point]) == ((True, False) if sign == 1 else (False, True))
    assert found == correcting_click(prediction.copy(), target.copy(), (2.0, 1.0, 0.5))
    # as numbers 0 and 1 it is the same mask
    assert found == correcting_click(prediction.astype(np.uint8), target.astype(np.int64), (2.0, 1.0, 0.5))


def test_masks_of_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"prediction has the shape \(6, 7, 8\), the target \(6, 7, 9\)"):
        correcting_click(mask(), np.zeros((6, 7, 9), bool))
