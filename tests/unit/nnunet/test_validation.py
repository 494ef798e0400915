"""A validation belongs to a checkpoint, and one that was made under the same conditions is not made twice."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest

from nnunetv2_sam3d.nnunet.layout import FINAL, validation_summary
from nnunetv2_sam3d.nnunet.validation import (
    NOTE,
    is_outdated,
    is_validated,
    note_validated,
    take_over,
    taken_over_from,
)

CONDITIONS = {"weights": "1", "plans and settings": "2", "versions": "3"}


@pytest.fixture
def fold(tmp_path: Path) -> Path:
    """A trained and validated fold with its note."""
    made = tmp_path / "Full" / "fold_0"
    (made / "validation").mkdir(parents=True)
    (made / FINAL).write_bytes(b"first")
    nibabel.save(nibabel.Nifti1Image(np.eye(4, dtype=np.uint8)[None], np.eye(4)), made / "validation" / "case.nii.gz")
    prediction = str(made / "validation" / "case.nii.gz")
    validation_summary(made).write_text(json.dumps({"metric_per_case": [{"prediction_file": prediction}]}))
    note_validated(made, CONDITIONS)
    return made


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A fold that has a checkpoint and no validation."""
    made = tmp_path / "Eval" / "fold_0"
    made.mkdir(parents=True)
    (made / FINAL).write_bytes(b"of the other trainer")
    return made


def test_of_an_earlier_training(fold: Path) -> None:
    assert is_validated(fold)
    os.utime(validation_summary(fold), (time.time() - 100,) * 2)
    assert is_validated(fold)  # a copy, whose times say nothing
    (fold / FINAL).write_bytes(b"second")
    assert is_outdated(fold) and not is_validated(fold)
    note_validated(fold, CONDITIONS)
    assert is_validated(fold) and not is_outdated(fold)
    validation_summary(fold).with_name(NOTE).write_text("[" * 100_000)
    assert is_outdated(fold)
    (fold / FINAL).unlink()
    assert not is_validated(fold) and not is_outdated(fold)


def test_taken_over(fold: Path, other: Path) -> None:
    assert take_over(other, fold, CONDITIONS) is None
    ours, theirs = ((made / "validation" / "case.nii.gz").read_bytes() for made in (other, fold))
    assert ours == theirs
    (entry,) = json.loads(validation_summary(other).read_text())["metric_per_case"]
    assert entry["prediction_file"] == str(other / "validation" / "case.nii.gz")
    assert is_validated(other) and taken_over_from(other) == fold and taken_over_from(fold) is None
    third = other.with_name("fold_1")
    third.mkdir()
    (third / FINAL).touch()
    assert take_over(third, other, CONDITIONS) is None  # a copy is as good


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda fold: (fold / FINAL).write_bytes(b"second"), "another one by now"),
        (lambda fold: (fold / "validation" / "case.nii.gz").write_bytes(b"mess"), "not the file that it was"),
        (lambda fold: (fold / "validation" / "case.nii.gz").unlink(), "not the file that it was"),
        (lambda fold: validation_summary(fold).write_text("{}"), "not the file that it was"),
        (lambda fold: (fold / "validation" / NOTE).unlink(), "no note"),
        (lambda fold: (fold / "validation" / NOTE).write_text('{"files": []}'), "no note"),
    ],
)
def test_not_taken_over_when_a_file_differs(change, reason: str, fold: Path, other: Path) -> None:
    change(fold)
    assert reason in str(take_over(other, fold, CONDITIONS))
    assert not validation_summary(other).exists()


@pytest.mark.parametrize("key", CONDITIONS)
def test_not_taken_over_under_other_conditions(key: str, fold: Path, other: Path) -> None:
    assert take_over(other, fold, CONDITIONS | {key: "0"}) == f"different {key}"
    assert take_over(other, fold, CONDITIONS | {"device": "cuda"}) == "different device"
    assert "probabilities" in str(take_over(other, fold, CONDITIONS, probabilities=True))
    assert not (other / "validation").exists()


@pytest.mark.parametrize("left", [0, 30, -1])
def test_a_mask_that_is_cut_off_is_no_validation(left: int, fold: Path) -> None:
    """The summary may have fitted onto the disk after all; its metrics are of half a mask."""
    mask = fold / "validation" / "case.nii.gz"
    mask.write_bytes(mask.read_bytes()[:left])
    with pytest.raises(OSError, match=f"^{mask}: not written to the end"):
        note_validated(fold, CONDITIONS)
    assert not is_validated(fold)
