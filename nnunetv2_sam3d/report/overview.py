"""The report's first table: every arm's Dice, and what it cost."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from nnunetv2_sam3d.report.arms import costs_of_arm
from nnunetv2_sam3d.report.request import Results
from nnunetv2_sam3d.report.tables import Table, number
from nnunetv2_sam3d.results.statistics import DICE, Summary, summarise


def overview_table(results: Results) -> Table:
    """Mean Dice of every structure in the folds' cases and in unseen ones, time, parameters, memory; a line an arm."""
    unseen = summarise(results.unseen, DICE) if results.unseen else []
    lines = []
    for model in results.models:
        line = {"arm": model.name}
        for structure in results.structures:
            line[structure.name] = _mean(results.summaries, model.name, structure.name)
            if unseen:
                line[f"{structure.name} (unseen)"] = _mean(unseen, model.name, structure.name)
        costs = costs_of_arm([run for run in results.trainings if run.model == model.name])
        shown = ("trained parameters", "time of one training", "peak memory, GB")
        lines.append(line | {name: costs[name] for name in shown})
    caption = f"{DICE.title}, automatic results: mean over the cases that the arm did not see in training" + (
        ", in the validation of its fold and, unseen, outside all folds." if unseen else "."
    )
    return Table("overview", caption, pd.DataFrame(lines), ("arm",))


def _mean(summaries: Sequence[Summary], model: str, structure: str) -> str:
    found = [s.mean for s in summaries if (s.model, s.structure, s.metric) == (model, structure, DICE.key)]
    return number(found[0] if found else math.nan, DICE.digits)
