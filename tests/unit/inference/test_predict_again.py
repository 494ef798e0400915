"""A prediction that is started again: what is kept, and what is predicted again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from blobs import write_blobs
from model_kit import fiducials, predict

from nnunetv2_sam3d.cli import main

QUICK = ("-f", 0, "--disable_tta")


def predicted(model: Path, images: Path, output: Path, *options: object) -> set[str]:
    """Names of the cases whose segmentations are written."""
    before = {file: file.stat().st_mtime_ns for file in output.glob("*.nii.gz")}
    predict(model, images, output, *options, "--continue_prediction")
    return {file.name[:-7] for file in output.glob("*.nii.gz") if file.stat().st_mtime_ns != before.get(file)}


def test_continued(model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, blobs = tmp_path / "out", write_blobs(tmp_path, "straight", case="copy")
    clicks = fiducials(tmp_path / "clicks" / "straight.mrk.json", blobs, [0])
    options = ("--clicks", clicks.parent, *QUICK)
    assert predicted(model, images, output, *options) == {"straight", "oblique"}
    assert predicted(model, images, output, *options) == set()
    assert "0 segmentations written" in capsys.readouterr().out
    (output / "oblique.nii.gz").unlink()
    assert predicted(model, images, output, *options) == {"oblique"}
    fiducials(clicks, blobs, [0, 1])
    assert predicted(model, images, output, *options) == {"straight"}
    assert "straight is predicted again: different clicks\n" in capsys.readouterr().out
    assert len(json.loads((output / "straight_clicks.json").read_text())["clicks"]) == 2
    write_blobs(tmp_path, "oblique sagittal", case="copy")
    clicks.rename(clicks.with_name("oblique.mrk.json"))
    with pytest.raises(AssertionError):  # the clicks of one image given to another: nothing is lost
        predicted(model, images, output, *options)
    assert {file.name for file in output.glob("straight*")} == {"straight.nii.gz", "straight_clicks.json"}
    assert not list(output.glob(".*"))


def test_what_is_kept(model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, table = tmp_path / "out", tmp_path / "clicks.csv"

    def again(*lines: str, used: Path = model, more: tuple[object, ...] = QUICK) -> set[str]:
        table.write_text("\n".join(("case,space,x,y,z,label", *lines)) + "\n")
        return predicted(used, images, output, "--clicks", table, *more)

    assert again("straight,zyx,9,9,9,tumour") == {"straight", "oblique"}
    assert again("straight,ijk,9,9,9,2") == set()  # the same click, otherwise written
    moved = shutil.copytree(model, tmp_path / "moved" / model.name)
    assert again("straight,ijk,9,9,9,2", used=moved) == set()
    assert again("straight,zyx,9,9,9,tumour", "oblique,zyx,9,9,9,tumour", used=moved) == {"oblique"}
    capsys.readouterr()
    other = ("-f", 1, "--disable_tta")
    (output / "oblique_clicks.json").unlink()
    assert again("straight,zyx,9,9,9,tumour", used=moved, more=other) == {"straight", "oblique"}
    said = capsys.readouterr().out
    assert "straight is predicted again: different model\n" in said
    assert "oblique is predicted again: different model, clicks" in said
    # killed between its two notes: the first one is there, and a line that a full disk cut off costs no other
    records = output / "predict_sam3d.jsonl"
    records.write_text(f'{records.read_text()}{{"case": "straight"}}\n{{"case": "straight", "che')
    assert again("straight,zyx,9,9,9,tumour", used=moved, more=other) == {"straight"}
    assert "straight is predicted again: nothing says what made it" in capsys.readouterr().out
    assert again("straight,zyx,9,9,9,tumour", used=moved, more=other) == set()


def test_segmentations_of_others_stay(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "oblique.nii.gz").write_text("by hand")
    with pytest.raises(AssertionError):
        predicted(model, images, output, *QUICK)
    error = capsys.readouterr().err
    assert f"{output / 'oblique.nii.gz'}: this command would overwrite" in error and "another folder with -o" in error
    assert [file.name for file in output.iterdir()] == ["oblique.nii.gz"]
    assert (output / "oblique.nii.gz").read_text() == "by hand"


def test_images_clicks_and_results_in_one_folder(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blobs = write_blobs(tmp_path, "straight", case="copy")
    file = fiducials(images / "straight.mrk.json", blobs, [0])
    assert predicted(model, images, images, "--clicks", images, *QUICK) == {"straight", "oblique"}
    assert predicted(model, images, images, "--clicks", images, *QUICK) == set()
    fiducials(file, blobs, [0, 1])
    assert predicted(model, images, images, "--clicks", images, *QUICK) == {"straight"}
    # given to another prediction, the user's own file counts; without it, the clicks of the first one
    assert "voxels (i, j, k) (7, 8, 6) tumour, (17, 9, 11) tumour\n" in capsys.readouterr().out
    fiducials(file, blobs, [2])
    straight = images / "straight_0000.nii.gz"
    predict(model, straight, tmp_path / "o", "--clicks", images, *QUICK)
    said = capsys.readouterr().out
    assert "voxels (i, j, k) (10, 15, 9) tumour\n" in said and "Warning" not in said
    of_another = shutil.copy(file, tmp_path / "oblique.mrk.json")
    predict(model, straight, tmp_path / "o", "--clicks", of_another, *QUICK, "--continue_prediction")
    assert f"{of_another} is named after oblique, but its clicks are used for straight" in capsys.readouterr().out
    record = json.loads((tmp_path / "o" / "straight_clicks.json").read_text())
    assert record["provenance"]["voxels_ijk"] == [[10, 15, 9]]
    file.unlink()
    arguments = ["predict", "-m", model, "-i", straight, "--clicks", images, "-o"]
    assert main([*map(str, arguments), str(images)]) == 1
    assert "holds no clicks but those of earlier predictions" in capsys.readouterr().err
    own = {"format": "nnunetv2_sam3d clicks", "version": 1, "space": "ijk", "clicks": []}
    (images / "straight_clicks.json").write_text(json.dumps(own))
    assert main([*map(str, arguments), str(images)]) == 1
    assert "straight_clicks.json has the name under which" in capsys.readouterr().err
    assert json.loads((images / "straight_clicks.json").read_text()) == own


def test_a_record_given_as_clicks_in_its_own_folder(model: Path, images: Path, tmp_path: Path) -> None:
    image, output = images / "straight_0000.nii.gz", tmp_path / "o"
    (table := tmp_path / "straight.csv").write_text("i,j,k\n9,9,9\n")
    predict(model, image, output, "--clicks", table, *QUICK)
    record = output / "straight_clicks.json"
    clicks = json.loads(record.read_text())["clicks"]
    predict(model, image, output, "--clicks", record, *QUICK)
    assert json.loads(record.read_text())["clicks"] == clicks
