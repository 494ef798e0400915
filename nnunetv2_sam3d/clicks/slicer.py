"""Files of 3D Slicer's Markups module."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnunetv2_sam3d.clicks.click import (
    BACKGROUND,
    Click,
    ClickError,
    ClickFile,
    FileClick,
    check_count,
    finite_position,
    split_lines,
)
from nnunetv2_sam3d.clicks.geometry import Geometry
from nnunetv2_sam3d.files import write_json
from nnunetv2_sam3d.messages import shown, some

# vtkMRMLStorageNode's enumeration, which old files have instead of names.
_COORDINATE_SYSTEMS = {"LPS": "LPS", "RAS": "RAS", "0": "RAS", "1": "LPS"}
_FCSV_COLUMNS = "id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID"
_SCHEMA = (
    "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/"
    "markups-schema-v1.0.3.json#"
)
_DEFINED = "2"  # vtkMRMLMarkupsNode's PositionDefined; the others are undefined, preview, missing


def read_markups(path: Path, content: dict[str, Any]) -> ClickFile:
    """``.mrk.json``: the defined control points of all its lists of points.

    Source: markups-schema-v1.0.3.json and vtkMRMLMarkupsJsonStorageNode of 3D Slicer 5.

    Raises:
        ClickError: for other markups (lines, curves, ...) and what the schema does not allow.
    """
    markups = content["markups"]
    if not isinstance(markups, list) or not all(isinstance(markup, dict) for markup in markups):
        raise ClickError('expected a list of "markups", as 3D Slicer saves them')
    lists = [markup for markup in markups if markup.get("type") == "Fiducial"]
    if not lists:
        kinds = (
            some(
                sorted(
                    {
                        f"{kind:.60}" if isinstance(kind := markup.get("type"), str) else shown(kind)
                        for markup in markups
                    }
                )
            )
            or "nothing"
        )
        raise ClickError(
            f"expected a list of points (Fiducial), found {kinds}: place points with Slicer's Markups module"
        )
    clicks: list[FileClick] = []
    passed_over = 0
    for markup in lists:
        space = _coordinate_system(markup.get("coordinateSystem", "LPS"))
        units = markup.get("coordinateUnits", "mm")
        if units != "mm" and not (isinstance(units, list) and units[:1] == ["mm"]):
            raise ClickError(f"its coordinates are in {shown(units)}, expected mm: save it in a scene whose unit is mm")
        points = markup.get("controlPoints", [])
        if not isinstance(points, list) or not all(isinstance(point, dict) for point in points):
            raise ClickError('expected a list of "controlPoints", as 3D Slicer saves them')
        check_count(len(clicks) + len(points))
        for point in points:
            if point.get("positionStatus", "defined") != "defined":
                passed_over += 1
                continue
            names = (point.get("label", ""), point.get("description", ""), markup.get("name", ""))
            number = len(clicks) + 1
            if not all(isinstance(name, str) for name in names):
                raise ClickError(
                    f"control point {number}: its label and description must be text, got {shown(names, 100)}"
                )
            try:
                position = finite_position(point.get("position"))
            except ClickError as error:
                raise ClickError(f"control point {number} ({names[0]:.60}): {error}") from error
            clicks.append(FileClick(number, position, space, names=names))
    return ClickFile(path, tuple(clicks), passed_over=passed_over)


def read_fcsv(path: Path, text: str) -> ClickFile:
    """Legacy ``.fcsv``, whose three first lines are comments; since Slicer 5.2 with two columns more than they name.

    Source: vtkMRMLMarkupsFiducialStorageNode of 3D Slicer.

    Raises:
        ClickError: without these comments, and for lines of another form.
    """
    comments, lines = split_lines(text)
    header = {key.strip(): value.strip() for key, found, value in (line.partition("=") for line in comments) if found}
    if "Markups fiducial file version" not in header:
        raise ClickError(
            'expected "# Markups fiducial file version = ..." in its first line; save it with Slicer 4.4 or newer, '
            "best as .mrk.json"
        )
    if header.get("columns", _FCSV_COLUMNS) != _FCSV_COLUMNS:
        raise ClickError(f"its columns are {shown(header['columns'], 200)}, expected {_FCSV_COLUMNS}")
    if "CoordinateSystem" not in header:
        raise ClickError('expected a line "# CoordinateSystem = LPS" (or RAS)')
    space = _coordinate_system(header["CoordinateSystem"])
    clicks: list[FileClick] = []
    passed_over = 0
    for number, row in enumerate(csv.reader(line for _, line in lines), 1):
        _check_row(number, row)
        if len(row) > 14 and row[14].strip() != _DEFINED:
            passed_over += 1
            continue
        try:
            position = finite_position([float(value) for value in row[1:4]])
        except ValueError as error:
            raise ClickError(
                f"point {number} ({row[11]:.60}): x, y, z are {shown(row[1:4])}, expected finite numbers"
            ) from error
        clicks.append(FileClick(len(clicks) + 1, position, space, names=(row[11], row[12] if len(row) > 12 else "")))
    return ClickFile(path, tuple(clicks), passed_over=passed_over)


def _check_row(number: int, row: Sequence[str]) -> None:
    """ClickError for a line that no version of Slicer has written; with decimal commas all columns would be others."""
    flags = dict(zip(("vis", "sel", "lock"), row[8:11], strict=False))
    added = dict(zip(("its status", "its lock"), row[14:16], strict=False))
    wrong = [f"{name} is {shown(value)}" for name, value in {**flags, **added}.items() if not _is_flag(value)]
    if not 12 <= len(row) <= 16 or wrong:
        raise ClickError(
            f"point {number} has {len(row)} columns{f', {some(wrong)}' if wrong else ''}; expected {_FCSV_COLUMNS}, "
            f"and of Slicer 5.2 and newer two numbers more. Are there decimal commas? Save it again, best as .mrk.json"
        )


def _is_flag(value: str) -> bool:
    return value.strip() in ("0", "1", "2", "3")


def write_markups(file: Path, clicks: Sequence[Click], geometry: Geometry) -> None:
    """Writes ``.mrk.json``, so that :func:`read_markups` gives the clicks back and 3D Slicer shows them.

    Args:
        file: replaced if it exists.
        clicks: in their order; label and sign become the points' names, as ``tumour-1`` and ``-tumour-2``.
        geometry: of their image.

    Raises:
        ClickError: for an image without patient coordinates.
    """
    positions = geometry.from_zyx([click.zyx for click in clicks], "LPS").tolist()
    points = [
        {
            "id": str(number),
            "label": f"{'-' if click.sign == BACKGROUND else ''}{'F' if click.label is None else click.label}-{number}",
            "position": position,
            "positionStatus": "defined",
        }
        for number, (click, position) in enumerate(zip(clicks, positions, strict=True), 1)
    ]
    markup = {"type": "Fiducial", "coordinateSystem": "LPS", "coordinateUnits": "mm", "controlPoints": points}
    write_json(file, {"@schema": _SCHEMA, "markups": [markup]})


def _coordinate_system(value: object) -> str:
    space = _COORDINATE_SYSTEMS.get(str(value).strip().upper()) if type(value) in (str, int) else None
    if space is None:
        raise ClickError(f"its coordinate system is {shown(value)}, expected LPS or RAS; save it again with 3D Slicer")
    return space
