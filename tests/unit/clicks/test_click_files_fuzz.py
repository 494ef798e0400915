"""Whatever is in a file, reading it gives clicks or a ClickError."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slicer_files import fcsv, markups, mrk_json

from nnunetv2_sam3d.clicks.click import ClickError
from nnunetv2_sam3d.clicks.click_files import read_clicks

POINTS = [("tumour-1", (1.5, -2.5, 3.0)), ("-tumour-2", (4.0, 5.0, -6.0))]
OWN = {
    "format": "nnunetv2_sam3d clicks", "version": 1, "space": "LPS", "image": "a.nii.gz", "spacing": [1, 1, 1],
    "clicks": [{"position": [1, 2, 3], "label": "tumour", "sign": "background"}, {"position": [4, 5, 6], "label": 2}],
}  # fmt: skip
TEXTS = {
    "a.mrk.json": mrk_json(markups(POINTS)),
    "a.json": json.dumps(OWN),
    "a.fcsv": fcsv(POINTS, version="5.6", extra=",2,0"),
    "a.csv": "# space = LPS\ncase,x,y,z,label,sign,order\na,1,2,3,tumour,background,1\nb,4,5,6,2,,2\n",
}
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


def _reads_or_refuses(folder: Any, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    try:
        found = read_clicks(folder / name)
    except ClickError as error:
        assert str(error).startswith(str(folder / name))
    else:
        assert all(len(click.position) == 3 for click in found.clicks)


@pytest.mark.parametrize("name", TEXTS)
@settings(deadline=None, derandomize=True)
@given(data=st.data())
def test_changed_bytes(name: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    content = TEXTS[name].encode()
    start = data.draw(st.integers(0, len(content)))
    end = data.draw(st.integers(start, min(len(content), start + 20)))
    new = data.draw(st.binary(max_size=6) | st.text('",:;[]{}\n#-1e9 \t', max_size=6).map(str.encode))
    _reads_or_refuses(tmp_path_factory.mktemp("fuzz"), name, content[:start] + new + content[end:])


@pytest.mark.parametrize("name", ["a.mrk.json", "a.json"])
@settings(deadline=None, derandomize=True, max_examples=200)
@given(data=st.data())
def test_changed_values(name: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    content = json.loads(TEXTS[name])
    place = content
    while True:
        key = data.draw(st.sampled_from(sorted(place)) if isinstance(place, dict) else st.integers(0, len(place) - 1))
        if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = data.draw(values)
    _reads_or_refuses(tmp_path_factory.mktemp("fuzz"), name, json.dumps(content).encode())
