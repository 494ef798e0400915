"""What the readers of all formats give: clicks as they stand in a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nnunetv2_sam3d.clicks.click import BACKGROUND, FOREGROUND, ClickError
from nnunetv2_sam3d.clicks.geometry import SPACES

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
        shown = "no label" if name in (None, "") else name
        return f"click {self.number} ({shown}) at ({', '.join(f'{value:g}' for value in self.position)}) {self.space}"


@dataclass(frozen=True)
class ClickFile:
    """What a file of clicks says.

    Attributes:
        file: where it is.
        clicks: in their order.
        image: name of the image file that the clicks were made on, if the file says so.
        geometry: some of ``image_size``, ``spacing``, ``origin`` and ``direction`` of that image, as ITK has them.
        of_prediction: whether a prediction left it beside its segmentation.
    """

    file: Path
    clicks: tuple[FileClick, ...]
    image: str | None = None
    geometry: Mapping[str, list[float]] = field(default_factory=dict)
    of_prediction: bool = False

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
    raise ClickError(f"its sign is {value!r:.50}; expected foreground or background (1 or -1)")


def parse_space(value: object) -> str:
    """One of :data:`SPACES`, whatever the case of its letters."""
    for space in SPACES:
        if isinstance(value, str) and value.strip().casefold() == space.casefold():
            return space
    raise ClickError(
        f"the space is {value!r:.50}; expected LPS or RAS (millimetres in the patient), ijk (voxels x, y, z) or zyx "
        "(voxels of the array)"
    )


def check_count(count: int) -> None:
    """ClickError for more clicks than people make."""
    if count > MAX_CLICKS:
        raise ClickError(f"it has {count} clicks, more than {MAX_CLICKS}: is it a mask or a surface instead?")
