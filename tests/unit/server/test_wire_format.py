"""Packed arrays: the clients' own functions read and write the same, and no body costs more than its limit."""

from __future__ import annotations

import random
import struct
import tracemalloc

import blosc2
import numpy as np
import pytest

from nnunetv2_sam3d.server.wire_format import DTYPES, TooLarge, WireError, pack, parse_table, unpack

client = pytest.importorskip("nnInteractive.inference.remote.serialization")
RNG = np.random.default_rng(0)
ARRAYS = [
    RNG.integers(-1000, 1000, (1, 5, 7, 9)).astype(np.int16),
    np.zeros((1, 3, 7, 5), np.uint8),
    RNG.normal(size=(1, 4, 5, 6)).astype(np.float32),
    np.repeat(RNG.integers(0, 2, (1, 6, 6, 6)), 8, 1).astype(np.uint8),
]


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_round_trips_with_the_client(dtype: str) -> None:
    array = (RNG.normal(size=(2, 3, 4, 5)) * 50).astype(dtype)
    for written in (pack(array), client.pack_array(array), client.pack_array(array, codec=blosc2.Codec.LZ4)):
        for read in (unpack(written, array.nbytes, 4), client.unpack_array(written)):
            assert read.dtype == array.dtype
            np.testing.assert_array_equal(read, array)


def test_arrays_of_other_orders_and_lengths() -> None:
    for array in (np.asfortranarray(ARRAYS[0][0]), ARRAYS[0][0, ::-1, ::2], np.zeros((707, 1, 1), np.uint8)):
        np.testing.assert_array_equal(unpack(pack(array), 1 << 20, 3), array)
        np.testing.assert_array_equal(client.unpack_array(pack(array)), array)
    big_endian = ARRAYS[2].astype(">f4")
    np.testing.assert_array_equal(client.unpack_array(pack(big_endian)), big_endian)


def with_header(shape: tuple[int, ...], name: bytes, chunks: bytes, count: int = 1) -> bytes:
    head = struct.pack("<4sBBBB", b"NNIA", 1, 1, len(shape), len(name)) + name
    return head + struct.pack(f"<{len(shape)}q", *shape) + struct.pack("<I", count) + chunks


def test_refusals_name_what_is_wrong() -> None:
    body = pack(ARRAYS[0])
    frame = blosc2.compress2(b"\0" * 24, typesize=1)
    bomb = with_header((1, 1 << 20, 1 << 10, 1), b"uint8", struct.pack("<QQ", 1 << 30, len(frame)) + frame)
    for damaged, words in (
        (b"", "cut off"),
        (body[:40], "cut off"),
        (body[:-3], "cut off"),
        (body + b"x", "its shape needs"),
        (b"X" + body[1:], "NNIA"),
        (pack(ARRAYS[0][0]), "4 axes, got 3"),
        (with_header((1, 2, 3, 4), b"object", b""), "'object' are not taken"),
        (with_header((1, 2, 3, 4), b"datetime64[ns]", b""), "are not taken"),
        (with_header((1, 0, 3, 4), b"uint8", b""), "every axis needs a voxel"),
        (with_header((-1, -2, 3, 4), b"uint8", b""), "every axis needs a voxel"),
        (with_header((1, 2, 3, 4), b"uint8", b"", 0), "its shape needs 24"),
        (with_header((1, 2, 3, 4), b"uint8", struct.pack("<QQ", 24, 7) + b"1234567" * 9), "cut off within"),
        (with_header((1, 2, 3, 4), b"uint8", struct.pack("<QQ", 24, 40) + b"\0" * 40), "Blosc2 frame"),
        (with_header((1, 2, 3, 8), b"uint8", struct.pack("<QQ", 48, len(frame)) + frame), "that of its Blosc2 frame"),
    ):  # fmt: skip
        with pytest.raises(WireError, match=words):
            unpack(damaged, 1 << 31, 4)
    with pytest.raises(TooLarge, match="more than"):
        unpack(with_header((1 << 40, 1 << 40, 1, 1), b"uint8", b""), 1 << 30, 4)
    with pytest.raises(WireError):
        unpack(bomb, 1 << 31, 4)
    for text in ("", "[1]", "{" * 50_000, "[" * 50_000, '{"a": ', "\ud800".encode("utf-8", "surrogatepass")):
        with pytest.raises(WireError, match="no JSON"):
            parse_table(text, "the body")


def mutated(body: bytes, rng: random.Random) -> bytes:
    """A body with some bytes changed, left out or added, mostly in the header."""
    damaged = bytearray(body)
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        place = rng.choice([rng.randrange(len(damaged)), rng.randrange(min(len(damaged), 120))])
        kind = rng.randrange(5)
        if kind == 0:
            damaged[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            damaged[place] = rng.choice([0, 1, 127, 128, 255, rng.randrange(256)])
        elif kind == 2:
            del damaged[place : place + rng.randrange(1, 20)]
        elif kind == 3:
            damaged[place:place] = rng.randbytes(rng.randrange(1, 9))
        else:
            damaged[place : place + 8] = struct.pack("<Q", rng.choice([0, 1, 1 << 31, 1 << 40, (1 << 64) - 1]))
        damaged = damaged or bytearray(b"N")
    return bytes(damaged)


@pytest.mark.parametrize("tries", [600, pytest.param(20_000, marks=pytest.mark.slow)])
def test_mutated_bodies(tries: int) -> None:
    """Each is an array of its size or refused; memory stays within the limit."""
    rng, limit = random.Random(tries), 1 << 20
    shuffled = [client.pack_array(array, filters=[blosc2.Filter.BITSHUFFLE]) for array in ARRAYS]
    bodies = [pack(array) for array in ARRAYS] + shuffled
    taken = refused = 0
    tracemalloc.start()
    try:
        for _ in range(tries):
            try:
                array = unpack(mutated(rng.choice(bodies), rng), limit, 4)
            except WireError:
                refused += 1
            else:
                taken += 1
                assert array.ndim == 4 and array.nbytes <= limit
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert taken + refused == tries and min(taken, refused) > 0
    assert peak < 4 * limit
