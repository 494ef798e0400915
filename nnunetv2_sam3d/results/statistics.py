"""Statistics over the table of cases; what the numbers do not carry is not claimed.

Means, intervals and p-values are those of :mod:`nnunetv2_sam3d.results.hierarchical`: of the recipe, over repeats,
folds and cases. The ordinary test over cases stands beside them; it is of these trainings only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import pandas as pd
from scipy import stats

from nnunetv2_sam3d.results.hierarchical import ALPHA, Estimate, estimate
from nnunetv2_sam3d.results.measure import Row, cases_frame

FEW_CASES = 10  # below, single cases say more than statistics


@dataclass(frozen=True)
class Metric:
    """The absolute values of a column of the table of cases.

    Attributes:
        key: name of the column.
        title: in tables.
        unit: of the values; scores from 0 to 1 have none.
        better: ``higher`` or ``lower``.
        digits: that tables show behind the point.
        plotted: whether the values of all cases are drawn as boxes.
        often_undefined: whether tables say for how many cases it is defined.
    """

    key: str
    title: str
    unit: str = ""
    better: str = "higher"
    digits: int = 3
    plotted: bool = True
    often_undefined: bool = False

    @property
    def label(self) -> str:
        """Title with the unit."""
        return self.title + (f" [{self.unit}]" if self.unit else "")


DICE = Metric("dice", "Dice")
METRICS = (
    DICE,
    Metric("surface_dice", "Surface Dice"),
    Metric("hd95_mm", "HD95", "mm", "lower", digits=2, often_undefined=True),
    Metric("volume_error_ml", "Absolute volume error", "ml", "lower", digits=2, plotted=False),
)


@dataclass(frozen=True)
class Summary:
    """One metric of one structure with one model. A case counts with its mean over repeats.

    Attributes:
        model: name.
        structure: label or region.
        metric: key.
        folds: mean of each fold; NaN where no case of it counts.
        fold_mean: mean of the folds' means.
        fold_sd: their standard deviation (n - 1); NaN with one fold.
        repeats: mean over cases of each repeat.
        repeat_sd: their standard deviation (n - 1); NaN with one repeat.
        mean: over all cases that count.
        low: lower end of the 95 % interval of the mean; NaN with one case.
        high: upper end.
        includes_training_noise: whether repeats are in the interval; if not, only folds tell of other trainings.
        median: over all cases that count.
        counted: number of these cases: the metric is defined for them in one repeat at least.
        cases: number of all cases.
    """

    model: str
    structure: str
    metric: str
    folds: Mapping[int, float]
    fold_mean: float
    fold_sd: float
    repeats: Mapping[int, float]
    repeat_sd: float
    mean: float
    low: float
    high: float
    includes_training_noise: bool
    median: float
    counted: int
    cases: int


@dataclass(frozen=True)
class Difference:
    """Paired differences between two models, second minus first, in the same cases and repeats.

    Attributes:
        first: name of a model; the control where one is declared.
        second: name of the other one.
        structure: label or region.
        metric: key.
        cases: pairs in which the metric is defined for both, in one repeat at least.
        repeats: mean difference of each repeat that both have; without a common one, of their means under 1.
        repeat_sd: their standard deviation (n - 1); NaN with one repeat.
        mean: over the cases, of their means over these repeats.
        low: lower end of the 95 % interval of the mean; NaN with one case.
        high: upper end.
        includes_training_noise: whether repeats are in interval and p; if not, only folds tell of other trainings.
        median: of the differences by case.
        p: two-sided, from the variance of the interval; NaN where there is none.
        p_holm: adjusted for all comparisons of this metric that have a p.
        low_holm: lower end of the interval that leaves 0 out exactly where ``p_holm`` is below 0.05.
        high_holm: upper end.
        comparisons: number of comparisons that are adjusted for.
        p_cases: of the two-sided Wilcoxon signed-rank test over the cases, which leaves training noise out; 1 if
            nothing differs, NaN without pairs.
        effect: matched-pairs rank-biserial correlation, -1 to 1; 0 if nothing differs, NaN without pairs.
        least_p: the smallest p that as many pairs can give in a test of ranks or signs; NaN without pairs.
    """

    first: str
    second: str
    structure: str
    metric: str
    cases: int
    repeats: Mapping[int, float]
    repeat_sd: float
    mean: float
    low: float
    high: float
    includes_training_noise: bool
    median: float
    p: float
    p_holm: float
    low_holm: float
    high_holm: float
    comparisons: int
    p_cases: float
    effect: float
    least_p: float


def case_means(rows: Sequence[Row], metric: Metric) -> dict[tuple[str, str], dict[str, float]]:
    """Mean over repeats of every case, by model and structure; NaN where the metric is defined in no repeat."""
    means = _frame(rows, metric).groupby(["model", "structure", "case"], sort=False)["value"].mean()
    found: dict[tuple[str, str], dict[str, float]] = {}
    for (model, structure, case), value in means.items():
        found.setdefault((model, structure), {})[case] = float(value)
    return found


def summarise(rows: Sequence[Row], metric: Metric) -> list[Summary]:
    """Per fold, over the folds, and pooled over cases; for every model and structure in their order."""
    summaries = []
    for (model, structure), group in _frame(rows, metric).groupby(["model", "structure"], sort=False):
        values = _repeats_and_cases(group)
        found, by_case, repeats = _estimate(values, group)
        low, high = found.interval()
        folds = by_case.reindex(values.columns).groupby(_folds(group, values)).mean()
        summaries.append(
            Summary(
                model,
                structure,
                metric.key,
                folds.to_dict(),
                float(folds.mean()),
                float(folds.std()),
                repeats.to_dict(),
                float(repeats.std()),
                float(found.mean),
                float(low),
                float(high),
                len(values) > 1,
                float(by_case.median()),
                len(by_case),
                values.shape[1],
            )
        )
    return summaries


def differences(rows: Sequence[Row], metric: Metric, controls: Mapping[str, str] | None = None) -> list[Difference]:
    """Each model minus its control on the cases that both have, by structure; p-values adjusted by Holm.

    Args:
        rows: of all models.
        metric: what differs.
        controls: models and their declared controls. Where no model's control is there, all pairs are compared.
    """
    found, estimates = [], []
    for structure, group in _frame(rows, metric).groupby("structure", sort=False):
        values = {model: _repeats_and_cases(entries) for model, entries in group.groupby("model", sort=False)}
        for first, second in pairs(list(values), controls or {}):
            delta = _difference(values[first], values[second])
            one, by_case, repeats = _estimate(delta, group)
            low, high = one.interval()
            p_cases, effect, least_p = paired_test(by_case.tolist())
            estimates.append(one)
            found.append(
                Difference(
                    first,
                    second,
                    str(structure),
                    metric.key,
                    len(by_case),
                    repeats.to_dict(),
                    float(repeats.std()),
                    float(one.mean),
                    float(low),
                    float(high),
                    len(delta) > 1,
                    float(by_case.median()),
                    float(one.p),
                    math.nan,
                    math.nan,
                    math.nan,
                    0,
                    p_cases,
                    effect,
                    least_p,
                )
            )
    tested = [not math.isnan(entry.p) for entry in found]
    adjusted = []
    for entry, one, p_holm in zip(found, estimates, holm([entry.p for entry in found]), strict=True):
        factor = p_holm / entry.p if entry.p else sum(tested)
        low, high = one.interval(ALPHA / factor)
        adjusted.append(
            replace(entry, p_holm=p_holm, low_holm=float(low), high_holm=float(high), comparisons=sum(tested))
        )
    return adjusted


def pairs(models: Sequence[str], controls: Mapping[str, str]) -> list[tuple[str, str]]:
    """Which models are compared: (control, model) for all whose control is there, else every earlier with later."""
    declared = [(controls[model], model) for model in models if controls.get(model) in models]
    return declared or list(combinations(models, 2))


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
    tests = sum(not math.isnan(p) for p in p_values)
    for rank, index in enumerate(np.argsort(p_values, kind="stable")[:tests]):  # NaN comes last
        highest = max(highest, min(1.0, (tests - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def verdict(difference: Difference, metric: Metric) -> str:
    """One sentence that says no more than the test does."""
    if not difference.cases:
        return "No case has a value for both models."
    if not difference.effect and difference.least_p == 1.0:
        return "No difference in any case."
    if _too_few(difference):
        return (
            f"Too few cases: with {difference.cases} pairs, interval and adjusted p rest on an assumption about how "
            f"differences are distributed, so no difference is claimed."
        )
    if not is_shown(difference):
        return "No difference shown, which is not to say that there is none."
    higher = (difference.mean > 0) == (metric.better == "higher")
    better, other = (difference.second, difference.first) if higher else (difference.first, difference.second)
    if not difference.includes_training_noise:
        return f"{better} did better than {other} in this one repeat; whether it would again takes repeats to say."
    return f"{better} is better than {other}, {len(difference.repeats)} repeats included."


def is_shown(difference: Difference) -> bool:
    """Whether the adjusted interval leaves 0 out, with pairs enough to say so without assumptions on differences."""
    return difference.p_holm < ALPHA and not _too_few(difference)


def _too_few(difference: Difference) -> bool:
    return difference.least_p * difference.comparisons >= ALPHA


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


def _frame(rows: Sequence[Row], metric: Metric) -> pd.DataFrame:
    """The table of cases with the metric as ``value``."""
    cases = cases_frame(rows)
    return cases.assign(value=cases[metric.key].abs())


def _repeats_and_cases(entries: pd.DataFrame) -> pd.DataFrame:
    """Values of one model and structure, (repeats, cases)."""
    return entries.pivot(index="repeat", columns="case", values="value")


def _difference(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """Second minus first, (common repeats, common cases)."""
    cases = first.columns.intersection(second.columns)
    repeats = first.index.intersection(second.index)
    if repeats.empty:  # unlike repeats that were asked for by name
        return (second[cases].mean() - first[cases].mean()).to_frame(1).T
    return second.loc[repeats, cases] - first.loc[repeats, cases]


def _estimate(values: pd.DataFrame, entries: pd.DataFrame) -> tuple[Estimate, pd.Series, pd.Series]:
    """The estimate from (repeats, cases), the means of the cases that count, and the means of the repeats."""
    counted = values.dropna(axis="columns", how="all")
    found = estimate(counted.to_numpy(), _folds(entries, counted).to_numpy())
    return found, counted.mean(), counted.mean(axis="columns")


def _folds(entries: pd.DataFrame, values: pd.DataFrame) -> pd.Series:
    """Fold of each column of (repeats, cases)."""
    return entries.drop_duplicates("case").set_index("case")["fold"].reindex(values.columns)
