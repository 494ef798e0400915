"""Which clicks belong to which image, and which are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blobs import centres, read, write_blobs
from slicer_files import fcsv, markups, mrk_json

from nnunetv2_sam3d.clicks.click import Click, ClickError
from nnunetv2_sam3d.clicks.click_files import find_clicks, read_clicks, write_clicks
from nnunetv2_sam3d.clicks.geometry import Geometry
from nnunetv2_sam3d.clicks.placing import clicks_for_case

LABELS = {"background": 0, "kidney": [1, 2, 3], "cyst": 3, "tumour": [2], "ignore": 4}
OWN: dict[str, Any] = {"format": "nnunetv2_sam3d clicks", "version": 1, "space": "ijk"}


def _own(folder: Path, clicks: list[dict], name: str = "case.json", **more: Any) -> Path:
    file = folder / name
    file.write_text(json.dumps({**OWN, **more, "clicks": clicks}))
    return file


@pytest.fixture
def image(tmp_path: Path) -> tuple[Path, Any, np.ndarray, dict]:
    """A folder for clicks, the blobs of an oblique image, and the image as nnU-Net reads it."""
    blobs = write_blobs(tmp_path, "oblique sagittal")
    return tmp_path, blobs, *read(blobs.files, "SimpleITKIO")


def _place(file: Path, image: tuple[Path, Any, np.ndarray, dict]) -> list[Click]:
    _, _, data, properties = image
    return clicks_for_case(read_clicks(file), "case", properties, data.shape[1:], LABELS)


@pytest.mark.parametrize("suffix", [".mrk.json", ".fcsv"])
@pytest.mark.parametrize("system", ["LPS", "RAS"])
def test_from_slicer_to_the_voxels(suffix: str, system: str, image: Any) -> None:
    folder, blobs, data, _ = image
    positions = (blobs.lps * ([1, 1, 1] if system == "LPS" else [-1, -1, 1])).tolist()
    points = list(zip(["tumour-1", "-Kidney-2", "F-3"], positions, strict=True))
    text = mrk_json(markups(points, system=system)) if suffix == ".mrk.json" else fcsv(points, system=system)
    file = folder / f"case{suffix}"
    file.write_text(text)

    clicks = _place(file, image)

    np.testing.assert_allclose([click.zyx for click in clicks], centres(data), atol=0.01)
    assert [(click.label, click.sign) for click in clicks] == [("tumour", 1), ("kidney", -1), (None, 1)]


def test_written_clicks_come_back(image: Any) -> None:
    folder, _, data, properties = image
    clicks = [Click((1, 2, 3.5), "tumour"), Click((4, 5, 6), "cyst", -1), Click((0, 0, 0), 1), Click((17, 21, 25))]
    write_clicks(folder / "case.json", clicks, Geometry.from_properties(properties, data.shape[1:]), space="RAS",
                 image="case_0000.nii.gz")  # fmt: skip
    again = _place(folder / "case.json", image)
    np.testing.assert_allclose([click.zyx for click in again], [click.zyx for click in clicks], atol=1e-6)
    assert [(click.label, click.sign) for click in again] == [(click.label, click.sign) for click in clicks]


@pytest.mark.parametrize(("label", "meaning"), [("tumour", "tumour"), (" Tumour", "tumour"), (2, "tumour"), (3, "cyst"),
                                                (1, 1), (None, None)])  # fmt: skip
def test_labels(label: Any, meaning: Any, image: Any) -> None:
    file = _own(image[0], [{"position": [1, 2, 3], "label": label}])
    assert _place(file, image) == [Click((3, 2, 1), meaning)]


@pytest.mark.parametrize(("label", "message"), [
    ("tumor", "no label 'tumor'; it has kidney = 1,2,3, cyst = 3, tumour = 2. Use one of them, for instance 'tumour'"),
    (7, "no label 7"),
    (4, "no label 4"),
    ("ignore", "no label 'ignore'"),
    ("background", "use the sign background"),
    (0, "use the sign background"),
])  # fmt: skip
def test_unknown_labels(label: Any, message: str, image: Any) -> None:
    file = _own(image[0], [{"position": [1, 2, 3]}, {"position": [1, 2, 4], "label": label}])
    with pytest.raises(ClickError, match=rf"^{file}, for the case case: click 2 \({label}\) .*{message}"):
        _place(file, image)


def test_unknown_names_of_slicer(image: Any) -> None:
    folder, blobs, _, _ = image
    file = folder / "case.mrk.json"
    file.write_text(mrk_json(markups([("F-1", blobs.lps[0].tolist()), ("lesion-2", blobs.lps[1].tolist())])))
    with pytest.raises(
        ClickError, match=r"click 2 \(lesion-2\) at .* LPS: its name is 'lesion-2'.*kidney, cyst, tumour"
    ):
        _place(file, image)


def test_the_border_of_the_image(image: Any) -> None:
    corners = [{"position": [-0.5, 21.5, 17.5]}, {"position": [25.5, -0.5, -0.5]}]
    assert len(_place(_own(image[0], corners), image)) == 2
    for outside in ([-0.6, 0, 0], [0, 21.6, 0], [0, 0, 17.6]):
        file = _own(image[0], [*corners, {"position": outside, "label": "tumour"}])
        with pytest.raises(
            ClickError, match=r"click 3 \(tumour\) at .* ijk lies outside.* of 18 x 22 x 26. Were the cl"
        ):
            _place(file, image)


@pytest.mark.parametrize(("space", "right"), [("LPS", "RAS"), ("RAS", "LPS"), ("ijk", "LPS"), ("zyx", "ijk")])
def test_the_wrong_space_is_named(space: str, right: str, image: Any) -> None:
    folder, blobs, _, _ = image
    positions = {"LPS": blobs.lps, "RAS": blobs.lps * [-1, -1, 1], "ijk": np.array([[24, 1, 1], [23, 2, 2]])}[right]
    file = _own(folder, [{"position": position} for position in positions.tolist()], space=space)
    with pytest.raises(ClickError, match=rf"click 1 \(no label\) .* {space} lies outside.*Read as {right}, all clicks"):
        _place(file, image)


def test_millimetres_in_an_image_without_them(image: Any) -> None:
    file = _own(image[0], [{"position": [1, 2, 3]}], space="LPS")
    with pytest.raises(ClickError, match=r"click 1 \(no label\) at \(1, 2, 3\) LPS: .*ijk or zyx"):
        clicks_for_case(read_clicks(file), "case", {"spacing": (1, 1, 1)}, (9, 9, 9), LABELS)


@pytest.mark.parametrize("name", ["case", "case.nii.gz", "case_0000.nii.gz", "/data/case_0002.nrrd", "D:\\x\\case.mha"])
def test_the_image_of_the_clicks(name: str, image: Any) -> None:
    _place(_own(image[0], [{"position": [1, 2, 3]}], image=name), image)


@pytest.mark.parametrize("name", ["case2.nii.gz", "acase_0000.nii.gz", "case_00.nii.gz", "", "case/other.nii.gz"])
def test_clicks_of_another_image(name: str, image: Any) -> None:
    with pytest.raises(ClickError, match="for the case case: the clicks were made on the image"):
        _place(_own(image[0], [{"position": [1, 2, 3]}], image=name), image)


@pytest.mark.parametrize(("key", "index", "change"), [("image_size", 2, 1), ("spacing", 1, 0.01), ("origin", 0, 0.1),
                                                      ("direction", 4, 0.01)])  # fmt: skip
def test_clicks_of_an_image_of_another_geometry(key: str, index: int, change: float, image: Any) -> None:
    folder, _, data, properties = image
    values = Geometry.from_properties(properties, data.shape[1:]).description()
    _place(_own(folder, [{"position": [1, 2, 3]}], **values), image)
    values[key][index] += change
    with pytest.raises(ClickError, match=f"whose {key.replace('_', ' ')} is .*, but this one's is"):
        _place(_own(folder, [{"position": [1, 2, 3]}], **values), image)


def test_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.mrk.json").write_text(mrk_json(markups([("F-1", (1, 2, 3))])))
    (tmp_path / "b.v2.fcsv").write_text(fcsv([("F-1", (1, 2, 3))]))
    (tmp_path / "c.csv").write_text("i,j,k\n1,2,3\n4,5,6")
    _own(tmp_path, [], "d.json")
    for other in (".hidden.json", "dataset.json", "plans.json", "a_0000.nii.gz", "notes.txt"):
        (tmp_path / other).write_text("{}")
    (tmp_path / "folder.json").mkdir()
    found = find_clicks(tmp_path, ["a", "b.v2", "c", "d", "e"])
    assert {case: len(file.clicks) for case, file in found.items()} == {"a": 1, "b.v2": 1, "c": 2, "d": 0}


def test_what_predictions_left_in_a_folder(tmp_path: Path) -> None:
    record = _own(tmp_path, [], "a_clicks.json", provenance={"nnunetv2_sam3d": "1.0"})
    assert find_clicks(tmp_path, ["a"], tmp_path / "out")["a"].file == record
    assert find_clicks(record, ["a"], tmp_path)["a"].file == record
    for name in ("a.csv", "a.mrk.json"):  # before and after it in the alphabet
        (tmp_path / name).write_text("i,j,k\n1,2,3" if name == "a.csv" else mrk_json(markups([("F-1", (1, 2, 3))])))
        assert find_clicks(tmp_path, ["a"])["a"].file == find_clicks(tmp_path, ["a"], tmp_path)["a"].file
        assert find_clicks(tmp_path, ["a"])["a"].file.name == name
        (tmp_path / name).unlink()
    with pytest.raises(ClickError, match="holds no clicks but those of earlier predictions"):
        find_clicks(tmp_path, ["a"], tmp_path)
    _own(tmp_path, [], "a_clicks.json")
    _own(tmp_path, [], "a.json")
    with pytest.raises(ClickError, match="both of the case a: keep one"):
        find_clicks(tmp_path, ["a"])


def test_folders_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ClickError, match=f"{tmp_path} holds no clicks"):
        find_clicks(tmp_path, ["tumour_01"])
    file = _own(tmp_path, [], "tumor_1.json")
    with pytest.raises(ClickError, match=f"^{file}: there is no case 'tumor_1' among the 2 images; .*tumour_01"):
        find_clicks(tmp_path, ["tumour_01", "kidney"])
    _own(tmp_path, [], "kidney.json")
    with pytest.raises(ClickError, match="belong into another folder"):
        find_clicks(tmp_path, ["tumour_01", "kidney"])
    with pytest.raises(
        ClickError, match=f"holds clicks of other images than kidney.*: --clicks {tmp_path}/kidney.json"
    ):
        find_clicks(tmp_path, ["kidney"])
    with pytest.raises(ClickError, match="--clicks takes the file itself, of any name"):
        find_clicks(tmp_path, ["tumour_01"])
    (tmp_path / "kidney.json").unlink()
    _own(tmp_path, [], "tumor_1.mrk.json")
    with pytest.raises(ClickError, match="both of the case tumor_1: keep one"):
        find_clicks(tmp_path, ["tumor_1"])


def test_a_table_in_a_folder_is_of_the_case_that_it_is_named_after(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("case,i,j,k\na,1,2,3\n")
    assert len(find_clicks(tmp_path, ["a", "b"])["a"].clicks) == 1
    file.write_text("case,i,j,k\na,1,2,3\nb,1,2,3\n")
    with pytest.raises(ClickError, match=f"^{file}: click 2 .* is of the case b, but the file is named after a"):
        find_clicks(tmp_path, ["a", "b"])


def test_one_file(tmp_path: Path) -> None:
    file = _own(tmp_path, [{"position": [1, 2, 3]}], "F.json")
    assert list(find_clicks(file, ["case"])) == ["case"]
    assert list(find_clicks(_own(tmp_path, [], "b.json"), ["a", "b"])) == ["b"]
    with pytest.raises(ClickError, match=f"{file} is of one case, but there are 2 cases, and none is called 'F'"):
        find_clicks(file, ["a", "b"])
    with pytest.raises(ClickError, match="no such file"):
        find_clicks(tmp_path / "absent", ["a"])


def test_files_named_after_the_image_of_a_channel(tmp_path: Path) -> None:
    file = _own(tmp_path, [], "a_0000.json")
    assert list(find_clicks(tmp_path, ["a", "b"])) == list(find_clicks(file, ["a", "b"])) == ["a"]
    assert list(find_clicks(tmp_path, ["a_0000", "a"])) == ["a_0000"]
    with pytest.raises(ClickError, match="no case 'a_0000'"):
        find_clicks(tmp_path, ["b"])


def test_a_table_of_many_cases(tmp_path: Path) -> None:
    file = tmp_path / "clicks.csv"
    file.write_text("case,i,j,k,label\na,1,2,3,tumour\nb,4,5,6,\na,7,8,9,tumour\n")
    found = find_clicks(file, ["a", "b", "c"])
    assert {case: [click.position[0] for click in content.clicks] for case, content in found.items()} == {
        "a": [1, 7], "b": [4]
    }  # fmt: skip
    with pytest.raises(
        ClickError, match=rf"{file}: click 2 \(no label\) at \(4, 5, 6\) ijk: there is no case 'b' .* a, d"
    ):
        find_clicks(file, ["a", "d"])
