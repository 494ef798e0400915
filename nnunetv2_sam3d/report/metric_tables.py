"""The tables of a report, those of folds among them, from rows and statistics that were computed before."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from nnunetv2_sam3d.report.tables import Table, interval, number, p_value
from nnunetv2_sam3d.results.measure import Row, cases_frame
from nnunetv2_sam3d.results.statistics import DICE, FEW_CASES, METRICS, Difference, Summary, summarise, verdict
from nnunetv2_sam3d.results.structures import Structure

SCORES = [metric for metric in METRICS if not metric.unit]


def pooled_table(summaries: Sequence[Summary], structures: Sequence[Structure], rows: Sequence[Row]) -> Table:
    """All metrics, pooled over the cases."""
    cases = cases_frame(rows)
    both_empty = cases[cases["empty"] == "both"].groupby(["model", "structure"])["case"].nunique()
    lines = []
    for structure in structures:
        for model in dict.fromkeys(summary.model for summary in summaries):
            found = {s.metric: s for s in summaries if (s.model, s.structure) == (model, structure.name)}
            line = {
                "structure": structure.name,
                "model": model,
                "tolerance [mm]": f"{structure.tolerance_mm:.3g}",
                "cases": str(found[DICE.key].cases),
                "both empty": str(both_empty.get((model, structure.name), 0)),
            }
            for metric in METRICS:
                summary = found[metric.key]
                cell = interval(summary.mean, summary.low, summary.high, metric.digits)
                if metric.often_undefined:
                    line[f"{metric.label} (defined in)"] = f"{cell} ({summary.counted}/{summary.cases})"
                else:
                    line[metric.label] = cell
            lines.append(line)
    caption = (
        "Automatic results: mean over the cases of all folds with 95 % interval over repeats, folds and cases; a case "
        "counts with its mean over the repeats. Dice and surface Dice count 1 in the cases with both masks empty (in "
        "one repeat at least) and 0 where one is; HD95 is not defined there and left out."
    )
    return Table("pooled_automatic", caption, pd.DataFrame(lines), ("structure", "model"))


def fold_table(summaries: Sequence[Summary], structures: Sequence[Structure]) -> Table:
    """Mean of each fold, and mean and SD over the folds."""
    folds = sorted({fold for summary in summaries for fold in summary.folds})
    lines = []
    for structure in structures:
        for metric in METRICS:
            for summary in summaries:
                if (summary.structure, summary.metric) != (structure.name, metric.key):
                    continue
                means = [number(summary.folds.get(fold, math.nan), metric.digits) for fold in folds]
                overall = number(summary.fold_mean, metric.digits)
                if not math.isnan(summary.fold_sd):
                    overall += f" ± {number(summary.fold_sd, metric.digits)}"
                defined = sum(not math.isnan(mean) for mean in summary.folds.values())
                if 0 < defined < len(summary.folds):
                    overall += f" ({defined} of {len(summary.folds)} folds)"
                lines.append([structure.name, metric.label, summary.model, *means, overall])
    names = ["structure", "metric", "model"]
    cells = pd.DataFrame(lines, columns=[*names, *(f"fold {fold}" for fold in folds), "mean ± SD of folds"])
    caption = (
        "Automatic results: mean of each fold's cases; the last column weighs folds equally, those without a case that "
        "counts left out."
    )
    return Table("folds_automatic", caption, cells, names)


def difference_tables(differences: Sequence[Difference], structures: Sequence[Structure]) -> list[Table]:
    """Paired differences with their tests, a table for each metric; none with one model."""
    tables = []
    for metric in METRICS:
        digits = metric.digits
        family = [entry for entry in differences if entry.metric == metric.key]
        lines = [
            {
                "structure": entry.structure,
                "difference": f"{entry.second} - {entry.first}",
                "cases": str(entry.cases),
                "repeats": str(len(entry.repeats)),
                "mean [95 % interval]": interval(entry.mean, entry.low, entry.high, digits),
                "adjusted interval": interval(entry.mean, entry.low_holm, entry.high_holm, digits).partition(" ")[2]
                or "-",
                "SD of repeats": number(entry.repeat_sd, digits),
                "p": p_value(entry.p),
                "p (Holm)": p_value(entry.p_holm),
                "p over cases": p_value(entry.p_cases),
                "effect": "-" if math.isnan(entry.effect) else f"{entry.effect:+.2f}",
                "what it shows": verdict(entry, metric),
            }
            for structure in structures
            for entry in family
            if entry.structure == structure.name
        ]
        if not lines:
            continue
        caption = (
            f"{metric.label}, automatic results: paired differences over the cases of all folds; {metric.better} is "
            f"better. Intervals and p include repeats where there are two or more; with one, training noise is left "
            f"out. Holm's adjustment is over the {family[0].comparisons} comparisons of this metric. p over cases: "
            f"Wilcoxon's signed-rank test, which leaves training noise out. Effect: matched-pairs rank-biserial "
            f"correlation, from -1 to 1."
        )
        name = f"differences_{metric.key}_automatic"
        tables.append(Table(name, caption, pd.DataFrame(lines), ("structure", "difference"), ("what it shows",)))
    return tables


def detection_table(rows: Sequence[Row], models: Sequence[str], structures: Sequence[Structure]) -> Table:
    """Empty masks, lesions found and missed, bias of volumes."""
    masks = cases_frame(rows)
    lines = []
    for structure in structures:
        for model in models:
            group = masks[(masks["model"] == model) & (masks["structure"] == structure.name)]
            empty = group["empty"].value_counts()
            detected, lesions = group["detected"].sum(), group["lesions"].sum()
            share = f" ({100 * detected / lesions:.0f} %)" if lesions else ""
            lines.append(
                {
                    "structure": structure.name,
                    "model": model,
                    "masks": str(len(group)),
                    "both empty": str(empty.get("both", 0)),
                    "missed wholly": str(empty.get("prediction", 0)),
                    "found where none is": str(empty.get("reference", 0)),
                    "lesions detected": f"{detected:.0f}/{lesions:.0f}{share}" if structure.lesion else "-",
                    "false lesions": f"{group['false_lesions'].sum():.0f}" if structure.lesion else "-",
                    "mean volume error [ml]": number(group["volume_error_ml"][group["empty"] != "both"].mean(), 2),
                    "median volume error [%]": number(group["volume_error_percent"].median(), 1),
                }
            )
    caption = (
        "Automatic results: empty masks, lesions, volumes (predicted minus annotated), counted in the masks of all "
        "repeats. A lesion is a 26-connected component of the annotation; one common voxel detects it. A false lesion "
        "is a component of the prediction without a common voxel."
    )
    return Table("detection_automatic", caption, pd.DataFrame(lines), ("structure", "model"))


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
            masks = cases_frame(group)
            line = {"volume": title, "model": model, "cases": str(masks["case"].nunique())}
            for metric in SCORES:
                (found,) = summarise(group, metric)
                low, high = (found.low, found.high) if found.counted >= FEW_CASES else (math.nan, math.nan)
                line[metric.label] = interval(found.mean, low, high, metric.digits)
            detected, lesions = masks["detected"].sum(), masks["lesions"].sum()
            lines.append(line | {"lesions detected": f"{detected:.0f}/{lesions:.0f}" if structure.lesion else "-"})
    caption = (
        f"Automatic results of {structure.name} by its annotated volume. Intervals are left out below "
        f"{FEW_CASES} cases; no test is made within groups."
    )
    return Table("groups_automatic", caption, pd.DataFrame(lines), ("volume", "model"))
