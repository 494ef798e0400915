"""Pickles from strangers: what they cost is known from their bytes, before anything is built."""

from __future__ import annotations

import io
import pickle
import pickletools
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, BinaryIO

_TUPLES = {"EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"}
_GET, _PUT = {"GET", "BINGET", "LONG_BINGET"}, {"PUT", "BINPUT", "LONG_BINPUT"}
LONGEST_PATH = 4096


class CostError(ValueError):
    """What a file holds would cost far more than its length."""


def check_pickle(file: BinaryIO, bytes_left: int) -> int:
    """Reads one pickle without building anything, and refuses what would cost more than its length.

    Two things in a pickle are not bounded by its bytes. A place in the memo may have any number up to 2^32, and
    unpicklers keep a list of that length. And the hash of a tuple walks through all of its entries: tuples of tuples
    that share their entries are small in a file, but never end as the key of a table. Therefore what is taken out of
    the memo is counted with all of its entries.

    Args:
        file: at the beginning of the pickle; left behind its end.
        bytes_left: of the file from there on.

    Returns:
        the number of its operations.

    Raises:
        ValueError: for a pickle that costs more, is damaged or ends too early.
    """
    stack: list[int] = []  # for each object on it the tuples and entries of tuples that it consists of
    marks: list[int] = []
    memo: dict[int, int] = {}
    operations = taken = 0
    try:
        for code, argument, _ in pickletools.genops(file):
            operations += 1
            name = code.name
            if name == "MARK":
                marks.append(len(stack))
                continue
            if name in _PUT or name == "MEMOIZE":
                place = len(memo) if name == "MEMOIZE" else argument or 0
                if place > bytes_left:
                    raise CostError(f"it numbers an object {place}")
                memo[place] = stack[-1]
                continue
            if name in _GET or name == "DUP":
                stack.append(stack[-1] if name == "DUP" else memo[argument or 0])
                taken += stack[-1]
            else:
                _apply(code, stack, marks)
            if taken > bytes_left:
                raise CostError("its tuples hold each other over and over")
    except (IndexError, KeyError) as error:
        raise ValueError("it takes what was never put there") from error
    return operations


def _apply(code: pickletools.OpcodeInfo, stack: list[int], marks: list[int]) -> None:
    """What an operation does to the stack, by the names that Python's own description gives."""
    names = [entry.name for entry in code.stack_before]
    if "mark" in names:
        start = marks.pop()
        entries = stack[start:]
        del stack[start - names.index("mark") :]
    else:
        start = len(stack) - len(names)
        if start < 0:
            raise IndexError
        entries = stack[start:]
        del stack[start:]
    for _ in code.stack_after:
        stack.append(1 + sum(entries) if code.name in _TUPLES else 1)


class _PlainUnpickler(pickle.Unpickler):
    """Knows strings, numbers, containers and paths (as strings), nothing else; containers are of the file's size."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self._entries_left = len(data)

    def find_class(self, module: str, name: str) -> Any:
        # a new function each time, not the class: a file can set its attributes
        if module in ("builtins", "__builtin__") and name in ("set", "frozenset", "list", "dict"):
            kind = {"set": set, "frozenset": frozenset, "list": list, "dict": dict}[name]
            return lambda *entries: self._filled(kind, *entries)
        if (module, name) == ("collections", "OrderedDict"):
            return lambda *entries: self._filled(OrderedDict, *entries)
        if module in ("pathlib", "pathlib._local") and name in (
            "PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath",
        ):  # fmt: skip
            return lambda *parts: _joined(*parts)
        raise pickle.UnpicklingError(f"it holds an object of {module}.{name}, which could run code")

    def _filled(self, kind: Any, *entries: Any) -> Any:
        self._entries_left -= sum(len(given) for given in entries)
        if self._entries_left < 0:
            raise pickle.UnpicklingError("its containers are copied over and over")
        return kind(*entries)


def _joined(*parts: str) -> str:
    path = "/".join(parts)
    if len(path) > LONGEST_PATH:
        raise pickle.UnpicklingError(f"it holds a path of {len(path)} letters")
    return path


def load_plain(data: bytes) -> Any:
    """Strings, numbers, containers and paths from a pickle; nothing in it is run.

    Raises:
        ValueError: for anything else, and for pickles that cost more than their length; the text goes on from
            "it cannot be read: ".
    """
    try:
        check_pickle(io.BytesIO(data), len(data))
        return _PlainUnpickler(data).load()
    except (pickle.UnpicklingError, CostError) as error:
        raise ValueError(str(error)) from error
    except Exception as error:  # damaged pickles raise almost anything
        raise ValueError("it is damaged, or no pickle") from error


def check_sharing(content: Any, limit: int) -> None:
    """Refuses content that is small in memory and without end for whoever walks through it.

    Args:
        content: of lists, tuples, tables and anything else.
        limit: of its entries, each counted as often as it is reached.

    Raises:
        ValueError: for more entries, and for containers that hold themselves.
    """
    sizes: dict[int, int] = {}  # by id; what is being walked through has 0
    waiting: list[tuple[Any, bool]] = [(content, False)]
    while waiting:
        value, is_end = waiting.pop()
        entries = [*value.keys(), *value.values()] if isinstance(value, Mapping) else value
        if is_end:
            size = 1 + sum(sizes.get(id(entry), 1) for entry in entries)
            if size > limit:
                raise CostError(f"its lists and tables hold each other over and over, more than {limit} entries in all")
            sizes[id(value)] = size
        elif id(value) in sizes:
            if not sizes[id(value)]:
                raise CostError("one of its lists or tables holds itself")
        else:
            sizes[id(value)] = 0
            waiting.append((value, True))
            waiting.extend((entry, False) for entry in entries if isinstance(entry, Mapping | list | tuple | set))
