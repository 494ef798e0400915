"""Figures of the numbers: boxes and paired lines, Bland-Altman of volumes, learning curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from nnunetv2_sam3d.report.style import MODEL_LINES, MODEL_MARKERS, colour, new_figure, short
from nnunetv2_sam3d.report.training_record import Training
from nnunetv2_sam3d.results.measure import Row
from nnunetv2_sam3d.results.statistics import Metric, case_means


def boxes(rows: Sequence[Row], models: Sequence[str], structures: Sequence[str], metric: Metric) -> Figure:
    """A box of every model with the cases, means over repeats, as dots; thin lines join the same case.

    Whiskers reach to the last case within 1.5 interquartile ranges; the diamond is the mean.
    """
    figure = new_figure(min(11.0, 1.2 + len(structures) * (0.9 + 0.62 * len(models))), 3.6)
    means = case_means(rows, metric)
    axes = figure.subplots(1, len(structures), sharey=metric.unit == "", squeeze=False)[0]
    for axis, structure in zip(axes, structures, strict=True):
        columns = [means.get((model, structure), {}) for model in models]
        cases = sorted(set().union(*columns))
        spread = {case: ((index * 0.618) % 1 - 0.5) * 0.28 for index, case in enumerate(cases)}
        for case in cases:
            points = [(place + spread[case], column.get(case, math.nan)) for place, column in enumerate(columns)]
            axis.plot(*zip(*points, strict=True), color="#999999", linewidth=0.5, alpha=0.6, zorder=1)
        for place, column in enumerate(columns):
            values = {case: value for case, value in column.items() if not math.isnan(value)}
            if not values:
                continue
            axis.boxplot(
                list(values.values()),
                positions=[place],
                widths=0.55,
                showfliers=False,
                showmeans=True,
                meanprops={"marker": "D", "markerfacecolor": "white", "markeredgecolor": "black", "markersize": 5},
                medianprops={"color": "black", "linewidth": 1.4},
                boxprops={"color": colour(place)},
                whiskerprops={"color": colour(place)},
                capprops={"color": colour(place)},
                zorder=2,
            )
            axis.plot(
                [place + spread[case] for case in values],
                list(values.values()),
                MODEL_MARKERS[place % len(MODEL_MARKERS)],
                color=colour(place),
                markersize=3.2,
                alpha=0.75,
                zorder=3,
            )
        axis.set_title(short(structure), fontsize=9)
        axis.set_xticks(range(len(models)), [short(model, 16) for model in models], rotation=30, ha="right")
        axis.set_xlim(-0.6, len(models) - 0.4)
        if metric.unit == "":
            axis.set_ylim(-0.03, 1.03)
        elif all(math.isnan(value) for column in columns for value in column.values()):
            axis.set_yticks([])
            axis.text(0.5, 0.5, "defined in no case", transform=axis.transAxes, ha="center", fontsize=8)
        else:
            axis.set_ylim(bottom=0)
    axes[0].set_ylabel(metric.label)
    return figure


def bland_altman(rows: Sequence[Row], models: Sequence[str], structures: Sequence[str]) -> Figure:
    """Volume error against the mean of both volumes, with bias and 95 % limits of agreement (1.96 SD)."""
    figure = new_figure(min(11.0, 1.0 + 2.9 * len(models)), 2.5 * len(structures) + 0.3)
    grid = figure.subplots(len(structures), len(models), squeeze=False, sharex="row", sharey="row")
    for number, (line, structure) in enumerate(zip(grid, structures, strict=True)):
        for place, (axis, model) in enumerate(zip(line, models, strict=True)):
            pairs = [
                (row.measures.reference_ml, row.measures.predicted_ml)
                for row in rows
                if (row.model, row.structure) == (model, structure) and row.measures.empty != "both"
            ]
            error = np.array([predicted - reference for reference, predicted in pairs])
            axis.axhline(0, color="black", linewidth=0.8)
            axis.plot(
                [sum(pair) / 2 for pair in pairs],
                error,
                MODEL_MARKERS[place % len(MODEL_MARKERS)],
                color=colour(place),
                markersize=4,
                alpha=0.8,
            )
            if len(error) > 1:
                bias, spread = error.mean(), 1.96 * error.std(ddof=1)
                axis.axhline(bias, color=colour(place), linewidth=1.4)
                for limit in (bias - spread, bias + spread):
                    axis.axhline(limit, color=colour(place), linewidth=1, linestyle="--")
                axis.set_xlabel(
                    f"bias {bias:+.3g}, limits {bias - spread:+.3g} to {bias + spread:+.3g} ml", fontsize=7.5
                )
            if number == 0:
                axis.set_title(short(model, 30), fontsize=9)
        line[0].set_ylabel(f"{short(structure, 18)}\npredicted - reference [ml]", fontsize=8)
    figure.supxlabel("mean of predicted and reference volume [ml]", fontsize=8.5)
    return figure


def learning_curves(trainings: Sequence[Training], models: Sequence[str]) -> Figure | None:
    """Losses and pseudo Dice of all folds, one panel column a model; ``None`` if nothing was trained."""
    trained = [model for model in models if any(_epochs(run) for run in trainings if run.model == model)]
    if not trained:
        return None
    figure = new_figure(min(11.0, 1.0 + 3.2 * len(trained)), 4.6)
    grid = figure.subplots(2, len(trained), squeeze=False, sharey="row")
    folds = sorted({run.fold for run in trainings})
    for place, model in enumerate(trained):
        for run in (run for run in trainings if run.model == model and _epochs(run)):
            look: dict[str, Any] = {
                "linestyle": MODEL_LINES[folds.index(run.fold) % len(MODEL_LINES)],
                "linewidth": 1.1,
                "marker": "o" if _epochs(run) == 1 else None,
                "markersize": 3,
            }
            grid[0][place].plot(run.curves["epoch"], run.curves["train_loss"], color="#0072B2", **look)
            grid[0][place].plot(run.curves["epoch"], run.curves["val_loss"], color="#D55E00", **look)
            grid[1][place].plot(run.curves["epoch"], run.curves["pseudo_dice"], color="#009E73", **look)
        grid[0][place].set_title(short(model, 30), fontsize=9)
        grid[1][place].set_xlabel("epoch")
        for panel in grid[:, place]:
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    grid[0][0].set_ylabel("loss")
    grid[1][0].set_ylabel("mean pseudo Dice")
    handles = [
        Line2D([], [], color="#0072B2", label="training loss"),
        Line2D([], [], color="#D55E00", label="validation loss"),
    ]
    handles += [
        Line2D([], [], color="#444444", linestyle=MODEL_LINES[index % len(MODEL_LINES)], label=f"fold {fold}")
        for index, fold in enumerate(folds)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(7, len(handles)), fontsize=8, frameon=False)
    return figure


def _epochs(run: Training) -> int:
    return len(run.curves["epoch"])
