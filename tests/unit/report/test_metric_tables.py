"""What tables say of figures that are not defined, of short and long trainings, and how they fit on paper."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nnunetv2_sam3d.report import metric_tables
from nnunetv2_sam3d.report.arms import arms_table
from nnunetv2_sam3d.report.meshes import scene
from nnunetv2_sam3d.report.overlays import View
from nnunetv2_sam3d.report.page import Page, Scene, Section, render
from nnunetv2_sam3d.report.tables import Table, duration
from nnunetv2_sam3d.report.training_record import Training
from nnunetv2_sam3d.results.measure import Row
from nnunetv2_sam3d.results.metrics import measure
from nnunetv2_sam3d.results.statistics import METRICS, differences, summarise
from nnunetv2_sam3d.results.structures import Structure
from nnunetv2_sam3d.results.trained_models import RepeatedModel

TUMOUR, CYST = (Structure(name, (label,), 2.0, lesion=True) for label, name in ((2, "tumour"), (3, "cyst")))


def rows() -> list[Row]:
    """Two models, two folds of 3 cases: A finds a part of every tumour; B all of it, but no cyst, which fold 0 has."""
    mask = np.zeros((6, 6, 6), bool)
    mask[1:4, 1:4, 1:4] = True
    found = []
    for model, end in (("A", 3), ("B", 4)):
        part = mask.copy()
        part[end:] = False
        for case in range(6):
            cyst = mask if case < 3 else np.zeros_like(mask)
            found_cyst = cyst if model == "A" else np.zeros_like(mask)
            for structure, prediction, reference in ((TUMOUR, part, mask), (CYST, found_cyst, cyst)):
                measures = measure(prediction, reference, (1.0, 1.0, 1.0), 2.0, count_lesions=True)
                found.append(Row(model, case // 3, f"case_{case}", structure.name, 2.0, measures))
    return found


def column(table: Table, title: str) -> list[str]:
    return list(table.cells[title])


def test_cases_empty_in_both_are_counted_beside_dice() -> None:
    summaries = [entry for metric in METRICS for entry in summarise(rows(), metric)]
    table = metric_tables.pooled_table(summaries, [TUMOUR, CYST], rows())
    assert column(table, "both empty") == ["0", "0", "3", "3"]
    assert [cell.split()[0] for cell in column(table, "Dice")] == ["0.800", "1.000", "1.000", "0.500"]
    assert [cell.split()[-1] for cell in column(table, "HD95 [mm] (defined in)")[2:]] == ["(3/6)", "(0/6)"]


def test_a_mean_says_of_how_many_folds() -> None:
    summaries = [entry for metric in METRICS for entry in summarise(rows(), metric)]
    cells = {tuple(line[:3]): line[3:] for line in metric_tables.fold_table(summaries, [TUMOUR, CYST]).lines}
    assert cells["tumour", "Dice", "A"] == ["0.800", "0.800", "0.800 ± 0.000"]
    assert cells["cyst", "HD95 [mm]", "A"] == ["0.00", "-", "0.00 (1 of 2 folds)"]
    assert cells["cyst", "HD95 [mm]", "B"] == ["-", "-", "-"]


def test_comparisons_without_pairs_have_dashes() -> None:
    found = [entry for metric in METRICS for entry in differences(rows(), metric)]
    tables = {table.name: table for table in metric_tables.difference_tables(found, [TUMOUR, CYST])}
    assert list(tables) == [f"differences_{metric.key}_automatic" for metric in METRICS]
    tumour, cyst = tables["differences_hd95_mm_automatic"].lines
    assert cyst[2:] == ["0", "1", "-", "-", "-", "-", "-", "-", "-", "No case has a value for both models."]
    assert tumour[2:4] == ["6", "1"] and tumour[7] == tumour[8] != "-"
    assert tumour[6] == "-"  # one repeat
    assert "over the 1 comparisons" in tables["differences_hd95_mm_automatic"].caption
    assert "over the 2 comparisons" in tables["differences_dice_automatic"].caption
    assert metric_tables.difference_tables([], [TUMOUR]) == []


def test_sentences_and_long_tables_break_on_paper() -> None:
    lines = [{"x": "a", "y": "b"}] * 3
    wrapped = Table("t", "c", pd.DataFrame(lines), ("x",), ("y",)).latex()
    assert wrapped.count(r"\begin{longtable}{l>{\raggedright\arraybackslash}p{3.2cm}}") == 1
    for text in (wrapped, Table("t", "c", pd.DataFrame(lines * 20), ("x",)).latex()):
        assert text.index(r"\endfirsthead") < text.index(r"\endhead") < text.index(r"\endfoot") < text.index("a & b")
        assert text.count("x & y") == 2 and text.count(r"\label") == 1 and r"\begin{table}" not in text
        assert text.count("{") == text.count("}")
    assert r"\begin{tabular}{lr}" in Table("t", "c", pd.DataFrame(lines), ("x",)).latex()


@pytest.mark.parametrize(
    ("hours", "spread", "text"),
    [
        (0.0, math.nan, "0 s"),
        (40 / 3600, 2 / 3600, "40 ± 2 s"),
        (0.07, math.nan, "4.2 min"),
        (1.25, 0.5, "75 ± 30 min"),
        (7.5, 0.25, "7.5 ± 0.25 h"),
        (120.0, 6.0, "5 ± 0.25 d"),
        (math.nan, math.nan, "-"),
    ],
)
def test_durations(hours: float, spread: float, text: str) -> None:
    assert duration(hours, spread) == text


def test_costs_of_short_trainings_are_readable() -> None:
    runs = [Training("A", fold, hours, 5, 10, "cpu", "2", None) for fold, hours in enumerate((0.05, 0.07, math.nan))]
    table = arms_table([RepeatedModel("A", "nnUNetTrainer", Path("nnUNetTrainer__P__3d_fullres"))], runs, {})
    assert column(table, "time of one training") == ["3.6 ± 0.849 min"] and column(table, "time in all") == ["7.2 min"]
    assert column(table, "trained parameters") == ["5 (50.0 %)"]
    assert "without the training of the model that a training starts from" in table.caption


def test_the_viewer_names_models_that_have_predicted_nothing() -> None:
    reference = np.zeros((8, 8, 8), np.uint8)
    reference[2:6, 2:6, 2:6] = 2
    predictions = {"A": reference, "B": np.zeros_like(reference)}
    shown = scene(View("case", (1.0, 1.0, 1.0), None, reference, predictions), [TUMOUR, CYST], TUMOUR)
    assert {"name": "B", "structure": "tumour"} in shown["absent"]
    page = render(Page("t", "s", [Section("surfaces", "S", scenes=[Scene("case", shown)])]))
    assert "<p>B (nothing predicted)</p>" in page and "A (nothing predicted)" not in page
    assert "<legend>cyst</legend>" not in page  # nobody has one
