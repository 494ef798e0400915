"""Weights in several files, as Hugging Face's libraries write what is large: shards, and an index beside them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nnunetv2_sam3d.messages import shown, some
from nnunetv2_sam3d.weights.errors import WeightsError

SHARD = re.compile(r"(?P<name>.+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})(?P<ending>\.[a-z]+)")
FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{,199}")
INDEX_ENDING = ".index.json"
MAX_INDEX_BYTES = 16 << 20


def index_of(path: Path) -> Path | None:
    """The index of the set that a file belongs to; ``None`` for a file that is a whole by itself.

    Raises:
        WeightsError: for one of several shards without an index beside it.
    """
    if path.name.endswith(INDEX_ENDING):
        return path
    match = SHARD.fullmatch(path.name)
    if match is None or int(match["count"]) < 2:
        return None
    index = path.with_name(f"{match['name']}{match['ending']}{INDEX_ENDING}")
    if not index.is_file():
        raise WeightsError(
            f"{path} is number {int(match['number'])} of {int(match['count'])} files that hold the weights together. "
            f"Put the others and their index, {index.name}, beside it"
        )
    return index


def read_shards(index: Path, read: Callable[[Path], Any]) -> dict[str, Any]:
    """All weights of a set, as if they stood in one file.

    Args:
        index: ``model.safetensors.index.json`` or the like; its ``weight_map`` names the file of each weight.
        read: reads one of the files.

    Raises:
        WeightsError: for a damaged index, and files that are absent or do not hold what the index says.
    """
    names = _weight_map(index)
    files = sorted(set(names.values()))
    if absent := [file for file in files if not (index.parent / file).is_file()]:
        raise WeightsError(
            f"{index} names {len(files)} files, and {len(absent)} are absent: {some(absent)}. Fetch them"
        )
    weights: dict[str, Any] = {}
    for file in files:
        content = read(index.parent / file)
        expected = {name for name, where in names.items() if where == file}
        if not isinstance(content, Mapping) or set(content) != expected:
            raise WeightsError(
                f"{index}: {file} does not hold the weights that the index says; files of two sets lie in one "
                f"folder, or one is damaged. Fetch all of them again"
            )
        weights |= content
    return weights


def _weight_map(index: Path) -> dict[str, str]:
    if (size := index.stat().st_size) > MAX_INDEX_BYTES:
        raise WeightsError(f"{index} has {size} bytes, too many for an index")
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        names = content["weight_map"]
        sound = bool(names) and all(isinstance(file, str) for file in names.values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{index} is no index of weights ({type(error).__name__}); fetch it again") from error
    if not sound:
        raise WeightsError(f"{index} is no index of weights: its weight_map names no files; fetch it again")
    if strange := [file for file in names.values() if not FILE_NAME.fullmatch(file)]:
        raise WeightsError(f"{index} names {shown(strange[0])}, which is no file beside it, so it is refused")
    return names
