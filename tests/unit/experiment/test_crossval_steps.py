"""Which steps a cross-validation has, what it refuses beforehand, and its jobs on a cluster."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_sam3d.cli import main
from nnunetv2_sam3d.experiment import preconditions
from nnunetv2_sam3d.experiment.crossval import CrossValidation
from nnunetv2_sam3d.experiment.devices import Device, parse_devices
from nnunetv2_sam3d.experiment.models import Model
from nnunetv2_sam3d.experiment.preconditions import check, splits_of
from nnunetv2_sam3d.experiment.slurm_jobs import plan_slurm_jobs, write_scripts

Site = Any  # the class in conftest.py
Make = Callable[..., CrossValidation]
ALL = (0, 1, 2, 3, 4)


def dry_run(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    assert main(["crossval", "-d", "991", "--devices", "cpu", "--dry-run", "--trainers", *arguments]) == 0
    return capsys.readouterr().out.splitlines()


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["crossval", "-d", "991", "--devices", "cpu", "--dry-run", "--trainers", *arguments]) == 1
    message = capsys.readouterr().err
    assert message.startswith("nnUNetv2_sam3d crossval: ") and "Traceback" not in message
    return message


# --- steps ---


def test_commands_in_the_order_in_which_trainers_start(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    lines = dry_run(capsys, "DualPath", "OriginalEval", "Full", "nnUNetTrainer", "--folds", "3", "1")

    def train(trainer: str, fold: int, plans: str = "nnUNetSAM3DPlans") -> str:
        return f"nnUNetv2_train Dataset991_Toy 3d_fullres {fold} -tr nnUNetTrainer{trainer} -p {plans} -device cpu"

    expected = [
        line
        for fold in (3, 1)
        for line in (
            train("_SAM3DFull", fold),
            train("", fold, "nnUNetPlans"),
            train("_SAM3DDualPath", fold),
            train("_SAM3DOriginalEval", fold),
        )
    ]
    assert lines == expected


def test_finished_and_interrupted_trainings(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.finish("SAM3DFull", 0, 1, 2)
    (site.model("SAM3DFull") / "fold_1" / "validation" / "summary.json").unlink()
    (site.model("SAM3DFull") / "fold_2" / "validation" / "summary.json").write_text('{"me')
    lines = dry_run(capsys, "Full")
    assert lines[0].startswith("# finished: nnUNetv2_train Dataset991_Toy 3d_fullres 0")
    assert [line.endswith("--c -device cpu") for line in lines[:5]] == [True, True, True, False, False]
    assert lines[5] == (
        "nnUNetv2_accumulate_crossval_results Dataset991_Toy -c 3d_fullres -tr nnUNetTrainer_SAM3DFull "
        "-p nnUNetSAM3DPlans -f 0 1 2 3 4"
    )


def test_what_a_training_waits_for(site: Site, make: Make) -> None:
    run = make("Full", "Original", "DualPath", "OriginalEval")
    full, original, dualpath, evaluation = run.models
    assert run.training(full, 2).after == run.training(original, 2).after == ()
    for model in (dualpath, evaluation):  # as the trainers look for it: Original first
        assert run.training(model, 2).after == (run.training(original, 2),)
    site.finish("SAM3DOriginal", 4)
    run = make("Full", "DualPath")
    assert run.training(run.models[1], 2).after == (run.training(run.models[0], 2),)
    assert run.training(run.models[1], 4).after == ()  # it will start from the Original that is there
    assert run.training(run.models[0], 4).epochs == 7


def test_other_plans(make: Make) -> None:
    models = make("nnUNetTrainer", "nnUNetTrainer__nnUNetResEncUNetLPlans", "TimeBudget").models
    assert [model.plans for model in models] == ["nnUNetPlans", "nnUNetResEncUNetLPlans", "nnUNetTimeBudgetPlans"]
    with pytest.raises(ValueError, match="named twice"):
        make("Full", "nnUNetTrainer_SAM3DFull__nnUNetSAM3DPlans")
    with pytest.raises(ValueError, match="DaulPath"):
        make("DaulPath")


def test_pretrained_weights_go_to_those_that_start_alone(make: Make, tmp_path: Path) -> None:
    file = tmp_path / "original.pth"
    run = make("Original", "DualPath", "nnUNetTrainer", pretrained=file)
    starts = {model.trainer: run.training(model, 0).start for model in run.models}
    assert starts == {
        "nnUNetTrainer_SAM3DOriginal": ("-pretrained_weights", str(file)),
        "nnUNetTrainer_SAM3DDualPath": (),
        "nnUNetTrainer": (),
    }
    alone = make("DualPath", pretrained=file)
    assert alone.training(alone.models[0], 0).start == ("-pretrained_weights", str(file))


def test_accumulation_wants_every_fold(site: Site, make: Make) -> None:
    site.finish("SAM3DFull", 0, 1)
    assert [step.title for step in make("Full", folds=(3, 4)).steps()] == ["train nnUNetTrainer_SAM3DFull"] * 2
    steps = make("Full", folds=(2, 3, 4)).steps()
    assert [step.title.split()[0] for step in steps] == ["train"] * 3 + ["accumulate"]
    assert steps[-1].after == tuple(steps[:3])
    assert len(make("Full", accumulate=False).steps()) == 5


def test_accumulated_results_that_a_copy_made_older(site: Site, make: Make) -> None:
    site.finish("SAM3DFull", *ALL)
    run = make("Full")
    step = run.accumulation(run.models[0])
    (accumulated,) = step.results

    def case(name: str, dice: float, folder: Path) -> dict[str, Any]:
        return {
            "prediction_file": str(folder / f"{name}.nii.gz"),
            "metrics": {"1": {"Dice": dice, "IoU": float("nan")}},
        }

    def write(file: Path, *cases: dict[str, Any]) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"metric_per_case": cases}))

    assert not step.finished
    write(accumulated, *(case(f"case_{fold}", 0.5 + fold / 10, accumulated.parent) for fold in ALL))
    for fold in ALL:
        file = run.models[0].summary(fold)
        write(file, case(f"case_{fold}", 0.5 + fold / 10, file.parent))
    os.utime(accumulated, (1, 1))
    assert step.finished
    write(run.models[0].summary(3), case("case_3", 0.81, accumulated.parent))
    assert not step.finished
    for file in (accumulated, *map(run.models[0].summary, ALL)):
        file.write_text("{}")
    os.utime(accumulated, (1, 1))
    assert not step.finished


# --- preconditions ---


def test_splits_are_nnunets(site: Site, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """nnU-Net's own code makes the same file."""
    splits = splits_of(make("Full").models[0])
    file = site.preprocessed / "splits_final.json"
    assert json.loads(file.read_text()) == splits
    file.unlink()
    trainer = SimpleNamespace(
        dataset_class=nnUNetDatasetBlosc2, fold=0, preprocessed_dataset_folder=str(site.data),
        preprocessed_dataset_folder_base=str(site.preprocessed), folder_with_segs_from_previous_stage=None,
        print_to_log_file=lambda *_: None,
    )  # fmt: skip
    train, val = nnUNetTrainer.do_split(trainer)  # type: ignore[arg-type]
    assert json.loads(file.read_text()) == splits
    assert {"train": train, "val": val} == splits[0]


def test_too_few_cases_are_refused_before_anything_is_planned(
    site: Site, nnunet_paths: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = nnunet_paths / "raw" / "Dataset991_Toy"
    (raw / "labelsTr").mkdir(parents=True)
    shutil.copy(site.preprocessed / "dataset.json", raw)
    for number in range(4):
        (raw / "labelsTr" / f"case_{number}.nii.gz").touch()
    assert main(["experiment", "-d", "991", "--device", "cpu"]) == 1
    message = capsys.readouterr().err
    assert "the 4 training cases of Dataset991_Toy are too few for 5 folds" in message
    assert f"write your own {site.preprocessed / 'splits_final.json'}" in message


def test_refusals(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nnUNetv2_sam3d plan -d Dataset991_Toy -o Absent" in refused(capsys, "Full", "-p", "Absent")
    assert "no configuration '3d_lowres'" in refused(capsys, "Full", "-c", "3d_lowres")
    assert "no fold 5" in refused(capsys, "Full", "--folds", "4", "5")
    assert "batch of 2, which 3 GPUs" in refused(capsys, "Full", "--devices", "cuda", "--num-gpus", "3")
    assert "nnUNetTimeBudgetPlans --max-seconds" in refused(capsys, "TimeBudget")
    message = refused(capsys, "Full", "DualPath", "--pretrained-weights", "absent.pth")
    assert "absent.pth" in message
    shutil.rmtree(site.results.parent)
    (site.data / "case_3.pkl").unlink()
    assert "1 cases of the folds are not preprocessed for nnUNetSAM3DPlans: case_3" in refused(capsys, "Full")
    (site.preprocessed / "splits_final.json").write_text("[{}]")
    assert "splits_final.json is no list of folds" in refused(capsys, "Full")
    leaking = [{"train": ["case_1", "case_2"], "val": ["case_2"]}]
    (site.preprocessed / "splits_final.json").write_text(json.dumps(leaking))
    assert "case_2 is a training and a validation case of fold 0" in refused(capsys, "Full")


def test_damaged_cases_are_named_beforehand(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    dry_run(capsys, "Full")
    for case, ending, size in (("1", ".b2nd", 50), ("2", "_seg.b2nd", 0), ("4", ".pkl", 5), ("5", ".b2nd", -1)):
        file = site.data / f"case_{case}{ending}"
        file.write_bytes(file.read_bytes()[:size])
    message = refused(capsys, "Full")
    assert "4 preprocessed cases in" in message and "nnUNetv2_preprocess -d 991" in message
    assert f"in {site.data} are damaged" in message and "and 1 more" in message
    assert all(f"case_{case} (" in message for case in (1, 2, 4)) and "'case_1.b2nd'" in message


def test_images_without_numbers_are_named_beforehand(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    data, segmentation, _, properties = nnUNetDatasetBlosc2(str(site.data), ["case_3"]).load_case("case_3")
    image = np.array(data[:])
    image[0, 0, 1, 2] = np.nan
    segmentation = np.array(segmentation[:])
    for file in site.data.glob("case_3*"):
        file.unlink()
    nnUNetDatasetBlosc2.save_case(image, segmentation, properties, str(site.data / "case_3"))
    assert "case_3 (plane 0 of its image holds voxels that are no finite numbers)" in refused(capsys, "Full")


def _changed(file: Path, change: Callable[[sitk.Image], sitk.Image | None]) -> None:
    image = sitk.ReadImage(str(file))
    sitk.WriteImage(change(image) or image, str(file))


@pytest.mark.parametrize(("change", "words"), [
    (lambda image: image[1:, :, :], "its size is (8, 7, 6), the reference's (7, 7, 6)"),
    (lambda image: image.SetSpacing((1.0, 1.0, 1.1)), "its spacing is (1, 1, 1), the reference's (1, 1, 1.1)"),
    (lambda image: image * 3, "holds the label 3"),
    (lambda image: sitk.Cast(image, sitk.sitkFloat32) * 0.5, "no integer labels"),
])  # fmt: skip
def test_what_the_report_would_refuse_is_refused_beforehand(
    site: Site, change: Any, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = site.preprocessed / "gt_segmentations" / "case_3.nii.gz"
    _changed(file, change)
    message = refused(capsys, "Full")
    assert "1 annotations cannot be used" in message and words in message and str(file) in message
    file.unlink()
    assert f"{file} does not exist" in refused(capsys, "Full")
    description = json.loads((site.preprocessed / "dataset.json").read_text())
    (site.preprocessed / "dataset.json").write_text(json.dumps(description | {"channel_names": {}}))
    assert '"channel_names" (older files: "modality")' in refused(capsys, "Full")


def test_what_nnunet_accepts_is_told_beforehand(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    """An annotation whose origin differs, and the key of ``dataset.json`` that older versions wrote."""
    description = json.loads((site.preprocessed / "dataset.json").read_text())
    description["modality"] = description.pop("channel_names")
    (site.preprocessed / "dataset.json").write_text(json.dumps(description))
    _changed(site.preprocessed / "gt_segmentations" / "case_3.nii.gz", lambda image: image.SetOrigin((0.0, 0.0, 0.0)))
    lines = dry_run(capsys, "Full", "--folds", "0")
    assert (
        lines[0].startswith("# 1 annotations lie elsewhere in the patient than their images") and "case_3" in lines[0]
    )


def test_the_fold_of_all_cases_has_nothing_to_compare(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (
        ["crossval", "-d", "1", "--trainers", "Full"],
        ["report", "-d", "1", "-o", "x", "--trainers", "Full"],
    ):
        with pytest.raises(SystemExit):
            main([*command, "--folds", "all"])
        assert "has none left to validate with" in capsys.readouterr().err


def test_frozen_random_weights_are_refused_beforehand(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nnUNet_sam_checkpoint" in refused(capsys, "Original")
    assert "add Full to --trainers" in refused(capsys, "Original")
    message = refused(capsys, "DualPath", "--folds", "2", "3")
    assert "for folds 2, 3. Add Original or Full to --trainers (Full needs no pretrained weights)" in message
    assert len(dry_run(capsys, "Full", "DualPath", "--folds", "2")) == 2


def test_all_that_is_wrong_is_told_at_once(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, "Full__Absent", "DaulPath", "Orignal")
    assert "no trainer 'DaulPath'" in message and "no trainer 'Orignal'" in message
    message = refused(capsys, "Full", "TimeBudget", "DualPath", "-p", "Absent")
    assert message.count("plans that there are: nnUNetPlans, nnUNetSAM3DPlans") == 3
    assert "nnUNetv2_sam3d plan -d Dataset991_Toy -o Absent" in message and "--max-seconds" in message
    dry_run(capsys, "Full")  # makes the split
    (site.data / "case_3.pkl").unlink()
    message = refused(capsys, "DualPath", "OriginalEval", "nnUNetTrainer")
    assert message.startswith(
        "nnUNetv2_sam3d crossval: 4 things have to be put right first:\n\n1. 1 cases of the folds"
    )
    assert "2. nnUNetTrainer_SAM3DDualPath starts from" in message
    assert "3. nnUNetTrainer_SAM3DOriginalEval starts from" in message
    assert "preprocessed for nnUNetPlans" in message.split("\n\n4. ")[1]


def test_changed_plans_are_refused(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.finish("SAM3DFull", 0)
    shutil.copy(site.preprocessed / "nnUNetSAM3DPlans.json", site.model("SAM3DFull") / "plans.json")
    assert len(dry_run(capsys, "Full")) == 6
    site.write_plans("nnUNetSAM3DPlans", sam3d={"variant": "vit_tiny", "epochs": 8})
    assert "were trained with other plans" in refused(capsys, "Full")
    # a finished model as well: what starts from it would have other plans
    assert "were trained with other plans" in refused(capsys, "Full", "--folds", "0")


def test_a_full_disk_is_noticed(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make("Full")
    splits = splits_of(run.models[0])
    check(run, splits, (Device("cpu"),))
    monkeypatch.setattr(preconditions.shutil, "disk_usage", lambda _: SimpleNamespace(free=1e5))
    with pytest.raises(ValueError, match=r"0.0 GB free; the checkpoints .* Free some space"):
        check(run, splits, (Device("cpu"),))


def test_absent_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preconditions.torch.cuda, "device_count", lambda: 2)
    preconditions.check_devices(parse_devices(["cuda:1", "cpu"]))
    for names, number in ((["cuda:2"], 1), (["cuda"], 3)):
        with pytest.raises(ValueError, match="PyTorch sees 2 GPUs"):
            preconditions.check_devices(parse_devices(names, number))


# --- Slurm ---


def test_jobs(site: Site, make: Make) -> None:
    site.finish("SAM3DFull", 1, 4)
    site.finish("SAM3DDualPath", 4)
    run = make("DualPath", "Full", "nnUNetTrainer")
    options = {"sbatch": ["mem=9G", "gres=gpu:a100:1"], "environment": os.environ, "max_tasks": 2}
    jobs = plan_slurm_jobs(run, ["DualPath", "Full", "nnUNetTrainer"], ("crossval",), **options)
    full, stock, dualpath, last = jobs
    assert full.name == "Dataset991_Toy__nnUNetTrainer_SAM3DFull__nnUNetSAM3DPlans__3d_fullres"
    assert full.folds == dualpath.folds == (0, 1, 2, 3)  # fold 1 of Full ends at once; both arrays need the same tasks
    assert (full.after, stock.after, dualpath.after) == ((), (), (full.name,))
    assert stock.folds == ALL
    assert last.after == (full.name, stock.name, dualpath.name)
    assert (last.options["mem"], "gres" in last.options, full.options["gres"]) == ("9G", False, "gpu:a100:1")
    assert full.environment["nnUNet_results"] == os.environ["nnUNet_results"]
    assert "--no-accumulate" in full.command and "--no-accumulate" not in last.command
    site.finish("SAM3DFull", 0, 2, 3)
    (dualpath, *_) = plan_slurm_jobs(make("DualPath", "Full"), ["DualPath", "Full"], ("crossval",), **options)
    assert (dualpath.folds, dualpath.after) == ((0, 1, 2, 3), ())


def test_scripts_are_written_and_not_submitted(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    lines = dry_run(capsys, "Full", "DualPath", "--slurm", "--sbatch", "time=1:00:00", "--max-tasks", "3")
    submission = Path(lines[-1].split("bash ")[1])
    assert submission.is_file()
    (full,) = submission.parent.glob("*SAM3DFull*.sbatch")
    assert "#SBATCH --array=0,1,2,3,4%3\n" in full.read_text()
    assert "#SBATCH --time=1:00:00\n" in full.read_text()
    assert write_scripts([], submission.parent) == submission
    assert not list(submission.parent.glob("*.sbatch"))  # those of an earlier call are gone


def test_a_fold_that_was_trained_again_is_validated_again(site: Site) -> None:
    """Killed between the new checkpoint and its validation, it still has the summary of the earlier training."""
    site.finish("SAM3DFull", 0)
    model = Model(site.results.name, "nnUNetTrainer_SAM3DFull", "nnUNetSAM3DPlans")
    assert model.training(0, folder=site.results).finished
    os.utime(model.summary(0), (time.time() - 3600,) * 2)
    step = model.training(0, folder=site.results)
    assert not step.finished and "--c" in step.arguments()
