"""The tables of arms: what each one is and costs, and how much its repeats differ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from nnunetv2_sam3d.report.study import question_of
from nnunetv2_sam3d.report.tables import Table, duration, number
from nnunetv2_sam3d.report.training_record import Training
from nnunetv2_sam3d.results.statistics import DICE, METRICS, Summary
from nnunetv2_sam3d.results.structures import Structure
from nnunetv2_sam3d.results.trained_models import RepeatedModel
from nnunetv2_sam3d.trainers.names import short_name


def arms_table(
    models: Sequence[RepeatedModel], trainings: Sequence[Training], wanted_controls: Mapping[str, str]
) -> Table:
    """What every arm starts from, trains and costs, beside its declared control.

    Args:
        models: the arms.
        trainings: of all repeats and folds.
        wanted_controls: of the arms that declare one, by names.
    """
    lines = []
    for model in models:
        runs = [run for run in trainings if run.model == model.name]
        lines.append(
            {
                "arm": model.name,
                "declared control": wanted_controls.get(model.name, "-"),
                "start": _all(start_of_arm(run) for run in runs),
                "adapter": _all(", ".join((run.adapter, *run.adapter_details)) for run in runs if run.adapter),
                "what is trained": _all(", ".join(run.parts) or "nothing" for run in runs if run.adapter),
                **costs_of_arm(runs),
                "device": _all(run.device for run in runs),
                "what it answers": question_of(model.trainer) or "-",
            }
        )
    caption = (
        "Arms, from nnU-Net's logs and checkpoints. Steps and time are those of the arm itself, without validation and "
        "without the training of the model that a training starts from. Time: mean ± SD of the trainings, one for each "
        "fold and repeat. Peak memory: the largest resident memory of a training process, where it was recorded. A "
        "dash: not recorded, or none."
    )
    text = ("arm", "declared control", "start", "adapter", "device")
    return Table("arms", caption, pd.DataFrame(lines), text, ("what is trained", "what it answers"))


def costs_of_arm(runs: Sequence[Training]) -> dict[str, str]:
    """What the trainings of an arm cost, as cells by column."""
    hours = pd.Series([run.hours for run in runs], dtype=float)
    peaks = [run.peak_bytes for run in runs if run.peak_bytes]
    parameters = sorted({(run.trained or 0, run.parameters) for run in runs if run.parameters})
    return {
        "trained parameters": _all(
            f"{trained:,} ({100 * trained / (total or 1):.1f} %)" for trained, total in parameters
        ),
        "steps": _all(f"{run.steps:,}" for run in runs if run.steps is not None),
        "trainings": str(len(runs)),
        "time of one training": duration(hours.mean(), hours.std()),
        "time in all": duration(hours.sum(min_count=1)),
        "peak memory, GB": f"{max(peaks) / 1e9:.2f}" if peaks else "-",
    }


def noise_table(summaries: Sequence[Summary], structures: Sequence[Structure]) -> Table | None:
    """SD between repeats of every arm's mean over cases; nothing where no arm has two repeats."""
    if all(len(summary.repeats) < 2 for summary in summaries):
        return None
    lines = []
    for structure in structures:
        for model in dict.fromkeys(summary.model for summary in summaries):
            found = {s.metric: s for s in summaries if (s.model, s.structure) == (model, structure.name)}
            repeats = found[DICE.key].repeats
            line = {"structure": structure.name, "arm": model, "repeats": str(len(repeats))}
            line[f"{DICE.title} of each"] = " ".join(number(mean, DICE.digits) for mean in repeats.values())
            for metric in METRICS:
                line[f"SD of {metric.label}"] = number(found[metric.key].repeat_sd, metric.digits)
            lines.append(line)
    caption = (
        "Noise between repeats: standard deviation (n - 1) of the means over all cases, from training to training. "
        "Arms of a repeat share start and seeds and move together; the noise of a difference between them stands as "
        "SD of repeats in the table of differences. A dash: one repeat."
    )
    return Table("noise_automatic", caption, pd.DataFrame(lines), ("structure", "arm"))


def start_of_arm(run: Training) -> str:
    """The trainer that a training started from, or the file or kind of weights; empty if unknown."""
    return short_name((run.start or run.origin).split("__")[0])


def _all(texts: Iterable[str]) -> str:
    """Different entries in the order of their appearance."""
    return " / ".join(dict.fromkeys(filter(None, texts))) or "-"
