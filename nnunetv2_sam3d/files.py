"""Files: written whole or not at all, their SHA-256."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO


def write_json(file: Path, content: Any) -> None:
    """Writes JSON whole or not at all."""
    write_whole(file, lambda out: out.write(json.dumps(content, indent=1).encode()))


def sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file: Any) -> str:
    """For Python 3.10, which has no hashlib.file_digest."""
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def write_whole(path: str | os.PathLike[str], write: Callable[[BinaryIO], Any]) -> None:
    """Writes a file that is never found damaged: the old one stays until the new one is whole.

    Raises:
        OSError: if the file cannot be written, for instance on a full disk, naming it and what is left untouched.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            write(file)
            file.flush()
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
