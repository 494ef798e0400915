"""Seeded clicks on a target: pure functions of a mask, a seed and names."""

from __future__ import annotations

from zlib import crc32

import numpy as np


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
