"""Intervals over repeats, folds and cases against tables whose variances are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from nnunetv2_sam3d.results.hierarchical import estimate

TABLES = 500
FOLDS = 5
# Standard deviations of repeat, fold, training (a fold of a repeat), case, and what is left in a case of a repeat.
MIXTURES = {
    "cases alone": (0.0, 0.0, 0.0, 1.0, 0.0),
    "cases and folds": (0.0, 0.5, 0.0, 1.0, 0.3),
    "trainings differ a little": (0.0, 0.0, 0.3, 1.0, 0.3),
    "trainings differ much": (0.0, 0.0, 1.5, 1.0, 0.3),
    "repeats and trainings": (0.3, 0.2, 0.5, 1.0, 0.5),
    "repeats differ much": (1.0, 0.0, 0.3, 1.0, 0.3),
}
MEAN = 0.37


def simulated(mixture: str, repeats: int, cases: int = 6, tables: int = TABLES) -> tuple[np.ndarray, np.ndarray]:
    """Tables (tables, repeats, FOLDS * cases) with the mean MEAN, and the folds of the cases."""
    draw = np.random.default_rng(len(mixture) + 7 * repeats).normal
    repeat, fold, training, case, rest = MIXTURES[mixture]
    values = (
        MEAN
        + repeat * draw(size=(tables, repeats, 1, 1))
        + fold * draw(size=(tables, 1, FOLDS, 1))
        + training * draw(size=(tables, repeats, FOLDS, 1))
        + case * draw(size=(tables, 1, FOLDS, cases))
        + rest * draw(size=(tables, repeats, FOLDS, cases))
    )
    return values.reshape(tables, repeats, -1), np.repeat(np.arange(FOLDS), cases)


def coverage(low: np.ndarray, high: np.ndarray) -> float:
    return float(((low <= MEAN) & (high >= MEAN)).mean())


def of_cases_alone(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Student's interval over the cases of one training for each fold, as an ordinary comparison has it."""
    first = values[:, 0]
    error = first.std(-1, ddof=1) / math.sqrt(first.shape[-1])
    reach = stats.t.ppf(0.975, first.shape[-1] - 1) * error
    return first.mean(-1) - reach, first.mean(-1) + reach


@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("cases", [6, 42])
def test_three_repeats_cover_what_they_say(mixture: str, cases: int) -> None:
    values, folds = simulated(mixture, repeats=3, cases=cases)
    assert 0.90 <= coverage(*estimate(values, folds).interval()) <= 0.98


@pytest.mark.parametrize("mixture", [name for name, deviations in MIXTURES.items() if not deviations[0]])
def test_one_repeat_covers_where_repeats_share_nothing(mixture: str) -> None:
    values, folds = simulated(mixture, repeats=1)
    assert 0.90 <= coverage(*estimate(values, folds).interval()) <= 0.98


@pytest.mark.parametrize("mixture", ["trainings differ much", "repeats differ much"])
def test_cases_of_one_training_are_visibly_too_narrow(mixture: str) -> None:
    values, folds = simulated(mixture, repeats=3)
    assert coverage(*of_cases_alone(values)) < 0.8
    assert coverage(*estimate(values, folds).interval()) >= 0.9


@pytest.mark.parametrize("repeats", [2, 3])
def test_intervals_are_never_absurd(repeats: int) -> None:
    values, folds = simulated("repeats and trainings", repeats=repeats)
    assert estimate(values, folds).freedom.min() >= repeats - 1


def test_folds_that_agree_by_chance_claim_nothing() -> None:
    """Two repeats whose means of folds cancel: every fold has the same mean over repeats, no training has."""
    folds = np.repeat(np.arange(FOLDS), 6)
    by_fold = np.array([-1.6, -2.7, 3.4, -0.3, -1.1])
    values = np.stack([by_fold, -1.5 - by_fold])[:, folds]
    assert float(estimate(values, folds).p) > 0.2


def test_cases_alone_are_right_where_nothing_else_varies() -> None:
    assert 0.92 <= coverage(*of_cases_alone(simulated("cases alone", repeats=1)[0])) <= 0.98


def test_p_is_below_alpha_exactly_where_the_interval_leaves_nothing_out() -> None:
    values, folds = simulated("repeats and trainings", repeats=3)
    found = estimate(values, folds)
    low, high = found.interval()
    assert ((found.p < 0.05) == ~((low <= 0) & (high >= 0))).all()
    assert 0.05 < (found.p < 0.05).mean() < 0.95


def test_p_of_no_effect_is_rarely_small() -> None:
    values, folds = simulated("repeats and trainings", repeats=3)
    assert 0.02 <= (estimate(values - MEAN, folds).p < 0.05).mean() <= 0.10


def test_the_error_is_the_known_one() -> None:
    """Mean square error over many tables against the mean of the estimated variances."""
    values, folds = simulated("repeats and trainings", repeats=3, tables=4000)
    found = estimate(values, folds)
    repeat, fold, training, case, rest = MIXTURES["repeats and trainings"]
    known = repeat**2 / 3 + fold**2 / 5 + training**2 / 15 + case**2 / 30 + rest**2 / 90
    assert np.var(found.mean) == pytest.approx(known, rel=0.1)
    assert 0.95 * known < np.mean(found.error**2) < 1.25 * known  # never below: the maximum with 0 only adds


def test_one_fold_is_students_interval_over_cases() -> None:
    values = np.array([[0.1, 0.4, 0.3, 0.2]])
    low, high = estimate(values, np.zeros(4)).interval()
    assert (low, high) == pytest.approx(stats.t.interval(0.95, 3, values.mean(), stats.sem(values[0])))


def test_gaps_and_small_tables() -> None:
    gaps = np.array([[0.2, math.nan, 0.4, 0.5], [0.4, 0.3, math.nan, 0.5]])
    found = estimate(gaps, np.array([0, 0, 1, 1]))
    assert found.mean == pytest.approx(np.mean([0.3, 0.3, 0.4, 0.5])) and found.error > 0
    single = estimate(np.array([[0.5]]), np.array([0]))
    assert single.mean == 0.5 and math.isnan(single.error)
    assert math.isnan(estimate(np.empty((2, 0)), np.empty(0)).mean)
    assert estimate(np.zeros((3, 10)), np.arange(10) % 5).p == 1.0
