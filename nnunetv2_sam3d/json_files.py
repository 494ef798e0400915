"""JSON files that a disk, an editor or a cut-off copy may have damaged: every error names file, damage and remedy."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nnunetv2_sam3d.messages import shown

Form = Callable[[Any], bool]  # tells whether a value may stand where it stands


def is_text(value: Any) -> bool:
    """A name or a path."""
    return isinstance(value, str)


def is_whole_number(value: Any) -> bool:
    """A count; true and false are none, as little as they are numbers."""
    return type(value) is int


def is_number(value: Any) -> bool:
    """A figure, NaN included."""
    return type(value) in (int, float)


def is_table(value: Any) -> bool:
    """A JSON object."""
    return isinstance(value, dict)


def list_of(form: Form) -> Form:
    """A list with entries of a form."""
    return lambda value: isinstance(value, list) and all(map(form, value))


def table_of(form: Form) -> Form:
    """A table with values of a form."""
    return lambda value: isinstance(value, dict) and all(map(form, value.values()))


def entries(**forms: Form) -> Form:
    """A table that has at least these entries."""
    return lambda value: isinstance(value, dict) and all(k in value and form(value[k]) for k, form in forms.items())


def read_json(file: Path) -> Any:
    """Content of a JSON file.

    Raises:
        ValueError: if it is damaged, naming it; the text has no remedy yet.
        OSError: if it cannot be read.
    """
    try:
        text = file.read_text(encoding="utf-8")
        return json.loads(text)
    except RecursionError:
        reason = "its lists or tables lie too deep in each other"
    except UnicodeDecodeError:
        reason = "it is no text in UTF-8"
    except ValueError as error:
        reason = f"it is no JSON, {error}" if text.strip() else "it is empty"
    raise ValueError(f"{file} is damaged: {reason}")


def json_or_none(file: Path) -> Any:
    """Content of a JSON file that is made anew where it is absent or damaged; ``None`` then."""
    try:
        return read_json(file)
    except (OSError, ValueError):
        return None


def read_table(
    file: Path, remedy: str, forms: Mapping[str, Form] | None = None, optional: Mapping[str, Form] | None = None
) -> dict[str, Any]:
    """Content of a JSON file that holds a table.

    Args:
        file: to read.
        remedy: a sentence without its full stop, the end of every error.
        forms: of the entries that it must have.
        optional: of those that it may have; others are not looked at.

    Raises:
        ValueError: for any other content, naming file, entry and remedy.
        OSError: if the file cannot be read.
    """
    try:
        table = read_json(file)
    except ValueError as error:
        raise ValueError(f"{error}. {remedy}") from error
    if complaint := complaint_of(table, forms or {}, optional or {}):
        raise ValueError(f"{file} is damaged: {complaint}. {remedy}")
    return table


def complaint_of(table: Any, forms: Mapping[str, Form], optional: Mapping[str, Form]) -> str:
    """What is wrong with content that should be a table of these forms, the end of a sentence; empty if nothing is."""
    if not isinstance(table, dict):
        return "it holds no table"
    for name, form in {**optional, **forms}.items():
        if name in forms and name not in table:
            return f"it has no {name!r}"
        if name in table and not form(table[name]):
            return f"its {name!r} is {shown(table[name])}"
    return ""
