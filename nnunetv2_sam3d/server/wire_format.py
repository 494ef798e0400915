"""Arrays on the wire, packed with Blosc2, and what an answer with a part of a mask looks like.

A packed array is ``NNIA``, version, codec, number of axes and length of the type's name (a byte each), the type's name,
the shape (int64), the number of chunks (uint32), and for each chunk its length, its compressed length (uint64) and a
Blosc2 frame; all little endian, in C order.

A body comes from a stranger: every length is checked against the others and against a limit before memory is taken.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from typing import Any

import blosc2
import numpy as np

MAGIC, VERSION = b"NNIA", 1
CODECS = {1: blosc2.Codec.ZSTD, 2: blosc2.Codec.LZ4}
DTYPES = frozenset(
    ["bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float16", "float32", "float64"]
)
MAX_CHUNK = 1 << 30  # bytes, unpacked; Blosc2 counts in 32 bits with a sign
_FRAME_HEADER = 32  # bytes of a Blosc2 chunk's header


class WireError(ValueError):
    """A body or header is not as the protocol has it; says what was expected."""


class TooLarge(WireError):
    """A body, or the array in it, is larger than the server takes."""


def pack(array: np.ndarray) -> bytes:
    """An array as bytes.

    Args:
        array: of any number of axes and one of :data:`DTYPES`.
    """
    array = np.ascontiguousarray(array)
    array = array.astype(array.dtype.newbyteorder("<"), copy=False)
    name = array.dtype.name.encode()
    raw = memoryview(array.tobytes())
    parts = [
        struct.pack("<4sBBBB", MAGIC, VERSION, 1, array.ndim, len(name)),
        name,
        struct.pack(f"<{array.ndim}q", *array.shape),
        struct.pack("<I", -(-raw.nbytes // MAX_CHUNK)),
    ]
    for start in range(0, raw.nbytes, MAX_CHUNK):
        # with another typesize Blosc2 cannot read back zeros whose number of bytes it does not divide
        chunk = raw[start : start + MAX_CHUNK]
        frame = blosc2.compress2(
            chunk, typesize=array.itemsize, codec=CODECS[1], clevel=3, filters=[blosc2.Filter.NOFILTER]
        )
        parts += [struct.pack("<QQ", chunk.nbytes, len(frame)), frame]
    return b"".join(parts)


def unpack(body: bytes, most_bytes: int, ndim: int) -> np.ndarray:
    """The array of a body.

    Args:
        body: what :func:`pack` makes, or the clients' own function.
        most_bytes: that the array may have.
        ndim: number of axes that it must have.

    Raises:
        TooLarge: if the array would have more bytes.
        WireError: for anything else that is no such body.
    """
    view = memoryview(body)
    try:
        magic, version, codec, axes, name_length = struct.unpack_from("<4sBBBB", view)
        place = 8 + name_length
        name = bytes(view[8:place]).decode("ascii")
        if (magic, version) != (MAGIC, VERSION) or codec not in CODECS:
            raise WireError("the body is no packed array of version 1 (NNIA)")
        if axes != ndim:
            raise WireError(f"expected an array of {ndim} axes, got {axes}")
        shape = struct.unpack_from(f"<{axes}q", view, place)
        (chunks,) = struct.unpack_from("<I", view, place + 8 * axes)
        place += 8 * axes + 4
    except (struct.error, UnicodeDecodeError) as error:
        raise WireError("the body is cut off, or no packed array (NNIA)") from error
    if name not in DTYPES:
        raise WireError(f"arrays of {name[:40]!r} are not taken; expected one of {', '.join(sorted(DTYPES))}")
    dtype = np.dtype(name)
    if min(shape) < 1:
        raise WireError(f"the array's shape is {list(shape)}; every axis needs a voxel")
    size = math.prod(shape) * dtype.itemsize
    if size > most_bytes:
        raise TooLarge(f"an array of {list(shape)} {name} has {size / 1e9:.3g} GB, more than {most_bytes / 1e9:.3g} GB")
    lengths = _chunk_places(view, place, chunks, size, dtype.itemsize)
    array = np.empty(math.prod(shape), dtype)
    start = 0
    for place, length, unpacked in lengths:
        target = array[start // dtype.itemsize : (start + unpacked) // dtype.itemsize]
        try:
            blosc2.decompress2(view[place : place + length], dst=target)
        except (RuntimeError, ValueError, TypeError) as error:
            raise WireError("a part of the array cannot be unpacked: it is damaged") from error
        start += unpacked
    if name == "bool":  # another byte than 0 and 1 is no bool to NumPy
        array = array.view(np.uint8) != 0
    return array.reshape(shape)


def _chunk_places(view: memoryview, place: int, chunks: int, size: int, itemsize: int) -> list[tuple[int, int, int]]:
    """Place, length and unpacked length of each chunk, all of them checked before anything is unpacked."""
    found: list[tuple[int, int, int]] = []
    total = 0
    for _ in range(chunks):
        if place + 16 + _FRAME_HEADER > len(view):
            raise WireError(f"the body is cut off: it says {chunks} parts and ends in part {len(found) + 1}")
        unpacked, length = struct.unpack_from("<QQ", view, place)
        place += 16
        total += unpacked
        if not 0 < unpacked <= MAX_CHUNK or unpacked % itemsize or total > size:
            raise WireError("the parts of the array do not fit its shape")
        if not _FRAME_HEADER <= length <= len(view) - place:
            raise WireError("the body is cut off within a part of the array")
        try:
            own_unpacked, own_length, _ = blosc2.get_cbuffer_sizes(view[place : place + length])
        except (RuntimeError, ValueError) as error:
            raise WireError("a part of the array is no Blosc2 frame") from error
        if (own_unpacked, own_length) != (unpacked, length):
            raise WireError("the length of a part of the array is not that of its Blosc2 frame")
        found.append((place, length, unpacked))
        place += length
    if total != size or place != len(view):
        raise WireError(f"the array has {total} bytes, its shape needs {size}")
    return found


def parse_table(text: bytes | str, what: str) -> dict[str, Any]:
    """A JSON table; WireError for anything else, named by ``what``."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WireError(f"{what} is no JSON") from error
    if not isinstance(content, dict):
        raise WireError(f"{what} is no JSON table")
    return content


def write_meta(meta: Mapping[str, Any]) -> str:
    """JSON for a header: short, ASCII."""
    return json.dumps(meta, separators=(",", ":"))
