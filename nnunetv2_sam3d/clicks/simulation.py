"""The clicks of training and validation steps: the same for the same epoch, step and process, also after a restart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import Tensor

from nnunetv2_sam3d.clicks.presets import ClickTraining
from nnunetv2_sam3d.clicks.sampling import correcting_click, random_points, target_points
from nnunetv2_sam3d.nnunet.labels import ClickTarget

CENTRE_SHARE = 0.5  # of the samples with any number of clicks: the first one is in the middle, where users click


# With signed clicks:
BACKGROUND_SHARE = 0.25  # of a sample's clicks after the first
BORDER_SHARE = 0.5  # of the background clicks, those near the target
BORDER_VOXELS = 8  # how far from it they may lie, along each axis
BORDER_TRIES = 64
CORRECTED_SHARE = 0.5  # of the steps with clicks, those in which the network's own error is clicked on
TRAINING, VALIDATION = 0, 1
ALL_PROCESSES = 0  # drawn alike in all of them; a process of its own draws as rank + 1


class Clicks(NamedTuple):
    """Clicks of a batch.

    Attributes:
        points: float32, (B, N, 3), (z, y, x) in voxels of the crops.
        signs: float32, (B, N), as :class:`~nnunetv2_sam3d.network_architecture.sam3d.SAM3D` takes them; 0 is padding.
    """

    points: np.ndarray
    signs: np.ndarray


@dataclass(frozen=True)
class SimulatedClicks:
    """Draws the clicks of steps.

    All batches of training have arrays of one shape, which a compiled network and several processes need. Places
    without a click are padding (sign 0).

    Args:
        training: how many.
        target: what is clicked on.
        signed: whether there are background clicks, too.
        seed: of everything.
    """

    training: ClickTraining
    target: ClickTarget
    signed: bool
    seed: int

    @property
    def max_points(self) -> int:
        """Clicks that a sample can have; the last place is the correcting click's."""
        return self.training.max_clicks + self.training.random_points + self.signed

    def is_automatic(self, epoch: int, step: int) -> bool:
        """Whether a training step has no clicks, in any process."""
        return self._generator(TRAINING, epoch, step).random() < self.training.automatic_share

    def is_corrected(self, epoch: int, step: int) -> bool:
        """Whether a training step gets correcting clicks, in every process."""
        automatic, corrected = self._generator(TRAINING, epoch, step).random(2)
        return self.signed and automatic >= self.training.automatic_share and corrected < CORRECTED_SHARE

    def for_training(self, target: np.ndarray, epoch: int, step: int, rank: int = 0) -> Clicks:
        """The clicks of a training step, without the correcting ones.

        Args:
            target: (B, 1, D, H, W) or (B, regions, D, H, W), as nnU-Net's loss gets it.
            epoch: from 0.
            step: of the epoch, from 0.
            rank: of the process.
        """
        clicks = self._empty(len(target), self.max_points)
        if not self.is_automatic(epoch, step):
            generator = self._generator(TRAINING, epoch, step, rank + 1)
            masks, ignored = self.target.masks(target), self.target.ignored(target)
            for sample, (mask, outside) in enumerate(zip(masks, ~(masks | ignored), strict=True)):
                points, signs = self._of_sample(mask, outside, generator)
                clicks.points[sample, : len(points)] = points
                clicks.signs[sample, : len(points)] = signs
        return clicks

    def corrected(self, clicks: Clicks, target: np.ndarray, logits: Tensor) -> Clicks:
        """Adds to each sample the click that corrects what the network makes of the clicks so far.

        Args:
            clicks: of the step, (B, N, 3) and (B, N); the last place of each sample is free.
            target: (B, 1, D, H, W) or (B, regions, D, H, W), as in :meth:`for_training`.
            logits: of the network with these clicks, (B, classes, D, H, W).
        """
        points, signs = clicks.points.copy(), clicks.signs.copy()
        masks, ignored = self.target.masks(target), self.target.ignored(target)
        predicted = self.target.predicted(logits) & ~ignored
        for sample, (prediction, mask) in enumerate(zip(predicted, masks, strict=True)):
            if (click := correcting_click(prediction, mask)) is not None:
                points[sample, -1], signs[sample, -1] = click
        return Clicks(points, signs)

    def for_validation(self, target: np.ndarray, epoch: int, step: int, rank: int = 0) -> Clicks:
        """Clicks on the target alone, as many as the preset validates with; none in samples without target.

        The arguments are those of :meth:`for_training`.
        """
        clicks = self._empty(len(target), self.training.validation_clicks)
        generator = self._generator(VALIDATION, epoch, step, rank + 1)
        for sample, mask in enumerate(self.target.masks(target)):
            points = target_points(mask, self.training.validation_clicks, generator)
            clicks.points[sample, : len(points)] = points
            clicks.signs[sample, : len(points)] = 1
        return clicks

    def _of_sample(
        self, mask: np.ndarray, outside: np.ndarray, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Clicks of one crop, (n, 3), and their signs, (n,); ``mask`` and ``outside`` are bool, (D, H, W)."""
        training = self.training
        count = training.max_clicks
        if training.fewer:
            weights = 1 / np.arange(1, training.max_clicks + 1)
            count = 1 + int(generator.choice(training.max_clicks, p=weights / weights.sum()))
        background = 0
        if self.signed:
            background = generator.binomial(count - 1, BACKGROUND_SHARE) if mask.any() else count
        foreground = target_points(mask, count - background, generator)
        if training.fewer and len(foreground) and generator.random() < CENTRE_SHARE:
            foreground[0], _ = correcting_click(np.zeros_like(mask), mask) or (foreground[0], 1)
        anywhere = random_points(mask.shape, training.random_points, generator)
        points = [foreground, anywhere, background_points(mask, outside, background, generator)]
        signs = np.repeat([1, 1, -1], [len(part) for part in points])
        return np.concatenate(points), signs

    def _generator(self, kind: int, epoch: int, step: int, process: int = ALL_PROCESSES) -> np.random.Generator:
        return np.random.default_rng([self.seed, kind, epoch, step, process])

    @staticmethod
    def _empty(samples: int, max_points: int) -> Clicks:
        return Clicks(np.zeros((samples, max_points, 3), np.float32), np.zeros((samples, max_points), np.float32))


def background_points(
    target: np.ndarray, outside: np.ndarray, count: int, generator: np.random.Generator
) -> np.ndarray:
    """Voxels that are not the target, some of them near it.

    Args:
        target: bool, (z, y, x); may be empty.
        outside: bool, where a background click may lie.
        count: how many.
        generator: source of randomness.

    Returns:
        (n, 3) whole (z, y, x), n < count only if there are fewer such voxels.
    """
    near = generator.binomial(count, BORDER_SHARE)
    found: np.ndarray = np.zeros((0, 3), np.int64)
    if near and target.any():
        steps = generator.integers(-BORDER_VOXELS, BORDER_VOXELS + 1, (near * BORDER_TRIES, 3))
        voxels = np.argwhere(target)
        found = voxels[generator.integers(0, len(voxels), len(steps))] + steps
        found = found[((found >= 0) & (found < target.shape)).all(1)]
        found = found[outside[tuple(found.T)]][:near]
    return np.concatenate([found, target_points(outside, count - len(found), generator)])
