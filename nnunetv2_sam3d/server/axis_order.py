"""How the axes of a viewer's volume lie to those that a model was trained with.

No direction is on the wire: the client sends an array and the spacing along its axes, called k, j and i (i runs
fastest). A file that nnU-Net's reader opened has the axes (z, y, x), and the model knows structures in that order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NAMES = "kji"  # the axes of an array on the wire, in their order
Voxel = tuple[float, float, float]


@dataclass(frozen=True)
class AxisOrder:
    """Which axis of the viewer's volume is which of the model's, and which ones run backwards.

    Attributes:
        order: for the model's axes z, y, x, the viewer's axis 0, 1 or 2.
        reversed: for the model's axes z, y, x, whether that axis runs the other way.
    """

    order: tuple[int, int, int] = (0, 1, 2)
    reversed: tuple[bool, bool, bool] = (False, False, False)

    @classmethod
    def parse(cls, order: str = NAMES, flip: str = "") -> AxisOrder:
        """From ``ikj`` (the model's z is the viewer's i, y is k, x is j) and the viewer's axes that are reversed.

        Raises:
            ValueError: for anything but the three letters, each once, and some of them.
        """
        order, flip = order.lower(), flip.lower()
        if sorted(order) != sorted(NAMES):
            raise ValueError(f"--axes takes the letters k, j and i in some order, for instance ikj, got {order!r}")
        if not set(flip) <= set(NAMES) or len(set(flip)) < len(flip):
            raise ValueError(f"--flip takes some of the letters k, j and i, each once, got {flip!r}")
        a, b, c = list(order)
        return cls((NAMES.index(a), NAMES.index(b), NAMES.index(c)), (a in flip, b in flip, c in flip))

    @property
    def name(self) -> str:
        """The order as ``--axes`` takes it."""
        return "".join(NAMES[axis] for axis in self.order)

    @property
    def flipped(self) -> str:
        """The axes as ``--flip`` takes them."""
        return "".join(NAMES[axis] for axis, back in zip(self.order, self.reversed, strict=True) if back)

    def to_model(self, array: np.ndarray) -> np.ndarray:
        """A view of an array (..., k, j, i) with the model's axes (..., z, y, x)."""
        before = array.ndim - 3
        moved = array.transpose(*range(before), *(before + axis for axis in self.order))
        return np.flip(moved, tuple(before + axis for axis, back in enumerate(self.reversed) if back))

    def from_model(self, array: np.ndarray) -> np.ndarray:
        """A view of an array (z, y, x) with the viewer's axes (k, j, i): undoes :meth:`to_model`."""
        back = np.flip(array, tuple(axis for axis, back in enumerate(self.reversed) if back))
        return back.transpose(np.argsort(self.order))

    def sizes(self, values: Sequence[float]) -> tuple[float, float, float]:
        """Spacing or shape along (k, j, i) as the model's (z, y, x)."""
        a, b, c = (values[axis] for axis in self.order)
        return a, b, c

    def point(self, voxel: Sequence[float], shape: Sequence[int]) -> Voxel:
        """A voxel (k, j, i) of a volume of that shape (k, j, i) as the model's (z, y, x)."""
        a, b, c = (
            shape[axis] - 1 - voxel[axis] if back else voxel[axis]
            for axis, back in zip(self.order, self.reversed, strict=True)
        )
        return a, b, c
