"""A click, as everything in this package knows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import StringIO
from math import isfinite
from pathlib import Path

from nnunetv2_sam3d.messages import shown

# LPS and RAS: millimetres in the patient. ijk: voxel (x, y, z) of the file. zyx: voxel of nnU-Net's array.
SPACES = ("LPS", "RAS", "ijk", "zyx")
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
    raise ClickError(f"a position is three finite numbers, got {shown(values, 100)}")


MAX_CLICKS = 10_000
SIGNS = {"foreground": FOREGROUND, "background": BACKGROUND, "1": FOREGROUND, "+1": FOREGROUND, "-1": BACKGROUND}


@dataclass(frozen=True)
class FileClick:
    """A click as a file has it.

    Attributes:
        number: place among the clicks of the file, from 1.
        position: in the space of the file.
        space: one of :data:`SPACES`.
        label: name or number, ``None`` if the file has none.
        sign: 1 or -1.
        names: in files of 3D Slicer, instead of label and sign: the control point's label, its description, and the
            name of its list, from which :func:`~nnunetv2_sam3d.clicks.slicer_names.understand` takes both.
        case: in tables of several cases, which one.
    """

    number: int
    position: tuple[float, float, float]
    space: str
    label: str | int | None = None
    sign: int = FOREGROUND
    names: tuple[str, ...] = ()
    case: str | None = None

    def __str__(self) -> str:
        """For errors: enough to find the click in its file."""
        name = self.names[0] if self.names else self.label
        called = "no label" if name in (None, "") else f"{name:.60}" if isinstance(name, str) else name
        return f"click {self.number} ({called}) at ({', '.join(f'{value:g}' for value in self.position)}) {self.space}"


@dataclass(frozen=True)
class ClickFile:
    """What a file of clicks says.

    Attributes:
        file: where it is.
        clicks: in their order.
        image: name of the image file that the clicks were made on, if the file says so.
        geometry: some of ``image_size``, ``spacing``, ``origin`` and ``direction`` of that image, as ITK has them.
        of_prediction: whether a prediction left it beside its segmentation.
        passed_over: points of the file that are no clicks, as they were deleted or never placed.
    """

    file: Path
    clicks: tuple[FileClick, ...]
    image: str | None = None
    geometry: Mapping[str, list[float]] = field(default_factory=dict)
    of_prediction: bool = False
    passed_over: int = 0

    @property
    def has_cases(self) -> bool:
        """Whether it is a table that names the case of each click."""
        return any(click.case is not None for click in self.clicks)


def parse_sign(value: object) -> int:
    """``foreground``, ``background``, 1 or -1, as number or text."""
    if isinstance(value, str | int) and not isinstance(value, bool):
        sign = SIGNS.get(str(value).strip().casefold())
        if sign is not None:
            return sign
    raise ClickError(f"its sign is {shown(value)}; expected foreground or background (1 or -1)")


def parse_space(value: object) -> str:
    """One of :data:`SPACES`, whatever the case of its letters."""
    for space in SPACES:
        if isinstance(value, str) and value.strip().casefold() == space.casefold():
            return space
    raise ClickError(
        f"the space is {shown(value)}; expected LPS or RAS (millimetres in the patient), ijk (voxels x, y, z) or zyx "
        "(voxels of the array)"
    )


def check_count(count: int) -> None:
    """ClickError for more clicks than people make."""
    if count > MAX_CLICKS:
        raise ClickError(f"it has {count} clicks or more; at most {MAX_CLICKS} are read. Is it a mask or a surface?")


def split_lines(text: str, comment_mark: str = "#") -> tuple[list[str], list[tuple[int, str]]]:
    """Comments without their mark, and the other lines that are not empty with their numbers, from 1.

    Raises:
        ClickError: for more lines than a file of clicks has, before all of them are split.
    """
    comments: list[str] = []
    lines: list[tuple[int, str]] = []
    for number, line in enumerate(StringIO(text, newline=None), 1):
        if line.startswith(comment_mark):
            comments.append(line[len(comment_mark) :].strip())
        elif line.strip():
            lines.append((number, line.rstrip("\n")))
        check_count(max(len(comments), len(lines) - 1))  # the first line may name the columns
    return comments, lines
