"""The tables of a report, from rows and statistics that were computed before."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from nnunetv2_sam3d.report.tables import Table, interval, number, p_value
from nnunetv2_sam3d.results.measure import Row
from nnunetv2_sam3d.results.statistics import FEW_CASES, METRICS, Difference, Metric, Summary, summarise, verdict
from nnunetv2_sam3d.results.structures import Structure

BY_KEY = {metric.key: metric for metric in METRICS}


def pooled_table(summaries: Sequence[Summary], structures: Sequence[Structure], rows: Sequence[Row]) -> Table:
    """All metrics, pooled over the cases."""
    both_empty = {(row.model, row.structure, row.case) for row in rows if row.measures.empty == "both"}
    empty = Counter((model, structure) for model, structure, _ in both_empty)
    lines = []
    for structure in structures:
        for model in dict.fromkeys(summary.model for summary in summaries):
            found = {s.metric: s for s in summaries if (s.model, s.structure) == (model, structure.name)}
            cells = [
                interval(found[metric.key].mean, found[metric.key].low, found[metric.key].high, _digits(metric))
                for metric in METRICS
            ]
            hd95 = found["hd95_mm"]
            cells[2] += f" ({hd95.counted}/{hd95.cases})"
            counts = [str(hd95.cases), str(empty[model, structure.name])]
            lines.append([structure.name, model, f"{structure.tolerance_mm:.3g}", *counts, *cells])
    header = ["structure", "model", "tolerance [mm]", "cases", "both empty", *(metric.label for metric in METRICS)]
    header[7] += " (defined in)"
    caption = (
        "Automatic results: mean over the cases of all folds with 95 % interval over repeats, folds and cases; a case "
        "counts with its mean over the repeats. Dice and surface Dice count 1 in the cases with both masks empty (in "
        "one repeat at least) and 0 where one is; HD95 is not defined there and left out."
    )
    return Table("pooled_automatic", caption, header, lines, frozenset({0, 1}))


def fold_table(summaries: Sequence[Summary], structures: Sequence[Structure]) -> Table:
    """Mean of each fold, and mean and SD over the folds."""
    folds = sorted({fold for summary in summaries for fold in summary.folds})
    lines = []
    for structure in structures:
        for metric in METRICS:
            for summary in summaries:
                if (summary.structure, summary.metric) != (structure.name, metric.key):
                    continue
                means = [number(summary.folds.get(fold, math.nan), _digits(metric)) for fold in folds]
                overall = number(summary.fold_mean, _digits(metric))
                spread = "" if math.isnan(summary.fold_sd) else f" ± {number(summary.fold_sd, _digits(metric))}"
                defined = sum(not math.isnan(mean) for mean in summary.folds.values())
                if 0 < defined < len(summary.folds):
                    spread += f" ({defined} of {len(summary.folds)} folds)"
                lines.append([structure.name, metric.label, summary.model, *means, overall + spread])
    header = ["structure", "metric", "model", *(f"fold {fold}" for fold in folds), "mean ± SD of folds"]
    caption = (
        "Automatic results: mean of each fold's cases; the last column weighs folds equally, those without a case that "
        "counts left out."
    )
    return Table("folds_automatic", caption, header, lines, frozenset({0, 1, 2}))


def difference_tables(differences: Sequence[Difference], structures: Sequence[Structure]) -> list[Table]:
    """Paired differences with their tests, a table for each metric; none with one model."""
    header = [
        "structure", "difference", "cases", "repeats", "mean [95 % interval]", "adjusted interval", "SD of repeats",
        "p", "p (Holm)", "p over cases", "effect", "what it carries",
    ]  # fmt: skip
    tables = []
    for metric in METRICS:
        family = [entry for entry in differences if entry.metric == metric.key]
        comparisons = max((entry.comparisons for entry in family), default=0)
        digits = _digits(metric)
        lines = [
            [
                entry.structure,
                f"{entry.second} - {entry.first}",
                str(entry.cases),
                str(len(entry.repeats)),
                interval(entry.mean, entry.low, entry.high, digits),
                interval(entry.mean, entry.low_holm, entry.high_holm, digits).partition(" ")[2] or "-",
                number(entry.repeat_sd, digits),
                p_value(entry.p),
                p_value(entry.p_holm),
                p_value(entry.p_cases),
                "-" if math.isnan(entry.effect) else f"{entry.effect:+.2f}",
                verdict(entry, metric),
            ]
            for structure in structures
            for entry in family
            if entry.structure == structure.name
        ]
        caption = (
            f"{metric.label}, automatic results: paired differences over the cases of all folds; {metric.better} is "
            f"better. Intervals and p include repeats where there are two or more; with one, training noise is left "
            f"out. Holm's adjustment is over the {comparisons} comparisons of this metric. p over cases: Wilcoxon's "
            f"signed-rank test, which leaves training noise out. Effect: matched-pairs rank-biserial correlation, from "
            f"-1 to 1."
        )
        if lines:
            name = f"differences_{metric.key}_automatic"
            tables.append(Table(name, caption, header, lines, frozenset({0, 1}), frozenset({11})))
    return tables


def detection_table(rows: Sequence[Row], models: Sequence[str], structures: Sequence[Structure]) -> Table:
    """Empty masks, lesions found and missed, bias of volumes."""
    lines = []
    for structure in structures:
        for model in models:
            group = [r.measures for r in rows if (r.model, r.structure) == (model, structure.name)]
            lesions = sum(entry.lesions or 0 for entry in group)
            detected = sum(entry.detected or 0 for entry in group)
            errors = [entry.volume_error_ml for entry in group if entry.empty != "both"]
            relative = [entry.volume_error_percent for entry in group if not math.isnan(entry.volume_error_percent)]
            lines.append(
                [
                    structure.name,
                    model,
                    str(len(group)),
                    *(str(sum(entry.empty == kind for entry in group)) for kind in ("both", "prediction", "reference")),
                    f"{detected}/{lesions}" + (f" ({100 * detected / lesions:.0f} %)" if lesions else "")
                    if structure.lesion
                    else "-",
                    str(sum(entry.false_lesions or 0 for entry in group)) if structure.lesion else "-",
                    number(float(np.mean(errors)) if errors else None, 2),
                    number(float(np.median(relative)) if relative else None, 1),
                ]
            )
    header = [
        "structure", "model", "masks", "both empty", "missed wholly", "found where none is", "lesions detected",
        "false lesions", "mean volume error [ml]", "median volume error [%]",
    ]  # fmt: skip
    caption = (
        "Automatic results: empty masks, lesions, volumes (predicted minus annotated), counted in the masks of all "
        "repeats. A lesion "
        "is a 26-connected component of the annotation; one common voxel detects it. A false lesion is a component of "
        "the prediction without a common voxel."
    )
    return Table("detection_automatic", caption, header, lines, frozenset({0, 1}))


def group_table(rows: Sequence[Row], models: Sequence[str], structure: Structure, groups: Mapping[str, str]) -> Table:
    """Dice and surface Dice of one structure by its volume."""
    lines = []
    for title in dict.fromkeys(groups.values()):
        for model in models:
            group = [
                row
                for row in rows
                if (row.model, row.structure) == (model, structure.name) and groups[row.case] == title
            ]
            cells = []
            for key in ("dice", "surface_dice"):
                (found,) = summarise(group, BY_KEY[key])
                low, high = (found.low, found.high) if found.counted >= FEW_CASES else (math.nan, math.nan)
                cells.append(interval(found.mean, low, high))
            masks = [row.measures for row in group]
            lesions, detected = sum(m.lesions or 0 for m in masks), sum(m.detected or 0 for m in masks)
            lines.append([title, model, str(found.cases), *cells, f"{detected}/{lesions}" if structure.lesion else "-"])
    caption = (
        f"Automatic results of {structure.name} by its annotated volume. Intervals are left out below "
        f"{FEW_CASES} cases; no test is made within groups."
    )
    header = ["volume", "model", "cases", "Dice", "Surface Dice", "lesions detected"]
    return Table("groups_automatic", caption, header, lines, frozenset({0, 1}))


def _digits(metric: Metric) -> int:
    return 2 if metric.unit else 3
