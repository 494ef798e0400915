"""Statistics against values worked out by hand, and what may not be claimed."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from nnunetv2_sam3d.results import statistics as compare
from nnunetv2_sam3d.results.measure import Row
from nnunetv2_sam3d.results.metrics import Measures
from nnunetv2_sam3d.results.statistics import METRICS

DICE, _, HD95, _ = METRICS


def row(
    model: str, case: int, dice: float, *, fold: int = 0, hd95: float = 1.0, ml: float = 1.0, repeat: int = 1
) -> Row:
    return Row(model, fold, f"case_{case}", "tumour", 2.0, Measures(dice, dice, hd95, ml, ml), repeat)


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


def test_interval_of_one_fold_is_students() -> None:
    values = np.random.default_rng(0).normal(0.7, 0.1, 20)
    (found,) = compare.summarise([row("A", case, value) for case, value in enumerate(values)], DICE)
    expected = stats.t.interval(0.95, 19, values.mean(), stats.sem(values))
    assert (found.low, found.high) == pytest.approx(expected)
    assert not found.includes_training_noise


def test_repeats_are_averaged_by_case() -> None:
    """Figures by hand: cases' means 0.3 and 0.7; repeats' means 0.4, 0.6 and 0.5."""
    values = {1: (0.2, 0.6), 2: (0.4, 0.8), 3: (0.3, 0.7)}
    rows = [row("A", case, value, repeat=k) for k, pair in values.items() for case, value in enumerate(pair)]
    (found,) = compare.summarise(rows, DICE)
    assert found.repeats == pytest.approx({1: 0.4, 2: 0.6, 3: 0.5})
    assert found.repeat_sd == pytest.approx(0.1)  # n - 1
    assert (found.mean, found.median, found.counted, found.cases) == (pytest.approx(0.5), pytest.approx(0.5), 2, 2)
    assert found.includes_training_noise
    assert compare.case_means(rows, DICE) == {("A", "tumour"): pytest.approx({"case_0": 0.3, "case_1": 0.7})}


def test_a_case_counts_where_one_repeat_defines_it() -> None:
    rows = [row("A", 0, 0.5, hd95=4.0), row("A", 0, 0.5, hd95=math.nan, repeat=2)]
    rows += [row("A", 1, 0.5, hd95=math.nan, repeat=k) for k in (1, 2)]
    (found,) = compare.summarise(rows, HD95)
    assert (found.mean, found.counted, found.cases) == (4.0, 1, 2)


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
    assert compare.verdict(cyst, HD95) == "No case has a value for both models."
    assert tumour.p_holm == tumour.p  # the only test of the family


def test_holm() -> None:
    assert compare.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert compare.holm([0.5, 0.9]) == [1.0, 1.0]
    assert compare.holm([]) == []
    found = compare.holm([0.01, math.nan, 0.04])
    assert found[::2] == pytest.approx([0.02, 0.04]) and math.isnan(found[1])


def two_models(cases: int, gain: float = 0.05, repeats: int = 1) -> list[Row]:
    """B is better by the gain and a little more in each further case and repeat."""
    return [
        row(
            model,
            case,
            0.5 + 0.01 * case + (gain + 0.001 * case + 0.002 * repeat if model == "B" else 0),
            hd95=10 - case,
            repeat=repeat,
        )
        for repeat in range(1, 1 + repeats)
        for model in ("A", "B")
        for case in range(cases)
    ]


def test_a_clear_difference_is_said_with_its_direction() -> None:
    (found,) = compare.differences(two_models(12, repeats=3), DICE)
    assert (found.first, found.second, found.cases) == ("A", "B", 12)
    assert found.mean == pytest.approx(0.0595)
    assert found.repeats == pytest.approx({1: 0.0575, 2: 0.0595, 3: 0.0615})
    assert found.repeat_sd == pytest.approx(0.002)
    assert found.low < found.mean < found.high and found.includes_training_noise
    assert found.effect == 1.0
    assert found.p_cases == pytest.approx(2 / 2**12)
    assert compare.verdict(found, DICE) == "B is better than A, 3 repeats included."
    (worse,) = compare.differences(two_models(12, gain=-0.2, repeats=3), DICE)
    assert compare.verdict(worse, DICE) == "A is better than B, 3 repeats included."
    assert compare.verdict(found, HD95) == "A is better than B, 3 repeats included."  # there, lower is better


def test_one_repeat_makes_nothing_better() -> None:
    (found,) = compare.differences(two_models(12), DICE)
    assert found.p_holm < 0.001 and not found.includes_training_noise and math.isnan(found.repeat_sd)
    assert compare.verdict(found, DICE).startswith("B did better than A in this one repeat; whether")


def test_arms_are_paired_by_the_repeats_that_both_have() -> None:
    rows = [entry for entry in two_models(12, repeats=3) if (entry.model, entry.repeat) not in (("B", 2), ("A", 3))]
    (found,) = compare.differences(rows, DICE)
    assert list(found.repeats) == [1] and found.mean == pytest.approx(0.0575)
    apart = [entry for entry in two_models(12, repeats=2) if entry.repeat == (1 if entry.model == "A" else 2)]
    (found,) = compare.differences(apart, DICE)  # both asked for by name: no common repeat
    assert list(found.repeats) == [1] and found.mean == pytest.approx(0.0595)


def test_declared_controls_are_the_family() -> None:
    rows = [replace(entry, model=name) for name in "ABCD" for entry in two_models(8, 0.01) if entry.model == "B"]
    controls = {"D": "B", "C": "B", "A": "absent"}
    found = compare.differences(rows, DICE, controls)
    assert [(entry.first, entry.second, entry.comparisons) for entry in found] == [("B", "C", 2), ("B", "D", 2)]
    assert compare.pairs(list("ABC"), {"A": "absent"}) == [("A", "B"), ("A", "C"), ("B", "C")]


def test_adjusted_intervals_agree_with_adjusted_p() -> None:
    noise = np.random.default_rng(3).normal(0, 0.05, (5, 20))
    arms = {"A": noise[0] * 0, "B": noise[1] + 0.04, "C": noise[2] + 0.08, "D": noise[3] + 0.2, "E": noise[4] * 0}
    rows = [row(arm, case, 0.5 + value, fold=case % 5) for arm, v in arms.items() for case, value in enumerate(v)]
    found = compare.differences(rows, DICE)
    outside = [not entry.low_holm <= 0 <= entry.high_holm for entry in found]
    assert outside == [entry.p_holm < 0.05 for entry in found] and len(set(outside)) == 2
    assert all(entry.low_holm <= entry.low and entry.high <= entry.high_holm for entry in found if any(outside))
    assert {entry.comparisons for entry in found} == {10}
    assert sum(entry.p < 0.05 for entry in found) > sum(outside)  # the adjustment does something


def test_with_few_cases_nothing_is_claimed() -> None:
    (found,) = compare.differences(two_models(5), DICE)
    assert found.p_cases == pytest.approx(0.0625)
    assert "Too few cases: with 5 pairs" in compare.verdict(found, DICE)
    (six,) = compare.differences(two_models(6, repeats=2), DICE)  # 0.031, but not after three comparisons
    assert "better" in compare.verdict(six, DICE)
    assert "Too few cases" in compare.verdict(replace(six, comparisons=3), DICE)


def test_a_small_difference_is_not_called_equality() -> None:
    rows = [row("A", case, 0.5) for case in range(12)]
    rows += [row("B", case, 0.5 + (0.001 if case % 2 else -0.0011) * (1 + case)) for case in range(12)]
    (found,) = compare.differences(rows, DICE)
    assert "not to say that there is none" in compare.verdict(found, DICE)


def test_volume_groups() -> None:
    rows = [row("A", case, 0.5, ml=float(case)) for case in range(10)]
    tertiles = compare.volume_groups(rows, "tumour")
    assert list(dict.fromkeys(tertiles.values())) == ["none", "up to 3.67 ml", "3.67 to 6.33 ml", "over 6.33 ml"]
    assert [list(tertiles.values()).count(title) for title in dict.fromkeys(tertiles.values())] == [1, 3, 3, 3]
    assert set(compare.volume_groups(rows[:6], "tumour").values()) == {"none", "up to 3 ml", "over 3 ml"}
    assert compare.volume_groups(rows[:4], "tumour") == {}
    assert compare.volume_groups(rows, "tumour", [5.0])["case_5"] == "up to 5 ml"
