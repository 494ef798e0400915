"""Simulated clicks: pure functions of masks and a source of randomness."""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32

import numpy as np
from scipy import ndimage

TOUCHING = np.ones((3, 3, 3), bool)  # neighbours by faces, edges and corners


def target_points(target: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """Different voxels of the target, each equally likely.

    Args:
        target: bool, (z, y, x).
        count: how many; of a smaller target, all voxels are taken, of an empty one none.
        generator: source of randomness.

    Returns:
        (n, 3) whole (z, y, x).
    """
    voxels = np.flatnonzero(target)
    chosen = voxels[generator.choice(len(voxels), min(count, len(voxels)), replace=False)]
    return np.stack(np.unravel_index(chosen, target.shape), -1)


def random_points(size: Sequence[int], count: int, generator: np.random.Generator) -> np.ndarray:
    """Voxels of a whole crop, each equally likely, drawn independently as the reference draws them.

    Args:
        size: voxels (z, y, x).
        count: how many.
        generator: source of randomness.

    Returns:
        (count, 3) whole (z, y, x).
    """
    return generator.integers(0, tuple(size), (count, 3))


def correcting_click(
    prediction: np.ndarray, target: np.ndarray, spacing: Sequence[float] = (1, 1, 1)
) -> tuple[tuple[int, int, int], int] | None:
    """The click with which a user would correct a mask: in the middle of its largest connected error.

    Missed and surplus voxels are split into connected parts (faces, edges, corners). Of the part with the most voxels,
    it is the voxel farthest from the part's surface; of several, the one nearest to the part's centre of mass. Parts of
    the same size: missed before surplus, then the first in the order of the array; voxels alike.

    Args:
        prediction: bool, (z, y, x).
        target: bool, of the same shape.
        spacing: of the voxels along z, y, x, in any unit.

    Returns:
        the click (z, y, x) and its sign, 1 where target was missed and -1 where there should be none; ``None`` if
        nothing is wrong.

    Raises:
        ValueError: for masks of different shapes.
    """
    if prediction.shape != target.shape:
        raise ValueError(f"the prediction has the shape {prediction.shape}, the target {target.shape}")
    prediction, target = prediction.astype(bool), target.astype(bool)
    missed, surplus = _largest_part(target & ~prediction), _largest_part(prediction & ~target)
    if missed is None and surplus is None:
        return None
    corner, part = max((error for error in (missed, surplus) if error), key=lambda error: error[1].sum())
    sign = 1 if missed is not None and part is missed[1] else -1
    depth = ndimage.distance_transform_edt(np.pad(part, 1), spacing)[1:-1, 1:-1, 1:-1]
    deepest = np.argwhere(depth == depth.max())
    from_middle = (deepest - ndimage.center_of_mass(part)) * np.asarray(spacing)
    z, y, x = (corner + deepest[np.argmin((from_middle**2).sum(1))]).tolist()
    return (z, y, x), sign


def _largest_part(error: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Corner and mask of the bounding box of the largest connected part; ``None`` without any."""
    numbers, count = ndimage.label(error, TOUCHING)
    if not count:
        return None
    largest = 1 + int(np.argmax(np.bincount(numbers.ravel())[1:]))
    box = ndimage.find_objects(numbers, largest)[largest - 1]
    return np.array([side.start for side in box]), numbers[box] == largest


def click_generator(seed: int, case: str, count: int) -> np.random.Generator:
    """Random numbers that depend on nothing but these three: not on other cases, their order, or an interruption."""
    return np.random.default_rng([seed, crc32(case.encode()), count])


def random_target_voxels(target: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """Different voxels of the target, each equally likely.

    Args:
        target: bool, (z, y, x).
        count: how many; of a smaller target, all voxels are taken.
        generator: source of randomness.

    Returns:
        (n, 3) whole (z, y, x), in the order of the clicks.

    Raises:
        ValueError: for an empty target.
    """
    voxels = np.argwhere(target)
    if not len(voxels):
        raise ValueError("no voxel of the target to click on: leave such cases out before")
    return voxels[generator.permutation(len(voxels))[:count]]
