"""Statistics over the table of cases; what the numbers do not carry is not claimed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, TypeVar

import numpy as np
from scipy import stats

from nnunetv2_sam3d.evaluation.cases import Row

Entry = TypeVar("Entry")
RESAMPLES = 10_000
CONFIDENCE = 0.95
ALPHA = 0.05
FEW_CASES = 10  # below, a bootstrap interval of a mean is known to be too narrow


@dataclass(frozen=True)
class Metric:
    """A column of figures.

    Attributes:
        key: in files.
        title: in tables.
        unit: of the values.
        better: ``higher`` or ``lower``.
        value: reads it from a row; NaN where it is not defined.
    """

    key: str
    title: str
    unit: str
    better: str
    value: Callable[[Row], float]


METRICS = (
    Metric("dice", "Dice", "", "higher", lambda row: row.measures.dice),
    Metric("surface_dice", "Surface Dice", "", "higher", lambda row: row.measures.surface_dice),
    Metric("hd95_mm", "HD95", "mm", "lower", lambda row: row.measures.hd95_mm),
    Metric("volume_error_ml", "Absolute volume error", "ml", "lower", lambda row: abs(row.measures.volume_error_ml)),
)


@dataclass(frozen=True)
class Summary:
    """One metric of one structure with one model.

    Attributes:
        model: name.
        structure: label or region.
        metric: key.
        folds: mean of each fold; NaN where no case of it counts.
        fold_mean: mean of the folds' means.
        fold_sd: their standard deviation (n - 1); NaN with one fold.
        mean: over all cases that count.
        low: lower end of the bootstrap interval of the mean.
        high: upper end.
        median: over all cases that count.
        counted: number of these cases.
        cases: number of all cases.
    """

    model: str
    structure: str
    metric: str
    folds: Mapping[int, float]
    fold_mean: float
    fold_sd: float
    mean: float
    low: float
    high: float
    median: float
    counted: int
    cases: int


@dataclass(frozen=True)
class Difference:
    """Paired differences between two models, second minus first.

    Attributes:
        first: name of a model.
        second: name of the other one.
        structure: label or region.
        metric: key.
        cases: pairs in which the metric is defined for both.
        mean: of the differences.
        low: lower end of its bootstrap interval.
        high: upper end.
        median: of the differences.
        p: of the two-sided Wilcoxon signed-rank test; 1 if nothing differs, NaN without pairs.
        p_holm: adjusted for all comparisons of this metric that have pairs.
        effect: matched-pairs rank-biserial correlation, -1 to 1; 0 if nothing differs, NaN without pairs.
        least_p: the smallest p that as many pairs can give at all; NaN without pairs.
    """

    first: str
    second: str
    structure: str
    metric: str
    cases: int
    mean: float
    low: float
    high: float
    median: float
    p: float
    p_holm: float
    effect: float
    least_p: float


def summarise(rows: Sequence[Row], metric: Metric, seed: int = 0) -> list[Summary]:
    """Per fold, over the folds, and pooled over cases; for every model and structure in their order."""
    summaries = []
    for (model, structure), group in _groups(rows, lambda row: (row.model, row.structure)).items():
        by_fold = _groups(group, lambda row: row.fold)
        folds = {fold: _mean(_values(by_fold[fold], metric)) for fold in sorted(by_fold)}
        means = _finite(list(folds.values()))
        values = _values(group, metric)
        low, high = bootstrap_interval(values, seed)
        summaries.append(
            Summary(
                model,
                structure,
                metric.key,
                folds,
                _mean(means),
                float(np.std(means, ddof=1)) if len(means) > 1 else math.nan,
                _mean(values),
                low,
                high,
                float(np.median(values)) if len(values) else math.nan,
                len(values),
                len(group),
            )
        )
    return summaries


def differences(rows: Sequence[Row], metric: Metric, seed: int = 0) -> list[Difference]:
    """All pairs of models on the cases that both have, by structure; p-values adjusted by Holm."""
    found = []
    for structure, group in _groups(rows, lambda row: row.structure).items():
        by_model = _groups(group, lambda row: row.model)
        for first, second in combinations(by_model, 2):
            one = {row.case: metric.value(row) for row in by_model[first]}
            two = {row.case: metric.value(row) for row in by_model[second]}
            common = [case for case in one if case in two]
            delta = _finite([two[case] - one[case] for case in common])
            low, high = bootstrap_interval(delta, seed)
            p, effect, least_p = paired_test(delta)
            found.append(
                Difference(
                    first,
                    second,
                    structure,
                    metric.key,
                    len(delta),
                    _mean(delta),
                    low,
                    high,
                    float(np.median(delta)) if len(delta) else math.nan,
                    p,
                    math.nan,
                    effect,
                    least_p,
                )
            )
    p_values = holm([difference.p for difference in found])
    return [replace(entry, p_holm=p) for entry, p in zip(found, p_values, strict=True)]


def bootstrap_interval(values: Sequence[float], seed: int) -> tuple[float, float]:
    """Percentile interval of the mean over cases, from resampled cases; NaN with fewer than two values.

    Args:
        values: of the cases.
        seed: of the resampling; the same for all quantities, so that equal values get equal intervals.
    """
    if len(values) < 2:
        return math.nan, math.nan
    generator = np.random.default_rng(seed)
    data = np.asarray(values, float)
    means = np.empty(RESAMPLES)
    for start in range(0, RESAMPLES, 500):  # 500 at a time: memory stays small with thousands of cases
        means[start : start + 500] = data[generator.integers(0, len(data), (500, len(data)))].mean(1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def paired_test(delta: Sequence[float]) -> tuple[float, float, float]:
    """Wilcoxon signed-rank test of paired differences; pairs without difference are dropped.

    Rounding noise below 1e-12 is no difference.

    Returns:
        two-sided p, matched-pairs rank-biserial correlation, and the smallest p that so many pairs can give; NaN
        without pairs.
    """
    if not len(delta):
        return math.nan, math.nan, math.nan
    values = np.asarray([value for value in delta if abs(value) > 1e-12])
    if not len(values):
        return 1.0, 0.0, 1.0
    ranks = stats.rankdata(np.abs(values))
    effect = float((ranks[values > 0].sum() - ranks[values < 0].sum()) / ranks.sum())
    p = float(stats.wilcoxon(values, zero_method="wilcox", alternative="two-sided").pvalue)
    return p, effect, min(1.0, 2.0 ** (1 - len(values)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment of the p-values that are defined."""
    adjusted = [math.nan] * len(p_values)
    highest = 0.0
    tests = len(_finite(p_values))
    for rank, index in enumerate(np.argsort(p_values, kind="stable")[:tests]):  # NaN comes last
        highest = max(highest, min(1.0, (tests - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def verdict(difference: Difference, metric: Metric, comparisons: int) -> str:
    """One sentence that says no more than the test does."""
    if not difference.cases:
        return "No case has a value for both models."
    if not difference.effect and difference.least_p == 1.0:
        return "No difference in any case."
    if difference.least_p * comparisons >= ALPHA:
        return (
            f"Too few cases: the {difference.cases} pairs cannot give an adjusted p below {ALPHA}, whatever they hold."
        )
    if difference.p_holm >= ALPHA:
        return "No difference shown, which is not to say that there is none."
    if not difference.mean * difference.effect > 0:
        return "The test finds a difference, but mean and ranks point in opposite directions: look at the cases."
    better = difference.second if (difference.effect > 0) == (metric.better == "higher") else difference.first
    return f"{better} is better on these cases."


def volume_groups(rows: Sequence[Row], structure: str, borders_ml: Sequence[float] | None = None) -> dict[str, str]:
    """The sub-group of every case by the reference volume of a structure.

    Args:
        rows: of one model at least.
        structure: whose volume counts.
        borders_ml: ascending; by default tertiles with 9 cases or more, the median with 4 or more, else no groups.

    Returns:
        group titles by case, in ascending order; cases without the structure are a group of their own. Empty without
        groups.
    """
    volumes = {row.case: row.measures.reference_ml for row in rows if row.structure == structure}
    sizes = sorted(volume for volume in volumes.values() if volume)
    if borders_ml is None:
        if len(sizes) < 4:
            return {}
        borders_ml = [float(np.quantile(sizes, share)) for share in ((1 / 3, 2 / 3) if len(sizes) >= 9 else (1 / 2,))]
    titles = ["none", f"up to {borders_ml[0]:.3g} ml"]
    titles += [f"{low:.3g} to {high:.3g} ml" for low, high in zip(borders_ml, borders_ml[1:], strict=False)]
    titles.append(f"over {borders_ml[-1]:.3g} ml")
    places = {case: 1 + int(np.searchsorted(borders_ml, size)) if size else 0 for case, size in volumes.items()}
    return {case: titles[places[case]] for case in sorted(volumes, key=lambda case: (places[case], case))}


def _values(rows: Sequence[Row], metric: Metric) -> list[float]:
    return _finite([metric.value(row) for row in rows])


def _finite(values: Sequence[float]) -> list[float]:
    return [value for value in values if not math.isnan(value)]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if len(values) else math.nan


def _groups(entries: Sequence[Entry], key: Callable[[Entry], Any]) -> dict[Any, list[Entry]]:
    """Entries by key, both in their first order."""
    groups: dict[Any, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(key(entry), []).append(entry)
    return groups
