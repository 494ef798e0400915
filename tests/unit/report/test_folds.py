"""Incomplete, double, foreign or unfitting masks stop a report before it is written."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from results_tree import PLANS, Tree, write_image

from nnunetv2_sam3d.cli import build_parser, main
from nnunetv2_sam3d.commands.report import command_line
from nnunetv2_sam3d.report import build
from nnunetv2_sam3d.results.collect import check_splits, collect
from nnunetv2_sam3d.results.trained_models import find_models, open_dataset
from nnunetv2_sam3d.trainers.names import SHORT_NAMES

FULL = "nnUNetTrainer_SAM3DFull"
DUAL = "nnUNetTrainer_SAM3DDualPath"


@pytest.fixture
def fails(tree: Tree, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Runs the command, which has to fail without writing a report; returns its message."""

    def run(*more: str) -> str:
        output = tmp_path / "out"
        assert (
            main(["report", "-d", "990", "--trainers", "Full", "DualPath", "-o", str(output), "-np", "1", *more]) == 1
        )
        assert not (output / "report.html").exists()
        return capsys.readouterr().err

    return run


def test_missing_predictions_are_named_all_at_once(tree: Tree, fails) -> None:
    tree.prediction(FULL, "case_003").unlink()
    tree.prediction(DUAL, "case_007").unlink()
    message = fails()
    assert "case_003" in message and "case_007" in message and "--val" in message


def test_a_prediction_that_the_split_does_not_have(tree: Tree, fails) -> None:
    shutil.copy(tree.prediction(FULL, "case_003"), tree.prediction(FULL, "case_002").with_name("case_003.nii.gz"))
    message = fails()
    assert "case_003 not in fold 2" in message


def test_a_case_in_two_folds(tree: Tree, fails) -> None:
    file = tree.preprocessed / "splits_final.json"
    splits = json.loads(file.read_text())
    splits[1]["val"].append("case_000")
    file.write_text(json.dumps(splits))
    splits[1]["train"].remove("case_000")
    file.write_text(json.dumps(splits))
    assert "case_000 would count more than once" in fails()


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_case_twice_in_a_fold(tree: Tree, fails, part: str) -> None:
    file = tree.preprocessed / "splits_final.json"
    splits = json.loads(file.read_text())
    splits[1][part].append(splits[1]["val"][0])
    file.write_text(json.dumps(splits))
    what = "a training and a validation case" if part == "train" else "twice among the cases"
    assert f"case_001 is {what} of fold 1" in fails("-f", "1")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("splits_final.json", "[]", "no list of folds"),
        ("splits_final.json", '[{"train": ["a"], "val": [1]}]', "no list of folds"),
        ("dataset.json", "{}", "has no 'labels'. Copy it from the raw data set"),
        ("dataset.json", "[]", "holds no table. Copy it"),
        ("debug.json", "[]", "Delete it; the report has a dash for the device then"),
        ("debug.json", "{", "Delete it; the report has a dash for the device then"),
        ("steps.json", "[", "Delete it; the report has a dash for the peak memory then"),
    ],
)
def test_damaged_descriptions(tree: Tree, fails, name: str, content: str, message: str) -> None:
    folders = {
        "debug.json": tree.model(FULL) / "fold_2",
        "steps.json": tree.model(FULL).parent / f"crossval__{PLANS}__3d_fullres__fold_2",
    }
    file = folders.get(name, tree.preprocessed) / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(content)
    found = fails()
    assert str(file) in found and message in found


def test_a_case_in_no_fold(tree: Tree, fails) -> None:
    file = tree.preprocessed / "splits_final.json"
    splits = json.loads(file.read_text())
    file.write_text(json.dumps(splits[:4]))
    assert "case_004, case_009 in no fold's validation set" in fails()


def test_folds_and_trainers_that_do_not_exist(tree: Tree, fails) -> None:
    assert "folds 0 to 4" in fails("-f", "7")
    message = fails("--trainers", "nnUNetTrainer_Nobody", "Ful")
    assert "nnU-Net knows no trainer 'nnUNetTrainer_Nobody' and no trainer 'Ful'. Give one of Orig" in message
    for name in (f"crossval__{PLANS}__3d_fullres__fold_0", f"comparison__{PLANS}__fold_0"):
        (tree.model(FULL).parent / name).mkdir()  # logs, and no models
    message = fails("--trainers", "Original")
    assert "nnUNetTrainer_SAM3DOriginal__nnUNetSAM3DPlans__3d_fullres does not exist" in message
    assert FULL in message and "crossval__" not in message and "comparison__" not in message
    (tree.root / "file").touch()
    assert "file is a file; give a folder" in fails("-o", str(tree.root / "file"))
    assert "named twice" in fails("--trainers", "Full", FULL)
    assert "no validation case" in fails("--view-cases", "case_099")
    assert "no structure 'spleen'" in fails("--focus", "spleen")
    assert "ascending" in fails("--volume-groups-ml", "3", "2")


def test_plans_that_do_not_exist(tree: Tree, fails) -> None:
    assert (
        "-p nnUNetPlanz: Dataset990_Phantoms has no plans of this name; there are results with nnUNetSAM3DPlans."
        in (fails("-p", "nnUNetPlanz"))
    )


def test_other_plans_are_taken_with_a_word(
    tree: Tree, fails, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(build, "measure_all", lambda *_, **__: (_ for _ in ()).throw(ValueError("measuring")))
    tree.model(FULL).rename(tree.model(FULL).with_name(f"{FULL}__nnUNetPlans__3d_fullres"))
    options = ["report", "-d", "990", "-o", str(tree.root / "out"), "--trainers", "DualPath"]
    for trainer, lines in (
        ("Full", ["Full has no results with nnUNetSAM3DPlans; those with nnUNetPlans are taken"]),
        ("Full__nnUNetPlans", []),
    ):
        assert main([*options, trainer]) == 1
        output = capsys.readouterr()
        assert "measuring" in output.err
        assert output.out.splitlines()[:-1] == lines


def test_the_order_of_folds_changes_nothing(tree: Tree) -> None:
    dataset = open_dataset(tree.preprocessed)
    models = find_models(dataset, ["Full"], PLANS, "3d_fullres", SHORT_NAMES)
    assert check_splits(dataset, [3, 0, 3]) == check_splits(dataset, [0, 3]) == (0, 3)
    orders = [collect(dataset, models, check_splits(dataset, folds)) for folds in ([3, 0], [0, 3])]
    assert orders[0] == orders[1]
    commands = [
        command_line(build_parser().parse_args(["report", "-d", "990", "--trainers", "Full", "-o", "x", "-f", *folds]))
        for folds in (("3", "0"), ("0", "3", "0"))
    ]
    assert commands[0] == commands[1]  # it stands in the report


def test_a_trainer_with_several_other_plans(tree: Tree, fails) -> None:
    for plans in ("nnUNetPlans", "nnUNetResEncLPlans"):
        (tree.model(FULL).parent / f"nnUNetTrainer__{plans}__3d_fullres").mkdir()
    assert "nnUNetTrainer__PLANS" in fails("--trainers", "nnUNetTrainer")


def test_without_a_split(tree: Tree, fails) -> None:
    (tree.preprocessed / "splits_final.json").unlink()
    assert "splits_final.json does not exist" in fails()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda image: image.SetSpacing((1.5, 1.5, 2.9)), "its spacing is"),
        (lambda image: image.SetOrigin((0.0, 0.0, 0.0)), r"lies up to 68 voxels"),
        (lambda image: image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1)), "lies up to 79 voxels"),
    ],
)
def test_another_grid(tree: Tree, fails, change, message: str) -> None:
    file = tree.prediction(DUAL, "case_004")
    image = sitk.ReadImage(str(file))
    change(image)
    sitk.WriteImage(image, str(file))
    found = fails()
    assert message in found and str(file) in found


def test_another_size(tree: Tree, fails) -> None:
    write_image(np.zeros((5, 6, 7), np.uint8), tree.prediction(DUAL, "case_004"))
    assert "its size is (7, 6, 5), the reference's (30, 28, 20)" in fails()


def test_a_file_that_was_cut_short(tree: Tree, fails) -> None:
    file = tree.prediction(DUAL, "case_004")
    file.write_bytes(file.read_bytes()[:-40])
    assert "case_004.nii.gz cannot be read" in fails()
    file.write_bytes(gzip.compress(b"not an image"))
    assert "case_004.nii.gz cannot be read" in fails()


@pytest.mark.parametrize(
    ("value", "message"), [(7, "holds the label 7"), (0.5, "no integer labels"), (257, "no integer")]
)
def test_unknown_labels(tree: Tree, fails, value: float, message: str) -> None:
    write_image(np.full((20, 28, 30), value, np.float32), tree.prediction(DUAL, "case_004"))
    assert message in fails()
