"""This package's own click files: JSON, see ``docs/clicks.schema.json``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from nnunetv2_sam3d.clicks.click import (
    FOREGROUND,
    SPACES,
    Click,
    ClickError,
    ClickFile,
    FileClick,
    check_count,
    finite_position,
    parse_sign,
    parse_space,
)
from nnunetv2_sam3d.clicks.geometry import Geometry
from nnunetv2_sam3d.files import write_json
from nnunetv2_sam3d.messages import shown

FORMAT = "nnunetv2_sam3d clicks"
VERSION = 1
_GEOMETRY = {"image_size": 3, "spacing": 3, "origin": 3, "direction": 9}
_KEYS = {"format", "version", "space", "image", "clicks", "provenance", *_GEOMETRY}
# Among the provenance of what predictions leave beside their segmentations: the version of this package.
PREDICTED_BY = "nnunetv2_sam3d"
_CLICK_KEYS = {"position", "label", "sign"}


def read_own_json(path: Path, content: Any) -> ClickFile:
    """Clicks from this package's format, already parsed; ClickError for anything that it does not describe."""
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ClickError(
            f'expected 3D Slicer\'s "markups" or "format": "{FORMAT}", found neither; it may be another kind of JSON'
        )
    if content.get("version") != VERSION or type(content["version"]) is not int:
        raise ClickError(
            f"its version is {shown(content.get('version'))}, this package reads {VERSION}: install a newer package"
        )
    _check_keys(content, _KEYS, "the file")
    if "space" not in content:
        raise ClickError(f'it does not say in which space the clicks are; add "space": one of {", ".join(SPACES)}')
    space = parse_space(content["space"])
    image = content.get("image")
    if not isinstance(image, str | None):
        raise ClickError(f'"image" must be the name of a file, got {shown(image)}')
    if not isinstance(content.get("provenance", {}), dict):
        raise ClickError('"provenance" must be a table')
    geometry = {key: _numbers(key, content[key], count) for key, count in _GEOMETRY.items() if key in content}
    items = content.get("clicks")
    if not isinstance(items, list):
        raise ClickError('expected a list of "clicks"')
    check_count(len(items))
    clicks = []
    for number, item in enumerate(items, 1):
        try:
            clicks.append(_json_click(number, item, space))
        except ClickError as error:
            raise ClickError(f"click {number}: {error}") from error
    return ClickFile(path, tuple(clicks), image, geometry, PREDICTED_BY in content.get("provenance", {}))


def _json_click(number: int, item: Any, space: str) -> FileClick:
    if not isinstance(item, dict):
        raise ClickError(f'expected {{"position": [...], "label": ..., "sign": ...}}, got {shown(item)}')
    _check_keys(item, _CLICK_KEYS, "a click")
    label = item.get("label")
    if label is not None and type(label) not in (str, int):
        raise ClickError(f"its label is {shown(label)}; expected a name or a number of dataset.json")
    return FileClick(
        number, finite_position(item.get("position")), space, label, parse_sign(item.get("sign", FOREGROUND))
    )


def _check_keys(content: Mapping[str, Any], known: set[str], where: str) -> None:
    if unknown := sorted(set(content) - known):
        raise ClickError(f"{where} has unknown entries {shown(unknown, 200)}; known are {sorted(known)}")


def _numbers(key: str, value: Any, count: int) -> list[float]:
    if (
        not isinstance(value, list)
        or len(value) != count
        or not all(type(number) in (int, float) and isfinite(number) for number in value)
    ):
        raise ClickError(f"{key!r} must be {count} numbers, got {shown(value, 100)}")
    return [float(number) for number in value]


def write_clicks(
    file: str | os.PathLike[str],
    clicks: Sequence[Click],
    geometry: Geometry | None = None,
    *,
    space: str = "zyx",
    image: str | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Writes clicks as this package's JSON, so that :func:`read_clicks` gives them back.

    Args:
        file: ends in ``.json``; replaced if it exists.
        clicks: in their order.
        geometry: of their image; needed for other spaces than ``zyx``, and written for checking.
        space: one of :data:`SPACES`.
        image: name of the image file.
        provenance: anything that is to be noted beside the clicks; plays no role in reading.

    Raises:
        ClickError: for millimetres in an image without patient coordinates.
    """
    path = Path(file)
    if geometry is None and space != "zyx":
        raise ValueError(f"the geometry of the image is needed to write clicks in {space}")
    content: dict[str, Any] = {"format": FORMAT, "version": VERSION, "space": space}
    if image is not None:
        content["image"] = image
    positions = [click.zyx for click in clicks]
    if geometry is not None:
        content |= geometry.description()
        positions = geometry.from_zyx(positions, space).tolist()
    content["clicks"] = [
        {"position": list(position)}
        | ({} if click.label is None else {"label": click.label})
        | {"sign": "foreground" if click.sign == FOREGROUND else "background"}
        for click, position in zip(clicks, positions, strict=True)
    ]
    if provenance is not None:
        content["provenance"] = dict(provenance)
    write_json(path, content)
