"""Pickles that are small in a file and without end in memory or time: refused before they are built."""

from __future__ import annotations

import collections
import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from limited import run_limited

from nnunetv2_sam3d.messages import shown, some
from nnunetv2_sam3d.pickles import check_pickle, check_sharing, load_plain


def laughs(kind: type, levels: int = 40) -> Any:
    """Two entries a level, which are the same object: 2^levels of them for whoever walks through it."""
    value: Any = kind()
    for _ in range(levels):
        value = kind([value, value])
    return value


def hashed_laughs(levels: int = 60) -> bytes:
    """A table whose key is such a tuple: unpicklers compute its hash. Written by hand, as no Python could make it."""
    return b"\x80\x02})q\x000" + b"h\x00h\x00\x86q\x000" * levels + b"h\x00K\x01s."


def copies(count: int = 200_000) -> bytes:
    """The class ``list`` called on the same long list over and over."""
    return b"\x80\x02](K\x01" + b"K\x01" * count + b"eq\x00](" + b"c__builtin__\nlist\nh\x00\x85R" * count + b"e."


BOMBS = {
    "tuples in tuples as a key": hashed_laughs(),
    "a place in the memo": b"\x80\x02]r\xff\xff\xff\x7f.",
    "copies": copies(),
    "path that doubles": b"\x80\x02cpathlib\nPurePosixPath\nX\x04\x00\x00\x00aaaaq\x00\x85R"
    + b"q\x010cpathlib\nPurePosixPath\nh\x01h\x01\x86R" * 40 + b".",
    "text longer than the file": b"\x80\x04\x8d" + (1 << 40).to_bytes(8, "little") + b"a.",
    "bytes longer than the file": b"\x80\x05\x96" + (1 << 36).to_bytes(8, "little") + b"a.",
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_in_seconds(name: str, tmp_path: Path) -> None:
    file = tmp_path / "bomb.pkl"
    file.write_bytes(BOMBS[name])
    body = (
        "try:\n    load_plain(open(sys.argv[1], 'rb').read())\n"
        "except ValueError:\n    pass\nelse:\n    sys.exit('it was accepted')"
    )
    run_limited("from nnunetv2_sam3d.pickles import load_plain", body, [file], seconds=20, megabytes=200)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_content_is_what_it_was(protocol: int) -> None:
    shared = ("a", "b")
    content = {"x": [shared, shared, {1, 2}], "y": collections.OrderedDict(z=None), 3: (True, 1.5, frozenset("ab"))}
    assert load_plain(pickle.dumps(content, protocol)) == content


def test_checkpoints_pass() -> None:
    model = torch.nn.Linear(3, 3)
    optimizer = torch.optim.AdamW([{"params": [p]} for p in model.parameters()])  # its groups share a tuple
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    buffer = io.BytesIO()
    torch.save({"w": model.state_dict(), "o": optimizer.state_dict()}, buffer, _use_new_zipfile_serialization=False)
    buffer.seek(0)
    for _ in range(5):  # magic number, version, system, content, storages
        check_pickle(buffer, len(buffer.getvalue()))


@given(st.binary(max_size=60))
@settings(deadline=None, derandomize=True, max_examples=100)
def test_any_bytes_are_content_or_an_error(data: bytes) -> None:
    for given_data in (data, b"\x80\x02" + data + b"."):
        try:
            load_plain(given_data)
        except ValueError:
            pass


@pytest.mark.parametrize("kind", [list, tuple])
def test_content_that_holds_itself_over_and_over(kind: type) -> None:
    with pytest.raises(ValueError, match="over and over"):
        check_sharing({"a": [laughs(kind)]}, 10_000)
    check_sharing({"a": [laughs(kind, 5)]}, 10_000)


def test_content_that_holds_itself() -> None:
    round_trip: list[Any] = []
    round_trip.append({"a": [round_trip]})
    with pytest.raises(ValueError, match="holds itself"):
        check_sharing(round_trip, 10_000)


def test_values_of_strangers_are_shown_in_short() -> None:
    assert shown(laughs(list)) == "[[[...], [...]], [[...], [...]]]"
    assert len(shown("x" * 1000)) <= 60
    assert shown({"a": 1}) == "{'a': 1}"
    assert some(["a", "b", "c"]) == "a, b, c"
    assert some(list(range(10))) == "0, 1, 2 and 7 more"
