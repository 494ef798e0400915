"""Runs a comparison from the raw data set to its table and pictures."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

from nnunetv2_sam3d.experiment import pictures
from nnunetv2_sam3d.experiment import results_table as results
from nnunetv2_sam3d.experiment.comparison import Comparison
from nnunetv2_sam3d.experiment.devices import Device
from nnunetv2_sam3d.experiment.execute import in_order, run_steps
from nnunetv2_sam3d.experiment.models import CONFIGURATION
from nnunetv2_sam3d.experiment.steps import Record, Step
from nnunetv2_sam3d.nnunet.layout import check_paths
from nnunetv2_sam3d.planning.plans import check_click_targets, derive_plans
from nnunetv2_sam3d.trainers.names import BUDGET_PLANS, TIME_BUDGET, check_trainers
from nnunetv2_sam3d.weights.checkpoint_file import read_checkpoint


def run(comparison: Comparison, say: Callable[[str], None]) -> list[results.Row]:
    """Runs what is missing and writes table and pictures into ``comparison.folder``.

    Args:
        comparison: what is compared.
        say: takes the lines for the user.

    Raises:
        ValueError: if nnU-Net's path variables or the raw data set are missing.
        RuntimeError: if a command fails.
    """
    check_paths()
    if not (comparison.raw / "dataset.json").is_file():
        raise ValueError(
            f"{comparison.raw / 'dataset.json'} does not exist; put the raw data set there in nnU-Net's format first"
        )
    check_click_targets(comparison.raw, comparison.settings)
    check_trainers(comparison.trainers)
    environment = child_environment(comparison.processes)
    folder = comparison.folder

    def run_in_order(steps: list[Step]) -> None:
        run_steps(in_order(steps), environment, [Device(comparison.device)])

    run_in_order([comparison.prepare()])
    preprocessing = comparison.derive()
    steps = [preprocessing] if preprocessing else []
    limited = TIME_BUDGET
    first = [trainer for trainer in comparison.trainers if trainer != limited]
    steps += [comparison.training(trainer) for trainer in first]
    steps += [step for trainer in first for step in comparison.prediction(trainer)]
    run_in_order(steps)
    if limited in comparison.trainers:
        spent = sum(
            results.training_seconds(read_checkpoint(comparison.fold_folder(trainer) / "checkpoint_final.pth"))
            for trainer in first
        )
        say(f"{limited} gets the {spent:.0f} s that the other trainings took together")
        derive_plans(
            comparison.dataset,
            name=BUDGET_PLANS,
            configuration=CONFIGURATION,
            settings=replace(comparison.settings, max_seconds=round(spent)),
        )
        run_in_order([comparison.training(limited), *comparison.prediction(limited)])
    rows = results.collect(comparison, Record(folder))
    table = results.write(rows, folder)
    say("")
    say(results.as_markdown(rows))
    say("")
    say(f"table:    {table}")
    if picture := pictures.draw_overlays(comparison, folder / "overlays.png"):
        say(f"pictures: {picture}")
    say(f"logs:     {folder / 'logs'}")
    say(f"models:   {comparison.model(comparison.trainers[0]).folder.parent}")
    return rows


def child_environment(processes: int) -> dict[str, str]:
    """The environment of nnU-Net's commands: worker counts that fit the machine, unless the user has set them."""
    environment = dict(os.environ)
    for name in ("nnUNet_n_proc_DA", "nnUNet_def_n_proc"):
        environment.setdefault(name, str(processes))
    # waiting threads give their core to nnU-Net's workers; spinning ones slow a CPU training down several times
    environment.setdefault("OMP_WAIT_POLICY", "passive")
    return environment
