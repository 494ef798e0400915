"""Repeats of trainings, the trainers of a study, and what both cost."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nnunetv2_sam3d.cli import main
from nnunetv2_sam3d.experiment import execute
from nnunetv2_sam3d.experiment.costs import Costs, costs_of
from nnunetv2_sam3d.experiment.crossval import CrossValidation, parse_models, with_repeats
from nnunetv2_sam3d.experiment.repeat_plans import repeated, write_repeat_plans
from nnunetv2_sam3d.experiment.slurm_jobs import plan_slurm_jobs
from nnunetv2_sam3d.experiment.steps import StepCosts
from nnunetv2_sam3d.experiment.studies import arms_of, start_of_studies
from nnunetv2_sam3d.settings import Settings

Site = Any  # the class in conftest.py
NAME, PLANS, SECOND = "Dataset991_Toy", "nnUNetSAM3DPlans", "nnUNetSAM3DPlans_repeat2"
Crossval = Callable[..., list[str]]


@pytest.fixture
def dry_run(site: Site, capsys: pytest.CaptureFixture[str]) -> Crossval:
    """A function that returns the lines of a dry run, or of the message of one that has to fail."""

    def run(*arguments: str, fails: bool = False) -> list[str]:
        assert main(["crossval", "-d", "991", "--devices", "cpu", "--dry-run", *arguments]) == fails
        output = capsys.readouterr()
        return (output.err if fails else output.out).splitlines()

    return run


@pytest.fixture
def make(site: Site) -> Callable[..., CrossValidation]:
    """A function that describes a cross-validation with two repeats."""

    def crossval(*trainers: str, folds: tuple[int, ...] = (0, 1, 2, 3, 4)) -> CrossValidation:
        models = with_repeats(parse_models(NAME, trainers, PLANS, "3d_fullres"), 2)
        write_repeat_plans(models)
        return CrossValidation(models, folds, all_folds=5)

    return crossval


def train(trainer: str, fold: int, plans: str = PLANS) -> str:
    return f"nnUNetv2_train Dataset991_Toy 3d_fullres {fold} -tr nnUNetTrainer_SAM3D{trainer} -p {plans} -device cpu"


# --- repeats ---


def test_commands_of_repeats(site: Site, dry_run: Crossval) -> None:
    site.finish("SAM3DFull", 3)
    comments = [
        "# trainings: 8, of which 1 are finished and 7 missing",
        "# time: not measured yet for DualPath, Full (known once one fold of each is finished here)",
        "# disk: about 9 MB",
    ]
    assert dry_run("--trainers", "DualPath", "Full", "--folds", "3", "1", "--repeats", "2") == [
        *comments,
        f"# finished: {train('Full', 3).replace(' -device', ' --c -device')}",
        *[train("DualPath", 3), train("Full", 1), train("DualPath", 1)],
        *[train(trainer, fold, SECOND) for fold in (3, 1) for trainer in ("Full", "DualPath")],
    ]
    copy = json.loads((site.preprocessed / f"{SECOND}.json").read_text())
    source = json.loads((site.preprocessed / f"{PLANS}.json").read_text())
    source["plans_name"] = SECOND
    source["configurations"]["3d_fullres"]["sam3d"]["repeat"] = 2
    assert copy == source


def test_one_repeat_is_as_without(site: Site, dry_run: Crossval) -> None:
    assert dry_run("--trainers", "Full", "--repeats", "1") == dry_run("--trainers", "Full")
    assert not (site.preprocessed / f"{SECOND}.json").exists()


def test_every_repeat_is_accumulated(dry_run: Crossval) -> None:
    *_, first, second = dry_run("--trainers", "Full", "--repeats", "2")
    assert first.startswith("nnUNetv2_accumulate_crossval_results") and f"-p {PLANS} -f" in first
    assert second.startswith("nnUNetv2_accumulate_crossval_results") and f"-p {SECOND} -f" in second


def test_nnunets_own_trainers_have_no_repeats(dry_run: Crossval) -> None:
    lines = dry_run("--trainers", "Full", "nnUNetTrainer", "--folds", "0", "--repeats", "3")
    assert "# trained once, since nothing seeds nnU-Net's own trainers: nnUNetTrainer" in lines
    plans = [line.split(" -p ")[1].split()[0] for line in lines if not line.startswith("#")]
    assert plans == [PLANS, "nnUNetPlans", SECOND, f"{PLANS}_repeat3"]


def test_a_training_starts_from_its_own_repeat(site: Site, make: Callable[..., CrossValidation]) -> None:
    site.finish("SAM3DOriginal", 0)
    run = make("Full", "DualPath")
    full, dualpath, second_full, second_dualpath = run.models
    assert run.training(dualpath, 0).after == ()  # the first repeat's Original is there
    assert run.training(second_dualpath, 0).after == (run.training(second_full, 0),)
    assert run.training(dualpath, 1).after == (run.training(full, 1),)
    steps = run.steps()
    assert len({(step.folder, step.title) for step in steps}) == len({step.label for step in steps}) == len(steps)
    assert run.training(second_full, 0).label == "repeat 2, fold 0: train nnUNetTrainer_SAM3DFull"


def test_other_plans_under_the_name_of_a_repeat(site: Site, dry_run: Crossval) -> None:
    arguments = ("--trainers", "Full", "--folds", "0", "--repeats", "2")
    dry_run(*arguments)
    dry_run(*arguments)  # those that are there are taken
    site.write_plans(PLANS, sam3d={"variant": "vit_tiny", "epochs": 8})
    (message,) = dry_run(*arguments, fails=True)
    file = site.preprocessed / f"{SECOND}.json"
    assert f"{file} is not repeat 2 of {site.preprocessed / PLANS}.json" in message
    assert message.endswith(f"Delete {file}, and it is written anew.")
    site.finish("SAM3DFull", 0, plans=SECOND)
    (message,) = dry_run(*arguments, fails=True)
    assert message.endswith(f"delete {file} and what was trained with it: {site.model('SAM3DFull', SECOND)}.")


def test_two_arms_that_the_plans_make_one(site: Site, dry_run: Crossval) -> None:
    site.write_plans(PLANS, sam3d={"variant": "vit_tiny", "adapter_start": "cold"})
    arms = ("--trainers", "Full", "DualPath", "DualPathCold", "--folds", "0")
    assert "DualPath and DualPathCold are the same training" in "\n".join(dry_run(*arms, fails=True))


def test_refused_repeats(dry_run: Crossval) -> None:
    arguments = ("--trainers", "Full", "--folds", "0")
    assert "at least once, got --repeats 0" in dry_run(*arguments, "--repeats", "0", fails=True)[0]
    dry_run(*arguments, "--repeats", "2")
    dry_run(*arguments, "-p", SECOND)  # a repeat alone
    (message,) = dry_run(*arguments, "-p", SECOND, "--repeats", "2", fails=True)
    assert message.endswith(f"name the plans that they repeat: {PLANS}")
    absent = "\n".join(dry_run(*arguments, "-p", f"{PLANS}_repeat7", fails=True))
    assert absent.endswith(f"crossval -d {NAME} -p {PLANS} --trainers ... --repeats 7")


def test_configurations_that_inherit_keep_their_settings() -> None:
    configurations = {
        "3d_fullres": {"sam3d": {"epochs": 5}},
        "2d": {"batch_size": 3},
        "3d_lowres": {"inherits_from": "3d_fullres"},
        "cascade": {"inherits_from": "3d_fullres", "sam3d": {"epochs": 6}},
    }
    plans = {"plans_name": "P", "configurations": configurations}
    copy = repeated(plans, 2)["configurations"]
    assert copy == {
        "3d_fullres": {"sam3d": {"epochs": 5, "repeat": 2}},
        "2d": {"batch_size": 3, "sam3d": {"repeat": 2}},
        "3d_lowres": {"inherits_from": "3d_fullres"},
        "cascade": {"inherits_from": "3d_fullres", "sam3d": {"epochs": 6, "repeat": 2}},
    }
    assert "repeat" not in configurations["3d_fullres"]["sam3d"]


def test_jobs_of_repeats(site: Site, make: Callable[..., CrossValidation]) -> None:
    site.finish("SAM3DFull", 0, 1, 2, 3, 4)
    run = make("DualPath", "Full", "nnUNetTrainer")
    jobs = plan_slurm_jobs(run, ["DualPath", "Full", "nnUNetTrainer"], ("crossval",), environment=os.environ)
    dualpath, stock, second_full, second_dualpath, last = jobs
    assert (dualpath.after, second_full.after, second_dualpath.after) == ((), (), (second_full.name,))
    second = [f"nnUNetTrainer_SAM3D{trainer}__{SECOND}" for trainer in ("DualPath", "Full")]
    assert second_dualpath.name == f"{NAME}__{second[0]}__3d_fullres"
    assert second_dualpath.command[:3] == ("crossval", "--trainers", second[0])
    assert last.command[:7] == ("crossval", "--trainers", "DualPath", "Full", "nnUNetTrainer", *second)
    # the command of a job means the same model again
    (again,) = parse_models(NAME, [second[0]], PLANS, "3d_fullres")
    assert again == run.models[3]


# --- costs ---


def test_costs_by_what_is_finished(site: Site, make: Callable[..., CrossValidation]) -> None:
    site.finish("SAM3DFull", 0, 1)
    site.finish("SAM3DFull", 0, plans=SECOND)
    site.finish("SAM3DFull", 0, plans="nnUNetSAM3DPlansOther")  # other plans cost something else
    folders = [site.model("SAM3DFull") / "fold_0", site.model("SAM3DFull") / "fold_1"]
    (folders[0] / "training_log_1.txt").write_text("x: Epoch time: 90.0 s\nx: Epoch time: 10.0 s\n")
    (folders[1] / "training_log_1.txt").write_text("x: Epoch time: 4000.0 s\n")  # went on elsewhere
    record = site.results / f"crossval__{PLANS}__3d_fullres__fold_0"
    record.mkdir()
    StepCosts(record).add("train nnUNetTrainer_SAM3DFull", 2000.0, 1)
    run = make("Full", "OriginalContinued")
    sizes = {model: 1e9 for model in run.models}
    costs = costs_of(run, sizes)
    assert (costs.trainings, costs.finished, costs.unmeasured) == (20, 3, ("OriginalContinued",))
    assert costs.seconds == 7 * (2000 + 4000) / 2
    assert costs.disk_bytes == pytest.approx(10 * 2e9, rel=0.01)  # what is finished is tiny

    assert costs.lines(2) == [
        "trainings: 20, of which 3 are finished and 17 missing",
        "time: about 5.8 h by the finished trainings, at best 2.9 h on 2 devices; not measured yet for "
        "OriginalContinued (known once one fold of each is finished here)",
        "disk: about 20.0 GB",
    ]


def test_nothing_left_costs_nothing() -> None:
    assert Costs(3, 3, 0.0, (), 0.0).lines(1) == ["trainings: 3, of which 3 are finished and 0 missing"]
    assert Costs(3, 1, 90.0, (), 5e7).lines(None)[1] == "time: about 1.5 min by the finished trainings"


# --- studies ---


def test_studies_expand_to_their_arms(dry_run: Crossval) -> None:
    def arms(*arguments: str) -> list[str]:
        lines = [line for line in dry_run("--folds", "0", "--study", *arguments) if not line.startswith("#")]
        return [line.split("-tr nnUNetTrainer_SAM3D")[1].split()[0] for line in lines]

    controls = ["OriginalEval", "OriginalContinued", "OriginalWide", "DualPath", "DualPathCold"]
    paths = ["DualPathNoGate", "DualPathLocalOnly", "DualPathConv", "DualPathFFT"]
    assert arms("controls") == ["Full", *controls]
    assert arms("paths") == ["Full", "OriginalContinued", "DualPath", *paths]
    assert arms("paths", "controls") == ["Full", *controls, *paths]
    assert len(arms("controls", "--repeats", "2")) == 12
    assert arms("controls", "--trainers", "DualPathConv", "DualPath") == [
        "Full", "OriginalEval", "OriginalContinued", "OriginalWide", "DualPathCold", "DualPathConv", "DualPath",
    ]  # fmt: skip
    first, second, *_ = dry_run("--folds", "0", "--study", "paths")
    assert first == f"# study paths: Full, OriginalContinued, DualPath, {', '.join(paths)}"
    assert second == "# trainings: 7, of which 0 are finished and 7 missing"


def test_costs_come_first_and_the_report_last(
    site: Site, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execute, "run_steps", lambda steps, *_: print(f"{len(steps)} steps"))
    assert main(["crossval", "-d", "991", "--devices", "cpu", "--study", "controls", "--folds", "0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "study controls", "trainings", "time", "disk", "6 steps", "models", "compare them",
    ]  # fmt: skip
    assert lines[-1] == f"compare them: nnUNetv2_sam3d report -d 991 -p {PLANS} -f 0 --study controls -o OUT"


def test_trainers_or_a_study(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["crossval", "-d", "991", "--study", "unknown"])
    assert "--study" in capsys.readouterr().err
    assert main(["crossval", "-d", "991"]) == 1
    assert "name the arms with --study or --trainers" in capsys.readouterr().err
    with pytest.raises(ValueError, match=f"make it: nnUNetv2_sam3d plan -d {NAME} -o Absent"):
        arms_of(["controls"], site.preprocessed / "Absent.json", "3d_fullres")
    with pytest.raises(ValueError, match="no configuration '3d_lowres'"):
        arms_of(["controls"], site.preprocessed / f"{PLANS}.json", "3d_lowres")
    with pytest.raises(ValueError, match="no study 'other'; choose from controls, paths"):
        arms_of(["other"], site.preprocessed / f"{PLANS}.json", "3d_fullres")


def test_what_a_study_starts_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert start_of_studies(Settings(variant="vit_b")) == "Original"
    assert start_of_studies(Settings(variant="vit_b", network={"embed_dim": 96})) == "Full"
    assert start_of_studies(Settings(variant="vit_tiny")) == "Full"
    (tmp_path / "encoder.pth").touch()
    monkeypatch.setenv("nnUNet_sam_checkpoint", str(tmp_path / "encoder.pth"))
    assert start_of_studies(Settings(variant="vit_tiny")) == "Original"
