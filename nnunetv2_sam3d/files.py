"""Files: written whole or not at all, their SHA-256."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

A_DAY_S = 86400.0


def sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def content_sha256(content: Mapping[str, Any]) -> str:
    """SHA-256 of a table that goes into a JSON file, without its own entry ``sha256``."""
    return json_hash({key: value for key, value in content.items() if key != "sha256"})


def _digest(file: Any) -> str:
    """For Python 3.10, which has no hashlib.file_digest."""
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def json_hash(content: Any) -> str:
    """SHA-256 of what JSON can hold, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@contextmanager
def written_whole(path: str | os.PathLike[str], ending: str = "") -> Iterator[Path]:
    """Context with a file to write to, which takes the place of another only if the context ends without an error.

    The old file is never found damaged: it stays until the new one is whole and on the disk. Two writers at once have
    a file of their own each, and the last one that ends wins. What a killed writer left is deleted after a day.

    Args:
        path: the file that is to be there in the end.
        ending: that the file has to keep meanwhile, for writers that go by it.

    Raises:
        OSError: if the file cannot be written, for instance on a full disk, naming it and what is left untouched.
    """
    path = Path(path)
    name = path.name.removesuffix(ending)
    start = (
        f".{name if len(name.encode()) < 200 else hashlib.sha256(name.encode()).hexdigest()}."  # of 255 bytes at most
    )
    partial = path.with_name(f"{start}{secrets.token_hex(4)}.partial{ending}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _delete_left_over(path.parent, start, f".partial{ending}")
        yield partial
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        if not isinstance(error, (OSError, RuntimeError)):  # torch reports a full disk as RuntimeError
            raise
        kept = "The earlier file of that name is untouched. " if path.exists() else ""
        raise OSError(
            f"{path} could not be written: {error}. {kept}Free disk space or check the permissions of "
            f"{path.parent}, then run the command again."
        ) from error


def _delete_left_over(folder: Path, start: str, end: str) -> None:
    """Deletes what killed writers of a file left a day ago; a living one may be on another machine."""
    for file in folder.iterdir():
        if file.name.startswith(start) and file.name.endswith(end):
            with contextlib.suppress(OSError):
                if time.time() - file.stat().st_mtime > A_DAY_S:
                    file.unlink()


def write_whole(path: str | os.PathLike[str], write: Callable[[BinaryIO], Any]) -> None:
    """Calls a function with a binary file, see :func:`written_whole`."""
    with written_whole(path) as partial, open(partial, "wb") as file:
        write(file)


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes bytes, see :func:`written_whole`."""
    write_whole(path, lambda file: file.write(content))


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes UTF-8 with the line ends as they are, see :func:`written_whole`."""
    write_bytes(path, text.encode())


def write_json(path: str | os.PathLike[str], content: Any, indent: int = 1) -> None:
    """Writes JSON and a line end, see :func:`written_whole`."""
    write_text(path, json.dumps(content, indent=indent) + "\n")


def append_json_line(path: str | os.PathLike[str], content: Any) -> None:
    """Adds one line to a file of JSON lines, in one piece, after ending a line that a kill or a full disk cut off."""
    line = json.dumps(content).encode() + b"\n"
    with open(path, "ab+", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        if end:
            file.seek(end - 1)
            if file.read(1) != b"\n":
                line = b"\n" + line
        if file.write(line) != len(line):
            raise OSError(f"{path} could not be written to its end: the disk is full. Free space, then run it again")
