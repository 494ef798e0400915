"""Whether a volume has the axes of the training, judged by spacing and shape, as no direction is on the wire.

Only the order of the axes can be told: which one the slices are stacked along. An axis that runs backwards, or rows and
columns that are swapped within square slices, leave no trace in spacing and shape.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np

from nnunetv2_sam3d.server.axis_order import NAMES, AxisOrder

_EQUAL = 1.03  # ratio up to which two spacings are one
_DIFFERENT = 1.05  # ratio from which a spacing is another one than two equal ones
_CLEAR = 1.5  # ratio from which the order of three different spacings counts
_FITS, _OFF = 1.1, 1.15  # ratio of a length to the training's up to which a shape fits, and from which it does not

Order = tuple[int, ...]  # for each axis of the model, an axis of the volume


class WrongAxes(ValueError):
    """The volume's axes are in another order than the training's; says which, what helps, and how to pass over it.

    Attributes:
        finding: the first of the three.
        remedy: the second.
    """

    def __init__(self, finding: str, remedy: str) -> None:
        super().__init__(f"{finding}. {remedy}. If the volume is right as it is: --unchecked-axes")
        self.finding, self.remedy = finding, remedy

    @property
    def warning(self) -> str:
        """For those who have passed over it."""
        return f"{self.finding}. {self.remedy}"


@dataclass(frozen=True)
class TrainingGeometry:
    """Medians of the training's images along the model's axes z, y, x.

    Attributes:
        spacing: mm; ``None`` where the plans do not say.
        shape: voxels; ``None`` where the plans do not say.
    """

    spacing: tuple[float, ...] | None = None
    shape: tuple[float, ...] | None = None

    @classmethod
    def from_plans(cls, plans: Mapping[str, Any]) -> TrainingGeometry:
        """From nnU-Net's plans, in which both are transposed."""
        forward = list(plans.get("transpose_forward", (0, 1, 2)))

        def median(key: str) -> tuple[float, ...] | None:
            values = plans.get(key)
            if not isinstance(values, Sequence) or len(values) != 3 or sorted(forward) != [0, 1, 2]:
                return None
            found = tuple(float(values[forward.index(axis)]) for axis in range(3))
            return found if min(found) > 0 else None

        return cls(median("original_median_spacing_after_transp"), median("original_median_shape_after_transp"))

    def check(self, spacing: Sequence[float], shape: Sequence[float], axes: AxisOrder) -> str | None:
        """Holds a volume against the training.

        Args:
            spacing: mm, along the model's axes, where ``axes`` has put the volume's.
            shape: voxels, the same.
            axes: which axis of the volume went where.

        Returns:
            a warning if spacing and shape do not tell the axes apart; ``None`` if they agree with the training's.

        Raises:
            WrongAxes: if they are in another order.
        """
        if self.spacing is None:
            return (
                "the model's plans do not say what its images were like: nobody checks the order of the volume's axes"
            )
        own: Order = (0, 1, 2)
        possible = [order for order in permutations(range(3)) if self._spacing_allows(_ordered(spacing, order))]
        fitting = [order for order in possible if self._ratio(_ordered(shape, order)) <= _FITS]
        if own not in possible or (fitting and self._ratio(shape) > _OFF):
            raise WrongAxes(*self._refusal(spacing, shape, axes, fitting or possible))
        if len(possible) > 2 and not (own in fitting and len(fitting) <= 2):
            return (
                f"spacing and shape of the volume ({_listed(spacing)} mm, {_listed(shape)} voxels) do not "
                f"tell its axes apart: make sure that it lies in the array as the training's images did ({self})"
            )
        return None

    def advice(self, axes: AxisOrder, *, refused: bool = True, asked: bool = False) -> str:
        """How volumes must lie, and whether that is checked: for people, before they send one.

        Args:
            axes: which axis of a volume goes where.
            refused: whether a volume in another order is.
            asked: whether a volume that cannot be judged is refused once.
        """
        wanted = f"lie in the array as the training's images do ({self.along(axes)})"
        shape = self.shape or (1, 1, 1)  # not looked at where the training's is not known
        if self.spacing is None or self.check(self.spacing, shape, AxisOrder()) is not None:
            return f"Make sure that a volume's axes {wanted}: nobody can tell them apart"
        if not refused:
            return f"Make sure that a volume's axes {wanted}: another order is taken, too"
        judged = "has to be sent twice" if asked else "is taken"
        return (
            f"A volume's axes must {wanted}: another order is refused where spacing and shape show it, but a volume "
            f"that cannot be judged {judged}"
        )

    def _spacing_allows(self, spacing: Sequence[float]) -> bool:
        """Whether spacings along the model's axes are in the training's order, as far as that can be told."""
        assert self.spacing is not None
        ours, theirs = _odd_one(self.spacing), _odd_one(spacing)
        if ours is not None and theirs is not None:
            return ours == theirs
        return not any(
            self.spacing[a] > _CLEAR * self.spacing[b] and spacing[b] > _CLEAR * spacing[a]
            for a, b in permutations(range(3), 2)
        )

    def _ratio(self, shape: Sequence[float]) -> float:
        """By how much the length that differs most differs from the training's; infinite if nobody knows those."""
        if self.shape is None:
            return float("inf")
        return max(max(a / b, b / a) for a, b in zip(shape, self.shape, strict=True))

    def _refusal(
        self, spacing: Sequence[float], shape: Sequence[float], axes: AxisOrder, orders: Sequence[Order]
    ) -> tuple[str, str]:
        """Finding and remedy."""
        names = ["".join(NAMES[axes.order[axis]] for axis in order) for order in orders[:2]]
        return (
            f"the volume's axes are not in the training's order. Along {', '.join(axes.name)} it has "
            f"{_listed(spacing)} mm and {_listed(shape)} voxels; the model was trained with {self}",
            f"Start the server with --axes {' or --axes '.join(names)}, or reorient the volume in the viewer first "
            "(3D Slicer: Orient Scalar Volume)",
        )

    def __str__(self) -> str:
        """For sentences: spacing and shape along z, y, x."""
        return self._lengths((0, 1, 2), "z, y, x")

    def along(self, axes: AxisOrder) -> str:
        """For sentences: spacing and shape along the axes k, j, i of a volume."""
        k, j, i = (axes.order.index(axis) for axis in range(3))
        return self._lengths((k, j, i), ", ".join(NAMES))

    def _lengths(self, order: Order, names: str) -> str:
        parts = [f"{' x '.join(f'{self.spacing[axis]:.3g}' for axis in order)} mm"] if self.spacing else []
        parts += [f"{' x '.join(f'{self.shape[axis]:.0f}' for axis in order)} voxels"] if self.shape else []
        return f"{' and '.join(parts)} along {names}" if parts else "images of unknown size"


def _odd_one(values: Sequence[float]) -> int | None:
    """The axis whose value differs from those of the other two, which are equal; ``None`` if there is none."""
    for axis in range(3):
        one, other = (values[b] for b in range(3) if b != axis)
        if max(one, other) <= _EQUAL * min(one, other):
            nearest = min(max(values[axis] / v, v / values[axis]) for v in (one, other))
            return axis if nearest > _DIFFERENT else None
    return None


def _ordered(values: Sequence[float], order: Order) -> list[float]:
    return [values[axis] for axis in order]


def _listed(values: Sequence[float]) -> str:
    return " x ".join(f"{value:.4g}" for value in values)


class Confirmations:
    """Volumes that cannot be told, refused once with the warning: viewers show refusals, and nothing of a good answer.

    Args:
        seconds: for which the same volume is then taken, in any session: a viewer may begin another one.
    """

    def __init__(self, seconds: float = 600.0) -> None:
        self._seconds = seconds
        self._refused: dict[tuple[object, ...], float] = {}

    def ask(self, warning: str, image: np.ndarray, spacing: Sequence[float]) -> None:
        """Raises ValueError unless it has done so lately.

        Args:
            warning: to be shown.
            image: as the viewer sent it.
            spacing: mm, the same.
        """
        now = time.monotonic()
        volume = (zlib.crc32(np.ascontiguousarray(image).data), *image.shape, *spacing)
        self._refused = {key: when for key, when in self._refused.items() if now - when < self._seconds}
        if volume not in self._refused:
            self._refused[volume] = now
            raise ValueError(f"{warning}. Is it right as it is? Then send it again: it will be taken")
