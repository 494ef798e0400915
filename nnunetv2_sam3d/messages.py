"""Words of messages: short where many things are concerned, and bounded whatever a file holds."""

from __future__ import annotations

import reprlib
from collections.abc import Collection
from typing import Any

_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother, _SHORT.maxlong = 2, 60, 60, 40
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = _SHORT.maxset = _SHORT.maxfrozenset = _SHORT.maxdeque = 4


def some(names: Collection[Any], limit: int = 3) -> str:
    """``a, b, c and 4 more``: the first of many, and how many others there are."""
    shown = ", ".join(str(name) for name, _ in zip(names, range(limit), strict=False))
    return f"{shown} and {len(names) - limit} more" if len(names) > limit else shown


def shown(value: Any, limit: int = 60) -> str:
    """A value of a stranger's file in at most ``limit`` letters.

    Two levels of it and four entries of each are looked at: ``repr`` builds all of a value before anything is cut off,
    and lists that share their entries can be of a few bytes in a file and of gigabytes as text.
    """
    text = _SHORT.repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
