"""Reading weights files from strangers: never runs code in them, and says what is wrong with a file."""

from __future__ import annotations

import io
import os
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from nnunetv2_sam3d.files import write_whole
from nnunetv2_sam3d.pickles import CostError, check_pickle, check_sharing
from nnunetv2_sam3d.weights.errors import WeightsError
from nnunetv2_sam3d.weights.shards import index_of, read_shards

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
LEAST_ENTRIES = 100_000
OLD_PICKLES = 5  # magic number, version, system, content, names of the storages


def read_checkpoint(path: str | os.PathLike[str]) -> Any:
    """The content of a file that ``torch.save`` or ``safetensors`` wrote, told from its first bytes, on the CPU.

    Of a set of several files (shards), any of them or their index stands for all. What is returned costs no more memory
    than the file has bytes, tensors that share their storage and lists that share their entries included.

    Raises:
        WeightsError: if the file is absent, unreadable, no such file, damaged, incomplete, or would run code when
            loaded, or if its content would be larger than the file.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"weights file {path} does not exist" if not path.exists() else f"{path} is not a file")
    if (index := index_of(path)) is not None:
        return read_shards(index, _read_file)
    return _read_file(path)


def _read_file(path: Path) -> Any:
    try:
        if _is_safetensors(path):
            return load_file(path)
        if zipfile.is_zipfile(path):
            _check_archive(path)
        else:
            _check_pickles(path)
        # of a path, torch.load would look at the suffix
        with torch.serialization.safe_globals(SAFE_GLOBALS), open(path, "rb") as file:
            content = torch.load(file, map_location="cpu", weights_only=True)
        check_sharing(content, max(LEAST_ENTRIES, path.stat().st_size))
        return content
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error}") from error
    except CostError as error:
        raise WeightsError(
            f"{path} is refused, as reading it would cost far more than its size: {error}. Ask its author for a plain "
            f"state dict."
        ) from error
    except Exception as error:  # damaged files raise almost anything, from KeyError to UnicodeDecodeError
        raise WeightsError(f"{path} {_diagnosis(path, error)}") from error


def _is_safetensors(path: Path) -> bool:
    """Whether a JSON table follows the eight bytes of its length."""
    with open(path, "rb") as file:
        return file.read(10)[8:] == b'{"'


def _check_archive(path: Path) -> None:
    """Raises ValueError for a zip file that ``torch.save`` did not write like this; PyTorch itself checks no sums."""
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        if sum(record.file_size for record in records) > path.stat().st_size:
            raise CostError("its records overlap")
        for record in records:
            # PyTorch stores, and without attributes. What it takes for a folder (0x10), or finds with two sizes, it
            # neither reads nor reports: the weights are then what happened to be in memory.
            if (
                record.compress_type != zipfile.ZIP_STORED
                or record.compress_size != record.file_size
                or record.external_attr & 0x10
                or record.is_dir()
            ):
                raise ValueError(f"{record.filename} is not stored as PyTorch does")
            if record.CRC:  # PyTorch can be told to write none
                with archive.open(record) as stream:
                    while stream.read(1 << 20):
                        pass  # a wrong sum is an error at the end of the record
            if record.filename.endswith(".pkl"):
                if not record.CRC:
                    del record.CRC  # else it would be compared with the sum that was not written
                with archive.open(record) as stream:
                    check_pickle(io.BytesIO(stream.read()), record.file_size)


def _check_pickles(path: Path) -> None:
    """The same for a file as PyTorch wrote them before 1.6: pickles, one after the other, then the values."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        for _ in range(OLD_PICKLES):
            check_pickle(file, size - file.tell())


def _is_text(head: bytes) -> bool:
    try:
        head[:-4].decode()  # the last character may be cut
    except UnicodeDecodeError:
        return False
    return True


def _diagnosis(path: Path, error: Exception) -> str:
    """What a file that does not load seems to be, and what to do."""
    with open(path, "rb") as file:
        head = file.read(512)
    size = path.stat().st_size
    if not head:
        return "is empty. Copy or download it again."
    if head.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS, not the weights file itself. Fetch that with git lfs pull, or download it."
    if head.lstrip()[:1] == b"<":
        return (
            "is a web page (HTML or XML), not a weights file; a download was probably redirected to a login or error "
            "page. Download it again."
        )
    if all(byte in b"\t\n\r" or 32 <= byte for byte in head) and _is_text(head):
        return "is a text file, not a weights file. Give the .pth, .pth.tar, .bin or .safetensors file itself."
    # torch says "Unsupported global: GLOBAL a.b was not ..." or "Trying to load unsupported GLOBAL os.system whose ..."
    if isinstance(error, pickle.UnpicklingError) and (found := re.search(r"GLOBAL (\S+)", str(error))):
        return (
            f"holds Python objects ({found[1]}) beside tensors and numbers. Loading them could "
            f"run code, so the file is refused. Ask its author for a plain state dict."
        )
    if head[:1] == b"\x80" and b"torch" not in head:
        return (
            "is a Python pickle that PyTorch did not write. Such files could run code when they are loaded, so it is "
            "refused. Ask its author for a plain state dict, written by torch.save."
        )
    if head[8:10] == b'{"':
        return (
            f"({size} bytes) is no complete safetensors file: it is damaged or cut off. Copy or download it again and "
            f"compare its size and SHA-256 with the source's."
        )
    return (
        f"({size} bytes) is no complete PyTorch checkpoint: it is damaged, cut off or of another format "
        f"({type(error).__name__}). Copy or download it again and compare its size and SHA-256 with the source's."
    )


def write_checkpoint(content: Any, path: str | os.PathLike[str]) -> None:
    """``torch.save`` by :func:`write_whole`."""
    write_whole(path, lambda file: torch.save(content, file))
