"""Reading weights files from strangers: never runs code in them, and says what is wrong with a file."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from nnunetv2_sam3d.weights.errors import WeightsError

# What checkpoints hold beside tensors and plain types: NumPy numbers (losses, scores). Nothing of it can run code.
# The second scalar is its name in files that NumPy 1 wrote.
_scalar = np._core.multiarray.scalar  # type: ignore[attr-defined]
SAFE_GLOBALS: list[Any] = [
    _scalar,
    (_scalar, "numpy.core.multiarray.scalar"),
    np.dtype,
    np.dtypes.Float32DType,
    np.dtypes.Float64DType,
    np.dtypes.Int32DType,
    np.dtypes.Int64DType,
    np.dtypes.BoolDType,
]


def read_checkpoint(path: str | os.PathLike[str]) -> Any:
    """The content of a file that ``torch.save`` wrote, on the CPU.

    Raises:
        WeightsError: if the file is absent, unreadable, no such file, damaged, or would run code when loaded.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"weights file {path} does not exist" if not path.exists() else f"{path} is not a file")
    try:
        with torch.serialization.safe_globals(SAFE_GLOBALS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error}") from error
    except Exception as error:  # damaged files raise almost anything, from KeyError to UnicodeDecodeError
        raise WeightsError(f"{path} {_diagnosis(path, error)}") from error


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


def _diagnosis(path: Path, error: Exception) -> str:
    """What a file that does not load seems to be, and what to do."""
    with open(path, "rb") as file:
        head = file.read(512)
    size = path.stat().st_size
    if not head:
        return "is empty. Copy or download it again."
    if head.lstrip()[:1] == b"<":
        return (
            "is a web page (HTML or XML), not a weights file; a download was probably redirected to a login or error "
            "page. Download it again."
        )
    # torch says "Unsupported global: GLOBAL a.b was not ..." or "Trying to load unsupported GLOBAL os.system whose ..."
    if isinstance(error, pickle.UnpicklingError) and (found := re.search(r"GLOBAL (\S+)", str(error))):
        return (
            f"holds Python objects ({found[1]}) beside tensors and numbers. Loading them could "
            f"run code, so the file is refused. Ask its author for a plain state dict."
        )
    return (
        f"({size} bytes) is no complete PyTorch checkpoint: it is damaged, cut off or of another format "
        f"({type(error).__name__}). Copy or download it again and compare its size and SHA-256 with the source's."
    )


def write_checkpoint(content: Any, path: str | os.PathLike[str]) -> None:
    """``torch.save`` by :func:`write_whole`."""
    write_whole(path, lambda file: torch.save(content, file))


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
