"""``cases.csv`` and ``summary.json``: the metrics for other programs."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from nnunetv2_sam3d.evaluation.clicked import summarise_clicked
from nnunetv2_sam3d.report.answer import answer
from nnunetv2_sam3d.report.request import Results
from nnunetv2_sam3d.report.rules import RULES
from nnunetv2_sam3d.report.tables import csv_text
from nnunetv2_sam3d.report.threats import threats
from nnunetv2_sam3d.results.measure import Row, cases_frame


def cases_csv(rows: Sequence[Row]) -> str:
    """One line for each structure of each case with each repeat of a model; a metric that is not defined is empty."""
    return csv_text(cases_frame(rows))


def unseen_csv(rows: Sequence[Row]) -> str:
    """The same of the cases that are in no fold."""
    return csv_text(cases_frame(rows).drop(columns="fold"))


def summary_json(results: Results) -> str:
    """Statistics and provenance; ``null`` where a metric is not defined."""
    content = {
        "answer": answer(results),
        "threats to validity": threats(results),
        "provenance": results.provenance,
        "folds": list(results.folds),
        "cases": len({item.case for item in results.items}),
        "structures": [asdict(structure) for structure in results.structures],
        "rules": RULES,
        "summaries": [asdict(entry) for entry in results.summaries],
        "differences": [asdict(entry) for entry in results.differences],
        "with clicks": [
            {
                "protocol": entry.protocol,
                "settings": entry.settings,
                "left out": entry.left_out,
                "summaries": [asdict(summary) for summary in summarise_clicked(entry)],
            }
            for entry in results.clicked
        ],
        "volume groups": {"structure": results.focus.name, "cases": results.groups},
        "study": list(results.study),
        "arms not reported": results.absent,
        "declared controls": results.wanted_controls,
        "gates": [{key: value for key, value in asdict(e).items() if key != "maps"} for e in results.gates],
        "trainings": [
            {key: value for key, value in asdict(run).items() if key not in ("curves", "paths")}
            for run in results.trainings
        ],
    }
    return json.dumps(_without_nan(content), indent=1, allow_nan=False) + "\n"


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
