"""This package's JSON, and tables."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import fastjsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from limited import run_limited

from nnunetv2_sam3d.clicks.click import SPACES, Click, ClickError
from nnunetv2_sam3d.clicks.click_files import read_clicks, write_clicks
from nnunetv2_sam3d.clicks.geometry import Geometry

SCHEMA = Path(__file__).resolve().parents[3] / "docs" / "clicks.schema.json"
EXAMPLE: dict[str, Any] = {
    "format": "nnunetv2_sam3d clicks",
    "version": 1,
    "space": "LPS",
    "image": "case_0000.nii.gz",
    "image_size": [512, 512, 90],
    "spacing": [0.7, 0.7, 5],
    "origin": [-180.5, -170, 20],
    "direction": [1, 0, 0, 0, 1, 0, 0, 0, 1],
    "clicks": [
        {"position": [12.5, -40, 112.25], "label": "tumour"},
        {"position": [20, -40.5, 112.25], "label": 2, "sign": "background"},
        {"position": [1, 2, 3], "sign": -1, "label": None},
    ],
}
OBLIQUE = Geometry.from_properties(
    {"sitk_stuff": {"spacing": (0.7, 0.8, 3.0), "origin": (5.0, -60.0, 7.0),
                    "direction": (0.8, 0.0, 0.6, 0.6, 0.0, -0.8, 0.0, 1.0, 0.0)}}, (9, 8, 7))  # fmt: skip


def _write(folder: Path, text: str, name: str = "case.json") -> Path:
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def schema() -> Any:
    return fastjsonschema.compile(json.loads(SCHEMA.read_text()))


def test_json(schema: Any, tmp_path: Path) -> None:
    schema(EXAMPLE)
    content = read_clicks(_write(tmp_path, "\ufeff" + json.dumps(EXAMPLE)))
    assert [(click.position, click.space, click.label, click.sign, click.number) for click in content.clicks] == [
        ((12.5, -40.0, 112.25), "LPS", "tumour", 1, 1),
        ((20.0, -40.5, 112.25), "LPS", 2, -1, 2),
        ((1.0, 2.0, 3.0), "LPS", None, -1, 3),
    ]
    assert content.image == "case_0000.nii.gz"
    assert content.geometry == {key: EXAMPLE[key] for key in ("image_size", "spacing", "origin", "direction")}


def test_the_documentation_shows_such_files(
    schema: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = SCHEMA.with_name("clicks.md").read_text(encoding="utf-8")
    example, code = (re.search(rf"```{kind}\n(.*?)```", text, re.DOTALL) for kind in ("json", "python"))
    table = re.search(r"(?:^    .*\n)+", text, re.MULTILINE)
    assert example and code and table
    schema(json.loads(example[1]))
    assert len(read_clicks(_write(tmp_path, example[1])).clicks) == 2
    assert len(read_clicks(_write(tmp_path, table[0].replace("    ", ""), "clicks.csv")).clicks) == 3
    monkeypatch.chdir(tmp_path)
    exec(code[1], {})
    assert capsys.readouterr().out.strip() == code[1].strip().rpartition("# ")[2]


@pytest.mark.parametrize("space", ["lps", " Ras", "IJK", "ZYX ", "LPSS", "l p s", "", 1])
def test_schema_and_reader_agree(space: Any, schema: Any, tmp_path: Path) -> None:
    signs = {"Background": True, " FOREGROUND": True, "+1": True, "1": True, -1: True, "fore": False, "+-1": False,
             "11": False, "": False, 2: False, None: False}  # fmt: skip
    for sign, known in signs.items():
        content = EXAMPLE | {"space": space, "clicks": [{"position": [1, 2, 3], "sign": sign}]}
        for read in (schema, lambda content: read_clicks(_write(tmp_path, json.dumps(content)))):
            if known and space in ("lps", " Ras", "IJK", "ZYX "):
                read(content)
            else:
                with pytest.raises((ClickError, fastjsonschema.JsonSchemaException)):
                    read(content)


def _click(**changes: object) -> dict:
    return {"clicks": [EXAMPLE["clicks"][0], {**EXAMPLE["clicks"][1], **changes}]}


@pytest.mark.parametrize(("change", "message"), [
    ({"format": "clicks"}, 'expected 3D Slicer\'s "markups" or "format"'),
    ({"version": 2}, "version is 2, this package reads 1"),
    ({"version": True}, "version is True"),
    ({"space": None}, "space is None; expected LPS or RAS"),
    ({"space": "world"}, "space is 'world'"),
    ({"spaces": "LPS"}, r"unknown entries \['spaces'\]"),
    ({"image": 3}, '"image"'),
    ({"image_size": [512, 512]}, "'image_size' must be 3 numbers"),
    ({"direction": [1] * 8 + ["0"]}, "'direction' must be 9 numbers"),
    ({"clicks": {"position": [1, 2, 3]}}, 'list of "clicks"'),
    ({"clicks": [[1, 2, 3]]}, "click 1: expected"),
    ({"clicks": [{"position": [0, 0, 0]}] * 10_001}, "10001 clicks"),
    (_click(position=[1, 2]), "click 2: a position is three finite numbers"),
    (_click(position=[1, 2, "3"]), "click 2: a position"),
    (_click(position=[1, 2, True]), "click 2: a position"),
    (_click(position=[1, 2, None]), "click 2: a position"),
    (_click(position="123"), "click 2: a position"),
    (_click(sign=0), "click 2: its sign is 0"),
    (_click(sign=True), "click 2: its sign is True"),
    (_click(label=1.5), "click 2: its label is 1.5"),
    (_click(colour="red"), r"click 2: a click has unknown entries \['colour'\]"),
])  # fmt: skip
def test_refused_json(change: dict, message: str, schema: Any, tmp_path: Path) -> None:
    file = _write(tmp_path, json.dumps(EXAMPLE | change))
    with pytest.raises(ClickError, match=f"^{file}: .*{message}"):
        read_clicks(file)
    if change.get("version") is not True:  # which Python takes for 1
        with pytest.raises(fastjsonschema.JsonSchemaException):
            schema(EXAMPLE | change)


@pytest.mark.parametrize(("entry", "message"), [("space", 'add "space": one of'), ("version", "version is None"),
                                                ("clicks", 'list of "clicks"'), ("format", "neither")])  # fmt: skip
def test_what_a_json_must_have(entry: str, message: str, schema: Any, tmp_path: Path) -> None:
    without = {key: value for key, value in EXAMPLE.items() if key != entry}
    with pytest.raises(ClickError, match=message):
        read_clicks(_write(tmp_path, json.dumps(without)))
    with pytest.raises(fastjsonschema.JsonSchemaException):
        schema(without)


@pytest.mark.parametrize(("content", "message"), [
    (b"", "is empty"),
    (b" \n", "is empty"),
    (b"\x1f\x8b\x08\x00\xff", "no text"),
    (b"PK\0\0", "no text"),
    (b"<html></html>", "no JSON"),
    (b"[" * 100_000, "no JSON"),
    (b"[1, 2, 3]", "found neither"),
    (b'"clicks"', "found neither"),
    (b'{"spacing": [1, 1, 1]}', "found neither"),
    (b" " * (8 << 20) + b"{}", "too many for a file of clicks"),
    (json.dumps(EXAMPLE).replace("12.5", "NaN").encode(), "holds NaN"),
    (json.dumps(EXAMPLE).replace("12.5", "-Infinity").encode(), "holds -Infinity"),
    (json.dumps(EXAMPLE).replace("12.5", "1e400").encode(), "click 1: .*finite"),
    (json.dumps(EXAMPLE).replace("12.5", "1" * 400).encode(), "click 1: .*finite"),
    (json.dumps(EXAMPLE).replace("12.5", "1" * 5000).encode(), "number"),
    (json.dumps(EXAMPLE).replace("180.5", "1e400").encode(), "'origin' must be 3 numbers"),
])  # fmt: skip
def test_damaged_files(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "case.json"
    file.write_bytes(content)
    with pytest.raises(ClickError, match=f"(?s)^{file}: .*{message}"):
        read_clicks(file)


def test_absent_files_and_other_suffixes(tmp_path: Path) -> None:
    with pytest.raises(ClickError, match="no such file"):
        read_clicks(tmp_path / "case.json")
    with pytest.raises(ClickError, match=r"\.mrk\.json, \.json, \.fcsv, \.csv, \.tsv"):
        read_clicks(_write(tmp_path, "1 2 3", "case.txt"))


coordinate = st.floats(-1e4, 1e4)
clicks = st.builds(
    Click,
    st.tuples(coordinate, coordinate, coordinate),
    st.none() | st.integers(0, 300) | st.text(max_size=20).filter(lambda text: text.isprintable()),
    st.sampled_from([1, -1]),
)


@settings(deadline=None, derandomize=True)
@given(st.lists(clicks, max_size=4), st.sampled_from(SPACES), st.booleans())
def test_written_clicks_are_read_again(
    tmp_path_factory: pytest.TempPathFactory, schema: Any, given_clicks: list[Click], space: str, with_image: bool
) -> None:
    file = tmp_path_factory.mktemp("clicks") / "case.json"
    write_clicks(file, given_clicks, OBLIQUE, space=space, image="case_0000.nii.gz" if with_image else None)
    schema(json.loads(file.read_text()))
    content = read_clicks(file)
    assert [(click.label, click.sign) for click in content.clicks] == [(c.label, c.sign) for c in given_clicks]
    positions = [click.position for click in content.clicks]
    expected = np.reshape([click.zyx for click in given_clicks], (-1, 3))
    np.testing.assert_allclose(OBLIQUE.to_zyx(positions, space), expected, atol=1e-7)
    assert content.geometry == OBLIQUE.description()
    assert content.image == ("case_0000.nii.gz" if with_image else None)


def test_millimetres_need_a_geometry(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="geometry of the image is needed"):
        write_clicks(tmp_path / "case.json", [Click((1, 2, 3))], space="LPS")
    assert not list(tmp_path.iterdir())


def test_a_click_of_an_array() -> None:
    click = Click(np.array([1, 2, 3.5], np.float32))  # type: ignore[arg-type]
    assert click == Click((1, 2, 3.5)) and type(click.zyx[0]) is float


@pytest.mark.parametrize(("zyx", "label", "sign"), [((1, 2), None, 1), ((1, 2, float("nan")), None, 1),
                                                     ((1, 2, 3), 1.0, 1), ((1, 2, 3), None, 0)])  # fmt: skip
def test_impossible_clicks(zyx: Any, label: Any, sign: Any) -> None:
    with pytest.raises(ClickError):
        Click(zyx, label, sign)


TABLES = {
    "x,y,z,space\n1,2,3,LPS\n4,5,6,LPS": [((1, 2, 3), "LPS"), ((4, 5, 6), "LPS")],
    "# space = RAS\nx;y;z\n1;2;3\n4;5;6\n": [((1, 2, 3), "RAS"), ((4, 5, 6), "RAS")],
    "i,j,k\n1,2,3": [((1, 2, 3), "ijk")],
    "k\tj\ti\n1\t2\t3": [((3, 2, 1), "ijk")],
    "# space: ijk\nz,y,x\n1,2,3": [((3, 2, 1), "ijk")],
    "# space = zyx\nx,y,z\n1,2,3": [((3, 2, 1), "zyx")],
    "label,l,p,s,defined,selected,visible,locked,description\nF-1,-19.9,13.9,29.4,1,1,1,0,\nF-2,1,2,3,0,1,1,0,":
        [((-19.9, 13.9, 29.4), "LPS")],
    "label,r,a,s,defined,selected,visible,locked,description\nF-1,1.5,2,3,1,1,1,0,": [((1.5, 2, 3), "RAS")],
    "X, Y, Z, Space\r\n 1, 2.5, -3e1, ras\r\n": [((1, 2.5, -30), "RAS")],
    "order,i,j,k\n2,1,1,1\n10,3,3,3\n1,0,0,0\n": [((0, 0, 0), "ijk"), ((1, 1, 1), "ijk"), ((3, 3, 3), "ijk")],
    "i,j,k": [],
}  # fmt: skip


@pytest.mark.parametrize("text", TABLES)
def test_tables(text: str, tmp_path: Path) -> None:
    found = read_clicks(_write(tmp_path, text, "case.csv")).clicks
    assert [(click.position, click.space) for click in found] == TABLES[text]


def test_a_table_of_tabs(tmp_path: Path) -> None:
    text = "case\tspace\tx\ty\tz\na\tlps\t1\t2\t3\n"
    assert [c.position for c in read_clicks(_write(tmp_path, text, "any.tsv")).clicks] == [(1, 2, 3)]


def test_tables_that_slicer_exports_name_points_as_its_other_files_do(tmp_path: Path) -> None:
    text = "label,l,p,s,defined,selected,visible,locked,description\ntumour-1,1,2,3,1,1,1,0,bg\n"
    assert read_clicks(_write(tmp_path, text, "case.csv")).clicks[0].names == ("tumour-1", "bg")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_tables_as_spreadsheets_write_them(encoding: str, tmp_path: Path) -> None:
    """Excel writes "Unicode text" in UTF-16, and "CSV" in the code page of Western Windows."""
    file = tmp_path / "case.csv"
    file.write_bytes("i;j;k;label\r\n1;2;3;Tumör\r\n".encode(encoding))
    assert [click.label for click in read_clicks(file).clicks] == ["Tumör"]


def test_text_in_another_encoding_is_called_so(tmp_path: Path) -> None:
    file = tmp_path / "case.json"
    file.write_bytes(json.dumps(EXAMPLE | {"image": "Tumör.nii.gz"}, ensure_ascii=False).encode("cp1252"))
    with pytest.raises(ClickError, match="not in UTF-8"):
        read_clicks(file)


def test_points_that_are_not_placed_are_counted(tmp_path: Path) -> None:
    header = "label,l,p,s,defined,selected,visible,locked,description\n"
    text = header + "F-1,1,2,3,1,1,1,0,\nF-2,1,2,3,False,1,1,0,\nF-3,0,0,0,0,1,1,0,\n"
    found = read_clicks(_write(tmp_path, text, "case.csv"))
    assert (len(found.clicks), found.passed_over) == (1, 2)
    with pytest.raises(ClickError, match="line 2: its column defined is 'maybe'"):
        read_clicks(_write(tmp_path, header + "F-1,1,2,3,maybe,1,1,0,\n", "case.csv"))


LONG = {
    "spaces.fcsv": "# Markups fiducial file version = 4.11\n# CoordinateSystem = LPS\n#" + " " * 200_000 + "b\n1,2,3\n",
    "spaces.csv": "# space = LPS" + " " * 2_000_000 + "x\nx,y,z\n1,2,3\n",
    "lines.csv": "i,j,k\n" + "\n\n1\n" * 1_500_000,
    "comments.fcsv": "#\n" * 3_000_000,
    "label.csv": "i,j,k,label\n1,2,3," + "ab" * 60_000 + "\n",
    "image.json": json.dumps(EXAMPLE | {"image": "a." * 1_000_000 + "!"}),
    "key.json": json.dumps(EXAMPLE | {f"a{number}": 1 for number in range(300_000)}),
    "lists.json": "[" + "[]," * 2_000_000 + "1]",
    "name.mrk.json": json.dumps({"markups": [{"type": "Fiducial", "controlPoints": [{"label": "_ " * 2_000_000}]}]}),
    "types.mrk.json": json.dumps({"markups": [{"type": [[[]] * 9] * 9}] * 15_000}),
}


def test_long_files_cost_seconds(tmp_path: Path) -> None:
    """Each is below the limit of size, and would take hours or all memory with a careless pattern or message."""
    for name, text in LONG.items():
        (tmp_path / name).write_text(text)
    body = """
for name in sorted(Path(sys.argv[1]).iterdir()):
    start = time.process_time()
    try:
        found = find_clicks(name, ["case"])["case"]
        clicks_for_case(found, "case", {}, (9, 9, 9), {"background": 0, "tumour": 1})
    except ClickError as error:
        assert len(str(error)) < 2000, (name, len(str(error)))
    took = time.process_time() - start
    assert took < 5, (name, took)
"""
    imports = (
        "from pathlib import Path\nfrom nnunetv2_sam3d.clicks.click import ClickError\n"
        "from nnunetv2_sam3d.clicks.click_files import find_clicks\n"
        "from nnunetv2_sam3d.clicks.placing import clicks_for_case"
    )
    run_limited(imports, body, [tmp_path], seconds=30, megabytes=700)


def test_labels_and_signs_of_tables(tmp_path: Path) -> None:
    text = 'case,i,j,k,label,sign\na,1,2,3,"fat, left",background\nb,1,2,3,2,+1\nb,1,2,3,,\nb,1,2,3,tumour,-1\n'
    found = read_clicks(_write(tmp_path, text, "any.csv"))
    assert found.has_cases
    assert [(click.case, click.label, click.sign) for click in found.clicks] == [
        ("a", "fat, left", -1), ("b", 2, 1), ("b", None, 1), ("b", "tumour", -1)
    ]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), [
    ("x,y,z\n1,2,3", "does not say in which space"),
    ("a,b,c\n1,2,3", "columns are a, b, c; expected"),
    ("x,y,z,i,j,k\n1,2,3,1,2,3", "columns are x, y, z, i, j, k"),
    ("i,j,k,colour\n1,2,3,red", r"unknown columns \['colour'\]"),
    ("i,j,k,i\n1,2,3,4", "names a column twice"),
    ("# space = RAS\ni,j,k\n1,2,3", "are ijk, but its comment says RAS"),
    ("i,j,k,space\n1,2,3,LPS", "line 2: its space is LPS, but that of the whole file is ijk"),
    ("# space = LPS\n\nx,y,z,space\n1,2,3,LPS\n1,2,3,RAS", "line 5: its space is RAS"),
    ("x,y,z,space\n1,2,3,\n", "line 2: its space is missing"),
    ("x,y,z,space\n1,2,3,mm\n", "line 2: the space is 'mm'"),
    ("i,j,k\n1,2", "line 2: it has 2 columns, the header has 3"),
    ("i,j,k\n1,2,nan", "line 2: its position is '1, 2, nan'"),
    ("i,j,k\n1,2,left", "line 2: its position is '1, 2, left'"),
    ("i,j,k,sign\n1,2,3,maybe", "line 2: its sign is 'maybe'"),
    ("i,j,k,order\n1,2,3,first", "line 2: its order is 'first'"),
    ("case,i,j,k\n,1,2,3", "line 2: its case is missing"),
    ("# space = LPS\n", "comments only"),
    ("i,j,k\n" + "1,2,3\n" * 10_001, "10001 clicks"),
    ("i,j,k\n1,2," + "3" * 200_000, "no table"),
])  # fmt: skip
def test_refused_tables(text: str, message: str, tmp_path: Path) -> None:
    file = _write(tmp_path, text, "case.csv")
    with pytest.raises(ClickError, match=f"^{file}: .*{message}"):
        read_clicks(file)
