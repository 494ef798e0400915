"""Statistics against values worked out by hand, and what may not be claimed."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from nnunetv2_sam3d.evaluation import compare
from nnunetv2_sam3d.evaluation.cases import Row
from nnunetv2_sam3d.evaluation.compare import METRICS
from nnunetv2_sam3d.evaluation.metrics import Measures

DICE = METRICS[0]
HD95 = METRICS[2]


def row(model: str, case: int, dice: float, *, fold: int = 0, hd95: float = 1.0, ml: float = 1.0) -> Row:
    return Row(model, fold, f"case_{case}", "tumour", 2.0, Measures(dice, dice, hd95, ml, ml))


def test_means_of_folds_and_of_cases_differ_when_folds_do() -> None:
    rows = [row("A", 0, 0.2), row("A", 1, 0.4), row("A", 2, 0.9, fold=1)]
    (found,) = compare.summarise(rows, DICE)
    assert found.folds == pytest.approx({0: 0.3, 1: 0.9})
    assert found.fold_mean == pytest.approx(0.6)
    assert found.fold_sd == pytest.approx(0.6 / math.sqrt(2))  # n - 1
    assert found.mean == pytest.approx(0.5)
    assert found.median == pytest.approx(0.4)
    assert found.low <= 0.5 <= found.high


def test_one_fold_has_no_deviation_and_one_case_no_interval() -> None:
    (found,) = compare.summarise([row("A", 0, 0.2)], DICE)
    assert math.isnan(found.fold_sd)
    assert math.isnan(found.low)


def test_what_is_not_defined_is_left_out_and_counted() -> None:
    rows = [row("A", 0, 0.0, hd95=math.nan), row("A", 1, 0.5, hd95=4.0), row("A", 2, 0.5, fold=1, hd95=math.nan)]
    (found,) = compare.summarise(rows, HD95)
    assert (found.mean, found.counted, found.cases) == (4.0, 1, 3)
    assert math.isnan(found.folds[1])
    assert found.fold_mean == 4.0


def test_bootstrap_interval_is_that_of_the_mean() -> None:
    values = np.random.default_rng(0).normal(0.7, 0.1, 200)
    low, high = compare.bootstrap_interval(list(values), seed=1)
    error = 1.96 * values.std() / math.sqrt(200)
    assert low == pytest.approx(values.mean() - error, abs=0.002)
    assert high == pytest.approx(values.mean() + error, abs=0.002)
    assert compare.bootstrap_interval(list(values), seed=1) == (low, high)
    assert compare.bootstrap_interval(list(values), seed=2) != (low, high)


def test_wilcoxon_of_a_textbook_case() -> None:
    """Ranks by hand: |d| = 1, 2, 3, 4, 5, 6; negative: 2 -> W- = 2, W+ = 19; exact two-sided p = 6 / 64."""
    p, effect, least = compare.paired_test([0.01, -0.02, 0.03, 0.04, 0.05, 0.06])
    assert p == pytest.approx(6 / 64)
    assert effect == pytest.approx((19 - 2) / 21)
    assert least == pytest.approx(2 / 64)


def test_no_difference_at_all() -> None:
    assert compare.paired_test([0.0, 1e-15, 0.0]) == (1.0, 0.0, 1.0)
    assert all(map(math.isnan, compare.paired_test([])))  # no test was made


def test_comparisons_without_pairs_are_no_tests() -> None:
    rows = two_models(8)
    rows += [
        replace(row(model, case, 0.5, hd95=math.nan if model == "B" else 1.0), structure="cyst")
        for model in ("A", "B")
        for case in range(8)
    ]
    tumour, cyst = compare.differences(rows, HD95)
    assert (cyst.cases, math.isnan(cyst.p), math.isnan(cyst.p_holm)) == (0, True, True)
    assert compare.verdict(cyst, HD95, 1) == "No case has a value for both models."
    assert tumour.p_holm == tumour.p  # the only test of the family


def test_holm() -> None:
    assert compare.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert compare.holm([0.5, 0.9]) == [1.0, 1.0]
    assert compare.holm([]) == []
    found = compare.holm([0.01, math.nan, 0.04])
    assert found[::2] == pytest.approx([0.02, 0.04]) and math.isnan(found[1])


def two_models(cases: int, gain: float = 0.05) -> list[Row]:
    return [
        row(model, case, 0.5 + 0.01 * case + (gain + 0.001 * case if model == "B" else 0), hd95=10 - case)
        for model in ("A", "B")
        for case in range(cases)
    ]


def test_a_clear_difference_is_said_with_its_direction() -> None:
    (found,) = compare.differences(two_models(12), DICE)
    assert (found.first, found.second, found.cases) == ("A", "B", 12)
    assert found.mean == pytest.approx(0.0555)
    assert found.effect == 1.0
    assert found.p == pytest.approx(2 / 2**12)
    assert compare.verdict(found, DICE, 1) == "B is better on these cases."
    (worse,) = compare.differences(two_models(12, gain=-0.2), DICE)
    assert compare.verdict(worse, DICE, 1) == "A is better on these cases."
    assert compare.verdict(found, HD95, 1) == "A is better on these cases."  # there, lower is better


def test_with_few_cases_nothing_is_claimed() -> None:
    (found,) = compare.differences(two_models(5), DICE)
    assert found.p == pytest.approx(0.0625)
    assert "Too few cases: the 5 pairs" in compare.verdict(found, DICE, 1)
    (six,) = compare.differences(two_models(6), DICE)  # 0.031, but not after three comparisons
    assert "better" in compare.verdict(six, DICE, 1)
    assert "Too few cases" in compare.verdict(six, DICE, 3)


def test_a_small_difference_is_not_called_equality() -> None:
    rows = [row("A", case, 0.5) for case in range(12)]
    rows += [row("B", case, 0.5 + (0.001 if case % 2 else -0.0011) * (1 + case)) for case in range(12)]
    (found,) = compare.differences(rows, DICE)
    assert "not to say that there is none" in compare.verdict(found, DICE, 1)


def test_volume_groups() -> None:
    rows = [row("A", case, 0.5, ml=float(case)) for case in range(10)]
    tertiles = compare.volume_groups(rows, "tumour")
    assert list(dict.fromkeys(tertiles.values())) == ["none", "up to 3.67 ml", "3.67 to 6.33 ml", "over 6.33 ml"]
    assert [list(tertiles.values()).count(title) for title in dict.fromkeys(tertiles.values())] == [1, 3, 3, 3]
    assert set(compare.volume_groups(rows[:6], "tumour").values()) == {"none", "up to 3 ml", "over 3 ml"}
    assert compare.volume_groups(rows[:4], "tumour") == {}
    assert compare.volume_groups(rows, "tumour", [5.0])["case_5"] == "up to 5 ml"
