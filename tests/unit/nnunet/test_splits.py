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
from nnunetv2_sam3d.nnunet.splits import import_split, make_folds, read_splits

NAME = "Dataset991_Toy"
CASES = [f"case_{number:05d}" for number in range(6)]


def kits_path(case: str) -> str:
    return f"kits21/data/{case}/imaging.nii.gz"


def authors_split() -> dict[str, Any]:
    """Tables from image to label file."""
    parts = {"train": CASES[:3], "val": CASES[3:4], "test": CASES[4:]}
    return {part: {kits_path(case): f"x/{case}/seg.nii.gz" for case in names} for part, names in parts.items()}


@pytest.fixture(autouse=True)
def dataset(nnunet_paths: Path) -> Path:
    """A raw data set of six cases; returns the place of its splits."""
    raw = nnunet_paths / "raw" / NAME
    (raw / "imagesTr").mkdir(parents=True)
    for case in CASES:
        (raw / "imagesTr" / f"{case}_0000.nii.gz").touch()
    (raw / "dataset.json").write_text(json.dumps({"file_ending": ".nii.gz", "labels": {"background": 0, "tumour": 1}}))
    return nnunet_paths / "preprocessed" / NAME / "splits_final.json"


def write(folder: Path, content: Any, protocol: int | None = None) -> Path:
    file = folder / "split.pkl"
    file.write_bytes(pickle.dumps(content, protocol))
    return file


FOLDS = [{"train": CASES[:3], "val": CASES[3:4]}, {"train": CASES[:3], "val": CASES[4:]}]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_fold_0_is_their_validation_and_fold_1_their_test_set(tmp_path: Path, dataset: Path, protocol: int) -> None:
    made = import_split(write(tmp_path, authors_split(), protocol), "991")
    assert (made.file, made.folds, made.written, made.offered) == (dataset, FOLDS, True, 1)
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
    assert import_split(write(tmp_path, split), "991").folds == FOLDS


def test_numbers_match_only_when_asked(tmp_path: Path) -> None:
    split = {"train": ["volume-0.nii", "volume-1.nii", "volume-2.nii"], "test": ["volume-5.nii", "volume-3.nii"]}
    file = write(tmp_path, split)
    with pytest.raises(ValueError, match=r"5 of .*volume-0\.nii, volume-1\.nii.*case_00000.*--by-number"):
        import_split(file, "991", partial=True)
    folds = import_split(file, "991", by_number=True, partial=True).folds
    assert folds == [{"train": CASES[:3], "val": ["case_00003", "case_00005"]}]


def test_number_of_two_cases_matches_none() -> None:
    with pytest.raises(ValueError, match="volume-1"):
        make_folds({"train": [("volume-1.nii",)], "val": [("volume-2.nii",)]}, ["a_1", "b_1", "a_2"], by_number=True)


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
    assert import_split(file, "991").written is False
    assert dataset.stat().st_mtime_ns == modified
    dataset.write_text("[1]")
    with pytest.raises(ValueError, match="bak exists already"):
        import_split(file, "991", force=True)
    assert (dataset.read_text(), backup.read_text()) == ("[1]", "[]")


def adapters_folds() -> list[dict[str, Any]]:
    """As 3DSAM-adapter ships its split.pkl: five folds, which table case -> [image, label]; fold 0 is a plain one."""

    def part(cases: list[str]) -> dict[str, list[str]]:
        return {case: [f"{case}/imaging.nii.gz", f"{case}/aggregated_MAJ_seg.nii.gz"] for case in cases}

    folds = []
    for number in range(5):
        test, val = CASES[number : number + 1], [CASES[(number + 1) % 6]]
        folds.append({"train": [case for case in CASES if case not in test + val], "val": val, "test": test})
    return [{name: part(cases) for name, cases in fold.items()} for fold in folds]


def test_the_list_of_five_folds_that_3dsam_adapter_ships(tmp_path: Path) -> None:
    file = write(tmp_path, adapters_folds())
    made = import_split(file, "991")
    assert made.offered == 5
    assert made.folds == [{"train": CASES[2:], "val": [CASES[1]]}, {"train": CASES[2:], "val": [CASES[0]]}]
    third = import_split(file, "991", fold=3, force=True)
    assert [fold["val"] for fold in third.folds] == [[CASES[4]], [CASES[3]]]
    with pytest.raises(ValueError, match=r"has no fold 5: it has 5.*--fold all"):
        import_split(file, "991", fold=5)


def test_all_folds_validate_on_what_no_two_of_them_share(tmp_path: Path) -> None:
    folds = adapters_folds()
    made = import_split(write(tmp_path, folds), "991", fold="all")
    assert [fold["val"] for fold in made.folds] == [[case] for case in CASES[:5]]
    assert all(fold["train"] == sorted(theirs["train"]) for fold, theirs in zip(made.folds, folds, strict=True))
    for fold in folds:  # a test set that all folds have in common, as scripts after 3DSAM-adapter write it
        fold["test"] = {CASES[5]: ["a", "b"]}
        fold["train"].pop(CASES[5], None)
    made = import_split(write(tmp_path, folds[:4]), "991", fold="all", partial=True, force=True)
    assert [fold["val"] for fold in made.folds] == [[case] for case in CASES[1:5]]
    with pytest.raises(ValueError, match="cannot be taken together"):
        import_split(write(tmp_path, [folds[0], folds[0]]), "991", fold="all", partial=True)


def test_the_numbered_files_that_3dmedsam_fda_writes(tmp_path: Path) -> None:
    numbered = {part: {number: f"npz/{Path(path).parent.name}.npz" for number, path in enumerate(paths)}
                for part, paths in authors_split().items()}  # fmt: skip
    assert import_split(write(tmp_path, {0: numbered}), "991").folds == FOLDS


def test_the_image_counts_where_the_case_has_another_name(tmp_path: Path) -> None:
    split = {part: {f"patient {case[-1]}": [f"imagesTr/{case}_0000.nii.gz", "labelsTr/x.nii.gz"] for case in cases}
             for part, cases in (("train", CASES[:3]), ("val", CASES[3:4]), ("test", CASES[4:]))}  # fmt: skip
    assert import_split(write(tmp_path, [split]), "991").folds == FOLDS
    split["val"] = {"patient 9": ["imagesTr/case_00009_0000.nii.gz", "labelsTr/x.nii.gz"]}
    with pytest.raises(ValueError, match=r"1 of the split's files.*imagesTr/case_00009_0000\.nii\.gz"):
        import_split(write(tmp_path, [split]), "991")


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
            read_splits(write(tmp_path, {"train": [attack], "val": ["a"]}))
    assert not mark.exists()


def test_a_file_cannot_change_pathlib(tmp_path: Path) -> None:
    # GLOBAL pathlib.PurePosixPath, then BUILD with slot state: sets attributes of whatever the global is
    (tmp_path / "split.pkl").write_bytes(b"cpathlib\nPurePosixPath\n(N}X\x06\x00\x00\x00suffixX\x01\x00\x00\x00xstb.")
    with pytest.raises(ValueError, match="expected a list of folds|cannot be read"):
        read_splits(tmp_path / "split.pkl")
    assert PurePosixPath("a.b").suffix == ".b"


@pytest.mark.parametrize("content", [[1, 2], {"train": {}}, {"train": 3, "val": ["a"]}, {"train": [1], "val": ["a"]}])
def test_something_else(tmp_path: Path, content: Any) -> None:
    with pytest.raises(ValueError, match=r"split\.pkl"):
        read_splits(write(tmp_path, content))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.integers(0, 400), st.integers(0, 255), st.integers(0, 400))
def test_damaged_files_are_errors_and_nothing_else(position: int, value: int, length: int) -> None:
    content = bytearray(pickle.dumps(authors_split()))
    content[position % len(content)] = value
    file = Path(os.environ["nnUNet_raw"]) / "fuzz.pkl"
    for data in (bytes(content), bytes(content[:length])):
        file.write_bytes(data)
        try:
            assert all(set(fold) <= {"train", "val", "test"} for fold in read_splits(file))
        except ValueError as error:
            assert "fuzz.pkl" in str(error)


def test_the_command_says_what_the_folds_are(tmp_path: Path, dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["splits", "import", str(write(tmp_path, authors_split())), "-d", "991"]) == 0
    output = capsys.readouterr().out
    assert str(dataset) in output
    assert "fold 1: 3 training cases, 2 validation cases" in output
    assert "fold 1 validates on their test set" in output
    assert main(["splits", "import", str(write(tmp_path, adapters_folds())), "-d", "991", "--force"]) == 0
    assert "The file has 5 folds of its own, and this is fold 0." in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["splits", "import", "split.pkl", "-d", "991", "--fold", "first"])
