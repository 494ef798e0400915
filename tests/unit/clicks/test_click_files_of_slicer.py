"""Files of 3D Slicer, and what the names in them mean."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from slicer_files import fcsv, markups, mrk_json

from nnunetv2_sam3d.clicks.click import ClickError
from nnunetv2_sam3d.clicks.click_files import read_clicks
from nnunetv2_sam3d.clicks.slicer_names import understand

POINTS = [("tumour-1", (-53.388409961685827, -73.33572796934868, 0.25)), ("-tumour-2", (49.5, -88.5, 1.0))]


def _write(folder: Path, name: str, text: str) -> Path:
    file = folder / name
    file.write_text(text)
    return file


def test_markups(tmp_path: Path) -> None:
    file = _write(tmp_path, "case.mrk.json", mrk_json(markups(POINTS, undefined=["tumour-3"])))
    clicks = read_clicks(file).clicks
    assert [(click.names[0], click.position, click.space, click.number) for click in clicks] == [
        (label, position, "LPS", number) for number, (label, position) in enumerate(POINTS, 1)
    ]


def test_several_lists_and_units_and_the_default_system(tmp_path: Path) -> None:
    content = markups(POINTS[:1], system="RAS")
    other = markups(POINTS[1:])["markups"][0] | {"name": "kidney", "coordinateUnits": ["mm", "UCUM", "millimeter"]}
    del other["coordinateSystem"]
    line = {"type": "Line", "controlPoints": [{"position": [0, 0, 0]}]}
    content["markups"] += [line, other]
    clicks = read_clicks(_write(tmp_path, "case.mrk.json", json.dumps(content))).clicks
    assert [(click.space, click.names) for click in clicks] == [
        ("RAS", ("tumour-1", "", "")),
        ("LPS", ("-tumour-2", "", "kidney")),
    ]


@pytest.mark.parametrize(("system", "space"), [("LPS", "LPS"), ("RAS", "RAS"), ("0", "RAS"), ("1", "LPS")])
def test_fcsv(system: str, space: str, tmp_path: Path) -> None:
    points = [*POINTS, ("left, lower lobe", (1.5e-3, 2.0, -3.0))]
    clicks = read_clicks(_write(tmp_path, "case.fcsv", fcsv(points, system=system))).clicks
    assert [(click.names[0], click.position, click.space) for click in clicks] == [(*point, space) for point in points]


def test_fcsv_of_slicer_5_has_the_status_of_a_point(tmp_path: Path) -> None:
    text = fcsv(POINTS, version="5.6", extra=",2,0") + "3,0,0,0,0,0,0,1,1,1,0,tumour-3,,,0,0\n"
    clicks = read_clicks(_write(tmp_path, "case.fcsv", text.replace("\n", "\r\n"))).clicks
    assert [click.names[0] for click in clicks] == ["tumour-1", "-tumour-2"]


def _changed(**changes: object) -> str:
    content = markups(POINTS)
    content["markups"][0] |= changes
    return json.dumps(content)


@pytest.mark.parametrize(("text", "message"), [
    (_changed(type="Line"), "list of points.*found Line"),
    (_changed(coordinateSystem="IJK"), "coordinate system is 'IJK'"),
    (_changed(coordinateSystem=7), "coordinate system is 7"),
    (_changed(coordinateUnits="um"), "in 'um', expected mm"),
    (_changed(controlPoints={"position": [1, 2, 3]}), "controlPoints"),
    (_changed(controlPoints=[{"label": "F-1", "position": [1, 2]}]), r"control point 1 \(F-1\).*three finite numbers"),
    (_changed(controlPoints=[{"label": "F-1", "position": [1, 2, True]}]), "three finite numbers"),
    (_changed(controlPoints=[{"label": 1, "position": [1, 2, 3]}]), "must be text"),
    (_changed(controlPoints=[{"position": [0, 0, 0]}] * 10_001), "10001 clicks"),
    ('{"markups": []}', "found nothing"),
    ('{"markups": {"type": "Fiducial"}}', 'list of "markups"'),
    (mrk_json(markups(POINTS))[:-40], "no JSON"),
    (mrk_json(markups(POINTS)).replace("49.5", "NaN"), "NaN"),
    (mrk_json(markups(POINTS)).replace("49.5", "1e999"), "three finite numbers"),
])  # fmt: skip
def test_refused_markups(text: str, message: str, tmp_path: Path) -> None:
    file = _write(tmp_path, "case.mrk.json", text)
    with pytest.raises(ClickError, match=f"(?s)^{file}: .*{message}"):
        read_clicks(file)


@pytest.mark.parametrize(("text", "message"), [
    (fcsv(POINTS, system="2"), "coordinate system is '2'"),
    (fcsv(POINTS, system="2").replace("# CoordinateSystem = 2\n", ""), "CoordinateSystem"),
    (fcsv(POINTS).replace("# Markups", "# Some"), "fiducial file version"),
    (fcsv(POINTS).replace("id,x,y,z", "id,z,y,x"), "columns"),
    (fcsv(POINTS).replace("49.5", "nan"), r"point 2 \(-tumour-2\)"),
    (fcsv(POINTS).replace("49.5", "far"), r"point 2 \(-tumour-2\)"),
    (fcsv(POINTS) + "3,1,2\n", "point 3 has 3 columns"),
    (fcsv([("a", ("-8,25", "-23,5", "50,0"))]), "point 1 has 17 columns.*decimal commas"),  # type: ignore[list-item]
    (fcsv([("a", ("-8,25", "-23,5", "50"))]), "point 1 has 16 columns, its status is ''.*decimal commas"),  # type: ignore[list-item]
    (fcsv([("a", ("-8,25", "-23", "50"))]), "point 1 has 15 columns, its status is 'vtkMRMLS.*decimal commas"),  # type: ignore[list-item]
    (fcsv([("a", ("-8,25", "1", "2"))], version="5.6", extra=",2,0"), "point 1 has 17 columns"),  # type: ignore[list-item]
    (fcsv([("a", ("-8,25", "-23,5", "50,0"))], version="5.6", extra=",2,0"), "point 1 has 19 columns"),  # type: ignore[list-item]
    (fcsv(POINTS).replace(",1,1,0,", ",yes,1,0,"), "point 1 has 14 columns, vis is 'yes'"),
])  # fmt: skip
def test_refused_fcsv(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ClickError, match=message):
        read_clicks(_write(tmp_path, "case.fcsv", text))


LABELS = ("tumour", "soft_tissue_tumour", "bg fat", "lesion-2")


@pytest.mark.parametrize(("names", "meaning"), [
    (["tumour"], ("tumour", 1)),
    (["tumour-12"], ("tumour", 1)),
    (["Tumour_1-12"], ("tumour", 1)),  # Slicer's second list of that name
    (["Soft tissue tumour-1"], ("soft_tissue_tumour", 1)),
    (["lesion-2"], ("lesion-2", 1)),
    (["lesion-2-3"], ("lesion-2", 1)),
    (["-tumour-2"], ("tumour", -1)),
    (["- tumour"], ("tumour", -1)),
    (["+tumour"], ("tumour", 1)),
    (["background"], (None, -1)),
    (["BG-1"], (None, -1)),
    (["-"], (None, -1)),
    (["-2"], (None, -1)),
    (["-F-2"], (None, -1)),
    (["negative tumour 3"], ("tumour", -1)),
    (["tumour outside-3"], ("tumour", -1)),
    (["fg tumour"], ("tumour", 1)),
    (["bg fat-1"], ("bg fat", 1)),  # a label that begins with such a word
    (["-bg fat-1"], ("bg fat", -1)),
    (["F-1"], (None, 1)),
    (["F_1-1"], (None, 1)),
    (["Point List-3"], (None, 1)),
    (["MarkupsFiducial-1"], (None, 1)),
    (["3"], (None, 1)),
    ([""], (None, 1)),
    (["F-1", "tumour"], ("tumour", 1)),
    (["F-1", "", "tumour"], ("tumour", 1)),
    (["F-1", "bg", "tumour"], ("tumour", -1)),
    (["tumour-1", "looks necrotic", "clicks of Monday"], ("tumour", 1)),
    (["tumour-1", "", "bg fat"], ("tumour", 1)),
])  # fmt: skip
def test_names(names: list[str], meaning: tuple[str | None, int]) -> None:
    assert understand(names, LABELS) == meaning


@pytest.mark.parametrize("name", ["kidney-1", "tumour--1", "tumour-", "+bg", "-fg tumour", "tumour-1-2-3", "tumor"])
def test_names_that_say_nothing_known(name: str) -> None:
    with pytest.raises(ClickError, match="no label of the data set.*tumour, soft_tissue_tumour"):
        understand([name], LABELS)
