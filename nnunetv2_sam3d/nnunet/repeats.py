"""Repeats of a training: the same plans under another name, with other random numbers.

Repeat 1 is the plans as they are. Repeat 2 is a copy of the file with ``plans_name`` ``<PLANS>_repeat2`` and the
setting ``repeat`` 2. So all repeats share the preprocessed data, every stock command works on each
(``-p <PLANS>_repeat2``), and a training starts from the finished model of its own repeat.
"""

from __future__ import annotations

import re

_NAME = re.compile(r"(?P<plans>.+)_repeat(?P<repeat>[2-9]|[1-9]\d+)")


def repeat_plans(plans: str, repeat: int) -> str:
    """Name of the plans of a repeat: ``("P", 1)`` -> ``"P"``, ``("P", 2)`` -> ``"P_repeat2"``.

    Raises:
        ValueError: for repeats below 1, and for further repeats of what is one already.
    """
    if repeat < 1:
        raise ValueError(f"repeats are counted from 1, got {repeat}")
    if repeat == 1:
        return plans
    if repeat_of(plans)[1] != 1:
        raise ValueError(f"{plans} are a repeat themselves; name the plans that they repeat: {repeat_of(plans)[0]}")
    return f"{plans}_repeat{repeat}"


def repeat_of(plans: str) -> tuple[str, int]:
    """The plans that are repeated and the repeat's number: ``"P_repeat2"`` -> ``("P", 2)``, ``"P"`` -> ``("P", 1)``."""
    match = _NAME.fullmatch(plans)
    return (match["plans"], int(match["repeat"])) if match else (plans, 1)
