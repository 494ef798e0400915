"""The authors' split.pkl: read without running it, matched to cases, never written over another split."""

from __future__ import annotations

import json
import os
import pickle
from collections import OrderedDict
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunetv2_sam3d.cli import main
from nnunetv2_sam3d.nnunet.splits import import_split, make_folds, read_split

NAME = "Dataset991_Toy"
CASES = [f"case_{number:05d}" for number in range(6)]


def kits_path(case: str) -> str:
    return f"kits21/data/{case}/imaging.nii.gz"


def authors_split() -> dict[str, Any]:
    """Tables from image to label file."""
    parts = {"train": CASES[:3], "val": CASES[3:4], "test": CASES[4:]}
    return {part: {kits_path(case): f"x/{case}/seg.nii.gz" for case in names} for part, names in parts.items()}


@pytest.fixture(autouse=True)
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A raw data set of six cases; returns the place of its splits."""
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    raw = tmp_path / "raw" / NAME
    (raw / "imagesTr").mkdir(parents=True)
    for case in CASES:
        (raw / "imagesTr" / f"{case}_0000.nii.gz").touch()
    (raw / "dataset.json").write_text(json.dumps({"file_ending": ".nii.gz", "labels": {"background": 0, "tumour": 1}}))
    return tmp_path / "preprocessed" / NAME / "splits_final.json"


def write(folder: Path, content: Any, protocol: int | None = None) -> Path:
    file = folder / "split.pkl"
    file.write_bytes(pickle.dumps(content, protocol))
    return file


FOLDS = [{"train": CASES[:3], "val": CASES[3:4]}, {"train": CASES[:3], "val": CASES[4:]}]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_fold_0_is_their_validation_and_fold_1_their_test_set(tmp_path: Path, dataset: Path, protocol: int) -> None:
    file, folds, written = import_split(write(tmp_path, authors_split(), protocol), "991")
    assert (file, folds, written) == (dataset, FOLDS, True)
    assert json.loads(dataset.read_text()) == FOLDS


@pytest.mark.parametrize(
    "as_written",
    [
        lambda case: f"imagesTr/{case}_0000.nii.gz",
        lambda case: f"C:\\data\\{case}.nii",
        lambda case: case,
        lambda case: PurePosixPath("data") / case / "imaging.nii.gz",
    ],
)
@pytest.mark.parametrize("container", [list, tuple, set, OrderedDict.fromkeys])
def test_lists_and_other_spellings(tmp_path: Path, as_written: Any, container: Any) -> None:
    split = {part: container([as_written(Path(path).parent.name) for path in paths])
             for part, paths in authors_split().items()}  # fmt: skip
    assert import_split(write(tmp_path, split), "991")[1] == FOLDS


def test_numbers_match_only_when_asked(tmp_path: Path) -> None:
    split = {"train": ["volume-0.nii", "volume-1.nii", "volume-2.nii"], "test": ["volume-5.nii", "volume-3.nii"]}
    file = write(tmp_path, split)
    with pytest.raises(ValueError, match=r"5 of .*volume-0\.nii, volume-1\.nii.*case_00000.*--by-number"):
        import_split(file, "991", partial=True)
    folds = import_split(file, "991", by_number=True, partial=True)[1]
    assert folds == [{"train": CASES[:3], "val": ["case_00003", "case_00005"]}]


def test_number_of_two_cases_matches_none() -> None:
    with pytest.raises(ValueError, match="volume-1"):
        make_folds({"train": ["volume-1.nii"], "val": ["volume-2.nii"]}, ["a_1", "b_1", "a_2"], by_number=True)


def test_unknown_missing_and_doubled_cases_are_named(tmp_path: Path, dataset: Path) -> None:
    split = authors_split()
    split["test"][kits_path("case_00099")] = ""
    with pytest.raises(ValueError, match="1 of the split's files belong to no case.*case_00099"):
        import_split(write(tmp_path, split), "991")
    split = authors_split()
    del split["train"][kits_path(CASES[1])]
    with pytest.raises(ValueError, match="1 cases of the data set are in no part.*case_00001.*--partial"):
        import_split(write(tmp_path, split), "991")
    split = authors_split()
    split["test"][kits_path(CASES[0])] = ""
    with pytest.raises(ValueError, match="named twice.*case_00000"):
        import_split(write(tmp_path, split), "991")
    split = authors_split() | {"val": []}
    with pytest.raises(ValueError, match="'val' is empty"):
        import_split(write(tmp_path, split), "991", partial=True)
    assert not dataset.exists()


def test_another_split_is_kept(tmp_path: Path, dataset: Path) -> None:
    file = write(tmp_path, authors_split())
    dataset.parent.mkdir(parents=True)
    dataset.write_text("[]")
    with pytest.raises(ValueError, match="holds another split.*--force"):
        import_split(file, "991")
    assert dataset.read_text() == "[]"
    import_split(file, "991", force=True)
    backup = dataset.with_name("splits_final.json.bak")
    assert (json.loads(dataset.read_text()), backup.read_text()) == (FOLDS, "[]")
    modified = dataset.stat().st_mtime_ns
    assert import_split(file, "991")[2] is False
    assert dataset.stat().st_mtime_ns == modified
    dataset.write_text("[1]")
    with pytest.raises(ValueError, match="bak exists already"):
        import_split(file, "991", force=True)
    assert (dataset.read_text(), backup.read_text()) == ("[1]", "[]")


class _Attack:
    def __init__(self, call: Any, *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> Any:
        return self.call, self.arguments


def test_code_in_the_file_does_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "it_ran"
    for attack in (_Attack(os.system, f"touch {mark}"), _Attack(eval, f"open({str(mark)!r}, 'w')"),
                   _Attack(getattr, "x", "upper")):  # fmt: skip
        with pytest.raises(ValueError, match="could run code"):
            read_split(write(tmp_path, {"train": [attack], "val": ["a"]}))
    assert not mark.exists()


def test_a_file_cannot_change_pathlib(tmp_path: Path) -> None:
    # GLOBAL pathlib.PurePosixPath, then BUILD with slot state: sets attributes of whatever the global is
    (tmp_path / "split.pkl").write_bytes(b"cpathlib\nPurePosixPath\n(N}X\x06\x00\x00\x00suffixX\x01\x00\x00\x00xstb.")
    with pytest.raises(ValueError, match=r"expected a table|cannot be read"):
        read_split(tmp_path / "split.pkl")
    assert PurePosixPath("a.b").suffix == ".b"


@pytest.mark.parametrize("content", [[1, 2], {"train": {}}, {"train": 3, "val": ["a"]}, {"train": [1], "val": ["a"]}])
def test_something_else(tmp_path: Path, content: Any) -> None:
    with pytest.raises(ValueError, match=r"split\.pkl"):
        read_split(write(tmp_path, content))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.integers(0, 400), st.integers(0, 255), st.integers(0, 400))
def test_damaged_files_are_errors_and_nothing_else(position: int, value: int, length: int) -> None:
    content = bytearray(pickle.dumps(authors_split()))
    content[position % len(content)] = value
    file = Path(os.environ["nnUNet_raw"]) / "fuzz.pkl"
    for data in (bytes(content), bytes(content[:length])):
        file.write_bytes(data)
        try:
            assert set(read_split(file)) <= {"train", "val", "test"}
        except ValueError as error:
            assert "fuzz.pkl" in str(error)


def test_the_command_says_what_the_folds_are(tmp_path: Path, dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["splits", "import", str(write(tmp_path, authors_split())), "-d", "991"]) == 0
    output = capsys.readouterr().out
    assert str(dataset) in output
    assert "fold 1: 3 training cases, 2 validation cases" in output
    assert "fold 1 validates on their test set" in output
