"""Clicks as a table (CSV), of one case or many."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path

from nnunetv2_sam3d.clicks.click import (
    ClickError,
    ClickFile,
    FileClick,
    finite_position,
    parse_sign,
    parse_space,
    split_lines,
)
from nnunetv2_sam3d.messages import shown

# Columns that say what they are; l, p, s and r, a, s are those of 3D Slicer's exported tables.
_NAMED_SPACES = {("l", "p", "s"): "LPS", ("r", "a", "s"): "RAS", ("i", "j", "k"): "ijk"}
_XYZ = ("x", "y", "z")
_OPTIONAL = {"case", "space", "label", "sign", "order"}
_SLICER = {"defined", "selected", "visible", "locked", "description"}  # in its exported tables


def read_csv(path: Path, text: str) -> ClickFile:
    """A CSV with a header; separated by commas, semicolons or tabs.

    The columns of the position are ``x, y, z`` with the space in a column ``space`` or a first line ``# space = LPS``,
    or they name the space: ``i, j, k``, ``l, p, s``, ``r, a, s``. ``case``, ``label``, ``sign``, ``order`` may follow.

    Raises:
        ClickError: for other columns and values, naming the line.
    """
    comments, lines = split_lines(text)
    if not lines:
        raise ClickError("it holds comments only; expected a line with the names of the columns")
    first = lines[0][1]
    rows = csv.reader([line for _, line in lines], delimiter=max(",;\t", key=first.count), skipinitialspace=True)
    header = [name.strip().casefold() for name in next(rows)]
    axes, space = _position_columns(header, _space_of(comments))
    clicks: list[FileClick] = []
    orders: list[float] = []
    passed_over = 0
    for (line, _), row in zip(lines[1:], rows, strict=False):
        try:
            if len(row) != len(header):
                raise ClickError(f"it has {len(row)} columns, the header has {len(header)}; quote texts with commas")
            values = {name: value.strip() for name, value in zip(header, row, strict=True)}
            if not _is_defined(values.get("defined", "1")):
                passed_over += 1
                continue
            clicks.append(_click(len(clicks) + 1, values, axes, space))
            orders.append(_order(values["order"]) if "order" in header else 0.0)
        except ClickError as error:
            raise ClickError(f"line {line}: {error}") from error
    in_order = sorted(range(len(clicks)), key=orders.__getitem__)
    return ClickFile(path, tuple(clicks[index] for index in in_order), passed_over=passed_over)


def _space_of(comments: Sequence[str]) -> str | None:
    """The value of a comment ``space = LPS`` or ``space: LPS``."""
    for comment in comments:
        name, _, value = comment.partition("=" if "=" in comment else ":")
        if name.strip() == "space" and value:
            return value.strip()
    return None


def _is_defined(value: str) -> bool:
    """What Slicer's exported tables say of a point: whether it has been placed."""
    if value.casefold() not in ("0", "1", "false", "true"):
        raise ClickError(
            f"its column defined is {shown(value)}, expected 1 (a click) or 0 (a point that was not placed)"
        )
    return value.casefold() in ("1", "true")


def _position_columns(header: list[str], comment: str | None) -> tuple[tuple[str, ...], str | None]:
    """Names of the position's columns, and the space of all clicks if it is not given line by line."""
    if len(set(header)) < len(header):
        raise ClickError(f"its header names a column twice: {', '.join(header)[:200]}")
    found = [axes for axes in (*_NAMED_SPACES, _XYZ) if set(axes) <= set(header)]
    if len(found) != 1:
        raise ClickError(
            f"its columns are {', '.join(header)[:200]}; expected x, y, z and space, or i, j, k, or l, p, s, or r, a, s"
        )
    axes = found[0]
    if unknown := sorted(set(header) - set(axes) - _OPTIONAL - _SLICER):
        raise ClickError(f"it has unknown columns {shown(unknown, 200)}; known are {', '.join(sorted(_OPTIONAL))}")
    named = _NAMED_SPACES.get(axes)
    if named is None and comment is None and "space" not in header:
        raise ClickError(
            "it does not say in which space x, y, z are: add a column space, or a line # space = LPS (or RAS, ijk)"
        )
    given = None if comment is None else parse_space(comment)
    if named and given and named != given:
        raise ClickError(f"its columns {', '.join(axes)} are {named}, but its comment says {given}; remove one of them")
    return axes, named or given


def _click(number: int, values: dict[str, str], axes: tuple[str, ...], space: str | None) -> FileClick:
    own = parse_space(values["space"]) if values.get("space") else space
    if own is None:
        raise ClickError("its space is missing")
    if space is not None and own != space:
        raise ClickError(f"its space is {own}, but that of the whole file is {space}; remove one of them")
    try:
        position = finite_position([float(values[axis]) for axis in axes])
    except ValueError as error:
        given = ", ".join(values[axis] for axis in axes)
        raise ClickError(f"its position is {given!r:.60}, expected three finite numbers") from error
    if own == "zyx":
        position = position[::-1]  # the columns say which number is which
    if "case" in values and not values["case"]:
        raise ClickError("its case is missing")
    text, case = values.get("label", ""), values.get("case")
    if "defined" in values:
        return FileClick(number, position, own, names=(text, values.get("description", "")), case=case)
    label = int(text) if re.fullmatch(r"\d{1,5}", text) else text or None
    return FileClick(number, position, own, label, parse_sign(values.get("sign") or "foreground"), case=case)


def _order(value: str) -> float:
    try:
        order = float(value)
    except ValueError:
        order = float("nan")
    if order != order:
        raise ClickError(f"its order is {shown(value)}, expected a number")
    return order
