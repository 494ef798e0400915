"""A prediction that is started again: what is kept, and what is predicted again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from blobs import write_blobs
from model_kit import fiducials, predict

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
    # of another program, or of a process that was killed
    (output / "predict_sam3d.jsonl").write_text('{"case": "straight", "che')
    assert again("straight,zyx,9,9,9,tumour", used=moved, more=other) == {"straight", "oblique"}
    assert "oblique is predicted again: nothing says what made it" in capsys.readouterr().out
