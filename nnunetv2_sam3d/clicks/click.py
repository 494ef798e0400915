"""A click, as everything in this package knows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

FOREGROUND = 1
BACKGROUND = -1


class ClickError(ValueError):
    """A click or its file cannot be used; names the file, the click, what was expected, and what helps."""


@dataclass(frozen=True)
class Click:
    """A place that somebody marked in an image.

    Attributes:
        zyx: voxels of the image array as nnU-Net's reader gives it, before any preprocessing; the centre of a voxel is
            a whole number, fractions are allowed.
        label: what was marked, by its name in ``dataset.json``, or by its number where no name stands for that number
            alone; ``None`` if the click does not say.
        sign: 1 for a place in the structure, -1 for a place outside it.

    Raises:
        ClickError: for anything else.
    """

    zyx: tuple[float, float, float]
    label: str | int | None = None
    sign: int = FOREGROUND

    def __post_init__(self) -> None:
        object.__setattr__(self, "zyx", finite_position(tuple(self.zyx)))  # an array's row, too
        if type(self.sign) is not int or self.sign not in (FOREGROUND, BACKGROUND):
            raise ClickError(f"a click's sign is 1 (foreground) or -1 (background), got {self.sign!r}")
        if self.label is not None and type(self.label) not in (str, int):
            raise ClickError(f"a click's label is a name, a number or None, got {self.label!r:.100}")


def finite_position(values: object) -> tuple[float, float, float]:
    """Three finite numbers, as floats; ClickError for anything else."""
    if isinstance(values, Sequence) and not isinstance(values, str) and len(values) == 3:
        try:
            a, b, c = (float(value) for value in values if not isinstance(value, str | bool))
        except (TypeError, ValueError, OverflowError):
            pass
        else:
            if isfinite(a) and isfinite(b) and isfinite(c):
                return a, b, c
    raise ClickError(f"a position is three finite numbers, got {values!r:.100}")
