"""Runs a comparison from the raw data set to its report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from threading import Thread

from nnunetv2_sam3d.experiment.comparison import Comparison
from nnunetv2_sam3d.experiment.devices import Device, child_environment
from nnunetv2_sam3d.experiment.execute import run_steps
from nnunetv2_sam3d.experiment.models import CONFIGURATION
from nnunetv2_sam3d.experiment.preconditions import check, check_case_count, check_devices, splits_of
from nnunetv2_sam3d.experiment.steps import Step
from nnunetv2_sam3d.nnunet.folders import dataset_folder
from nnunetv2_sam3d.nnunet.layout import FINAL, check_paths
from nnunetv2_sam3d.planning.plans import check_click_targets, derive_plans
from nnunetv2_sam3d.trainers.names import BUDGET_PLANS, SHORT_NAMES, TIME_BUDGET, check_trainers, short_name
from nnunetv2_sam3d.weights.describe import training_seconds
from nnunetv2_sam3d.weights.reading import read_trained


def run(
    comparison: Comparison, devices: tuple[Device, ...], command: Sequence[str], say: Callable[[str], None]
) -> Path:
    """Runs what is missing and writes the report of the fold into ``comparison.folder``.

    Args:
        comparison: what is compared.
        devices: that train and predict, one command each at a time.
        command: how it was asked for, for the report's provenance.
        say: takes the lines for the user.

    Returns:
        the report's page.

    Raises:
        ValueError: if nnU-Net's path variables or the raw data set are missing, or the plans cannot be trained.
        RuntimeError: if a command fails.
    """
    check_paths()
    if not (comparison.raw / "dataset.json").is_file():
        raise ValueError(
            f"{comparison.raw / 'dataset.json'} does not exist; put the raw data set there in nnU-Net's format first"
        )
    if annotated := comparison.annotated():  # dataset.json may list cases that lie elsewhere
        check_case_count(comparison.name, len(annotated))
    check_click_targets(comparison.raw, comparison.settings)
    check_trainers(comparison.trainers)
    check_devices(devices)
    environment = child_environment(comparison.processes)
    # The report's libraries take seconds to import; nnU-Net plans meanwhile.
    Thread(target=import_module, args=("nnunetv2_sam3d.report.build",)).start()

    def run_in_turn(steps: Sequence[Step]) -> None:
        run_steps(steps, environment, devices)

    run_in_turn([comparison.prepare()])
    if preprocessing := comparison.derive():
        run_in_turn([preprocessing])
    first = [trainer for trainer in comparison.trainers if trainer != TIME_BUDGET]
    run_in_turn(_trained_and_predicted(comparison, first, devices, say))
    if TIME_BUDGET in comparison.trainers:
        models = [comparison.model(trainer) for trainer in first]
        spent = sum(training_seconds(read_trained(model.fold_folder(comparison.fold) / FINAL)) for model in models)
        say(f"{TIME_BUDGET} gets the {spent:.0f} s that the other trainings took together")
        limited = replace(comparison.settings, max_seconds=round(spent))
        derive_plans(comparison.dataset, name=BUDGET_PLANS, configuration=CONFIGURATION, settings=limited)
        run_in_turn(_trained_and_predicted(comparison, [TIME_BUDGET], devices, say))
    page = _report(comparison, command, say)
    overview = page.parent / "tables" / "overview.md"
    say(f"\n{overview.read_text()}")
    say(f"report:   {page}")
    say(f"table:    {overview}")
    say(f"pictures: {page.parent / 'figures'}")
    say(f"logs:     {comparison.training_logs} and {comparison.folder / 'logs'}")
    say(f"models:   {comparison.model(comparison.trainers[0]).folder.parent}")
    return page


def _trained_and_predicted(
    comparison: Comparison, trainers: Sequence[str], devices: tuple[Device, ...], say: Callable[[str], None]
) -> list[Step]:
    """The steps of trainers, after a look at all that could keep one of them from working."""
    splits = splits_of(comparison.model(trainers[0]))
    crossval = comparison.crossval(trainers, len(splits))
    check(crossval, splits, devices, say)
    trainings = {model.trainer: crossval.training(model, comparison.fold) for model in crossval.models}
    unseen = [name for name in trainers if comparison.unseen() and comparison.predicting(name) == name]
    return [*crossval.steps(), *(comparison.prediction(trainer, trainings[trainer]) for trainer in unseen)]


def _report(comparison: Comparison, command: Sequence[str], say: Callable[[str], None]) -> Path:
    """Writes that of the one fold, and of the unseen cases if they have annotations."""
    from nnunetv2_sam3d.report.build import write_report
    from nnunetv2_sam3d.report.request import Request
    from nnunetv2_sam3d.report.study import controls

    models = {trainer: comparison.model(trainer) for trainer in comparison.trainers}
    named = {
        trainer: short_name(trainer) if model.plans == comparison.plans else f"{short_name(trainer)}__{model.plans}"
        for trainer, model in models.items()
    }
    annotated = comparison.unseen() and (comparison.raw / "labelsTs").is_dir()
    request = Request(
        dataset=dataset_folder(comparison.dataset),
        trainers=list(named.values()),
        names=SHORT_NAMES,
        plans=comparison.plans,
        folds=[comparison.fold],
        controls=controls(),
        unseen={trainer: comparison.predicted(trainer) for trainer in models} if annotated else {},
        processes=comparison.processes,
        command=command,
    )
    return write_report(request, comparison.folder, say)
