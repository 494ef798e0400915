"""The tables of arms: what each one is and costs, and how much its repeats differ."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from nnunetv2_sam3d.report.study import question_of
from nnunetv2_sam3d.report.tables import Table, duration, number
from nnunetv2_sam3d.report.training_record import Training
from nnunetv2_sam3d.results.collect import Model
from nnunetv2_sam3d.results.statistics import METRICS, Summary
from nnunetv2_sam3d.results.structures import Structure
from nnunetv2_sam3d.trainers.names import short_name


def arms_table(models: Sequence[Model], trainings: Sequence[Training], wanted_controls: Mapping[str, str]) -> Table:
    """What every arm starts from, trains and costs, beside its declared control.

    Args:
        models: the arms.
        trainings: of all repeats and folds.
        wanted_controls: of the arms that declare one, by names.
    """
    lines = []
    for model in models:
        runs = [run for run in trainings if run.model == model.name]
        hours = [run.hours for run in runs if not math.isnan(run.hours)]
        spread = float(np.std(hours, ddof=1)) if len(hours) > 1 else math.nan
        peaks = [run.peak_bytes for run in runs if run.peak_bytes]
        parameters = sorted({(run.trained or 0, run.parameters) for run in runs if run.parameters})
        lines.append(
            [
                model.name,
                wanted_controls.get(model.name, "-"),
                _all(start_of_arm(run) for run in runs),
                _all(", ".join((run.adapter, *run.adapter_details)) for run in runs if run.adapter),
                _all(", ".join(run.parts) or "nothing" for run in runs if run.adapter),
                " / ".join(f"{trained:,} ({100 * trained / (total or 1):.1f} %)" for trained, total in parameters)
                or "-",
                _all(f"{run.steps:,}" for run in runs if run.steps is not None),
                str(len(runs)),
                duration(float(np.mean(hours)), spread) if hours else "-",
                duration(math.fsum(hours)) if hours else "-",
                f"{max(peaks) / 1e9:.2f}" if peaks else "-",
                _all(run.device for run in runs),
                question_of(model.trainer) or "-",
            ]
        )
    header = [
        "arm", "declared control", "start", "adapter", "what is trained", "trained parameters", "steps", "trainings",
        "time of one", "time in all", "peak memory [GB]", "device", "what it answers",
    ]  # fmt: skip
    caption = (
        "Arms, from nnU-Net's logs and checkpoints. Steps and time are those of the arm itself, without validation and "
        "without the training of the model that a training starts from. Time: mean ± SD of the trainings, one for each "
        "fold and repeat. Peak memory: the largest resident memory of a training process, where it was recorded. A "
        "dash: not recorded, or none."
    )
    return Table("arms", caption, header, lines, frozenset({0, 1, 2, 3, 11}), frozenset({4, 12}))


def noise_table(summaries: Sequence[Summary], structures: Sequence[Structure]) -> Table | None:
    """SD between repeats of every arm's mean over cases; nothing where no arm has two repeats."""
    if all(len(summary.repeats) < 2 for summary in summaries):
        return None
    lines = []
    for structure in structures:
        for model in dict.fromkeys(summary.model for summary in summaries):
            found = {s.metric: s for s in summaries if (s.model, s.structure) == (model, structure.name)}
            spreads = [number(found[metric.key].repeat_sd, 2 if metric.unit else 3) for metric in METRICS]
            dice = found[METRICS[0].key]
            means = " ".join(number(mean) for mean in dice.repeats.values())
            lines.append([structure.name, model, str(len(dice.repeats)), means, *spreads])
    header = ["structure", "arm", "repeats", "Dice of each", *(f"SD of {metric.label}" for metric in METRICS)]
    caption = (
        "Noise between repeats: standard deviation (n - 1) of the means over all cases, from training to training. "
        "Arms of a repeat share start and seeds and move together; the noise of a difference between them stands as "
        "SD of repeats in the table of differences. A dash: one repeat."
    )
    return Table("noise_automatic", caption, header, lines, frozenset({0, 1}))


def start_of_arm(run: Training) -> str:
    """The trainer that a training started from, or the file or kind of weights; empty if unknown."""
    return short_name((run.start or run.origin).split("__")[0])


def _all(texts: Iterable[str]) -> str:
    """Different entries in the order of their appearance."""
    return " / ".join(dict.fromkeys(filter(None, texts))) or "-"
