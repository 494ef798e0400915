"""Which channel of a model belongs to a class of another data set. Imports no PyTorch, for the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nnunetv2_sam3d.messages import shown


def parse_class_map(texts: Sequence[str]) -> dict[str, int]:
    """``["tumour=1"]`` -> ``{"tumour": 1}``: the data set's label or region, and the file's channel for it.

    Raises:
        ValueError: for text of another form.
    """
    chosen = {}
    for text in texts:
        name, equals, channel = text.rpartition("=")
        if not name or not channel.isdecimal() or name in chosen:
            raise ValueError(
                f"--map-class takes NAME=CHANNEL, each name once: a label or region of the data set and the channel of "
                f"the file that knows it, for instance tumour=1; got {text!r}"
            )
        chosen[name] = int(channel)
    return check_class_map(chosen)


def check_class_map(chosen: Any) -> dict[str, int]:
    """A class map as a setting or a file has it; ValueError if it is none."""
    if not isinstance(chosen, Mapping) or not all(
        isinstance(name, str) and type(channel) is int and channel >= 0 for name, channel in chosen.items()
    ):
        raise ValueError(f"map_class must be a table of channels by label or region, got {shown(chosen, 100)}")
    return dict(chosen)
