"""Forest plots: an estimate a line, with its intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nnunetv2_sam3d.report.style import MODEL_MARKERS, colour, new_figure, short


@dataclass(frozen=True)
class Line:
    """One estimate.

    Attributes:
        label: left of it; lines of text.
        mean: the estimate.
        interval: both ends; NaN where there is none.
        adjusted: both ends of the interval that is adjusted for the number of comparisons; NaN without.
        repeats: the same estimate from each repeat alone.
        solid: whether training noise is in the intervals; a hollow symbol says no.
        place: number of the colour and marker.
    """

    label: str
    mean: float
    interval: tuple[float, float]
    adjusted: tuple[float, float]
    repeats: Sequence[float]
    solid: bool
    place: int


def forest(rows: Sequence[Mapping[str, Sequence[Line]]], title: str, *, zero: bool = False) -> Figure:
    """Estimates from top to bottom, a panel for each structure; the figures stand above their lines.

    Args:
        rows: rows of panels, each with axes of its own, so that large estimates do not squeeze small ones; of each
            the lines by structure, the same structures in all. The first panel's labels stand for its row.
        title: of the horizontal axes.
        zero: whether a line marks 0, no difference.
    """
    labels = [list(dict.fromkeys(line.label for lines in panels.values() for line in lines)) for panels in rows]
    heights = [0.3 + 0.62 * len(names) for names in labels]
    figure = new_figure(min(11.0, 2.6 + 2.9 * len(rows[0])), sum(heights) + 0.6 * len(rows))
    grid = figure.subplots(len(rows), len(rows[0]), sharey="row", squeeze=False, height_ratios=heights)
    for number, (panels, names, axes) in enumerate(zip(rows, labels, grid, strict=True)):
        for axis, (structure, lines) in zip(axes, panels.items(), strict=True):
            if zero:
                axis.axvline(0, color="black", linewidth=0.9)
            for line in lines:
                _draw(axis, line, len(names) - 1 - names.index(line.label), zero)
            if number == 0:
                axis.set_title(short(structure, 30), fontsize=9)
            if number == len(rows) - 1:
                axis.set_xlabel(title, fontsize=8)
            axis.margins(x=0.12)
            axis.xaxis.set_major_locator(MaxNLocator(4))  # the numbers of small differences are long
            axis.grid(False, axis="y")
            axis.spines["left"].set_visible(False)
            axis.tick_params(axis="y", length=0)
        axes[0].set_ylim(-0.6, len(names) - 0.35)
        ticks = ["\n".join(short(part, 32) for part in name.split("\n")) for name in names]
        axes[0].set_yticks(range(len(names))[::-1], ticks)
        axes[0].tick_params(axis="y", labelsize=8)
    return figure


def _draw(axis: Axes, line: Line, y: int, signed: bool) -> None:
    if math.isnan(line.mean):
        return
    tone = colour(line.place)
    for ends, width in ((line.adjusted, 1.0), (line.interval, 3.2)):
        if not math.isnan(ends[0]):
            axis.plot(ends, (y, y), color=tone, linewidth=width, solid_capstyle="butt", zorder=2)
    axis.plot(list(line.repeats), [y - 0.2] * len(line.repeats), "o", color="#666666", markersize=2.6, zorder=3)
    marker = MODEL_MARKERS[line.place % len(MODEL_MARKERS)]
    axis.plot(line.mean, y, marker, color=tone, markersize=7, markerfacecolor=tone if line.solid else "white", zorder=4)
    sign = "+" if signed else ""
    text = f"{line.mean:{sign}.3f}"
    ends = line.interval if math.isnan(line.adjusted[0]) else line.adjusted
    if not math.isnan(ends[0]):
        text += f" [{ends[0]:{sign}.3f}, {ends[1]:{sign}.3f}]"
    right = axis.get_yaxis_transform()  # x in shares of the axis: beside a short line there is no room
    axis.annotate(text, (1.0, y), (0, 8), xycoords=right, textcoords="offset points", ha="right", fontsize=7.5)
