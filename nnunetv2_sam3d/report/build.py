"""From nnU-Net's result folders to the report: checks, measures, compares, draws, writes."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nnunetv2_sam3d.evaluation.cases import Row, measure_all
from nnunetv2_sam3d.evaluation.clicked import ClickedResults, collect_clicked, summarise_clicked
from nnunetv2_sam3d.evaluation.compare import METRICS, Difference, Summary, differences, summarise, volume_groups
from nnunetv2_sam3d.evaluation.folds import (
    Dataset,
    Item,
    Model,
    check_splits,
    collect,
    declared_controls,
    find_models,
    finished_repeats,
    open_dataset,
)
from nnunetv2_sam3d.evaluation.structures import IGNORE, Structure, structures_of
from nnunetv2_sam3d.report import sections
from nnunetv2_sam3d.report.clicks import clicks_csv
from nnunetv2_sam3d.report.page import Page, render
from nnunetv2_sam3d.report.provenance import provenance
from nnunetv2_sam3d.report.style import look
from nnunetv2_sam3d.report.tables import Table, csv_text
from nnunetv2_sam3d.report.training import Training, read_training


@dataclass(frozen=True)
class Request:
    """What is reported.

    Attributes:
        dataset: folder in ``nnUNet_preprocessed``.
        trainers: short names, class names or ``TRAINER__PLANS``.
        names: short names and their classes.
        plans: name of the plans.
        configuration: such as ``3d_fullres``.
        folds: by default all of the split.
        tolerances_mm: of the surface Dice, one or one for each structure.
        kits: measure KiTS's regions of plain kidney, tumour, cyst labels.
        lesions: structures whose lesions are counted.
        focus: structure of the overlays and sub-groups.
        volume_groups_ml: borders of the sub-groups.
        view_cases: cases of the 3D viewer; by default those of the overlays.
        controls: classes of trainers and of their declared controls; without any, all pairs are compared.
        processes: that measure.
        command: how the report was asked for.
    """

    dataset: Path
    trainers: Sequence[str]
    names: dict[str, str]
    plans: str
    configuration: str = "3d_fullres"
    folds: Sequence[int] | None = None
    tolerances_mm: Sequence[float] | None = None
    kits: bool = False
    lesions: Sequence[str] | None = None
    focus: str | None = None
    volume_groups_ml: Sequence[float] | None = None
    view_cases: Sequence[str] | None = None
    controls: Mapping[str, str] = field(default_factory=dict)
    processes: int = 1
    command: Sequence[str] = ()


@dataclass(frozen=True)
class Results:
    """Everything that tables and figures are made from."""

    dataset: Dataset
    models: Sequence[Model]
    folds: Sequence[int]
    structures: Sequence[Structure]
    focus: Structure
    items: Sequence[Item]
    rows: Sequence[Row]
    summaries: Sequence[Summary]
    differences: Sequence[Difference]
    groups: dict[str, str]
    trainings: Sequence[Training]
    clicked: Sequence[ClickedResults]
    provenance: dict[str, Any]
    notes: Sequence[str] = ()

    @property
    def names(self) -> list[str]:
        """Of the models."""
        return [model.name for model in self.models]

    @property
    def labels(self) -> list[int]:
        """Values that a mask may hold."""
        return known_labels(self.dataset)


def write_report(request: Request, output: Path, say: Callable[[str], None]) -> Path:
    """Writes ``report.html``, ``cases.csv``, ``clicks.csv`` if there are clicks, ``summary.json``, tables and figures.

    Measured cases are kept in ``measured.jsonl``: a second run measures only what has changed.

    Args:
        request: what is reported.
        output: folder; made if absent.
        say: takes the lines for the user.

    Returns:
        the page.

    Raises:
        ValueError: for results that are incomplete, do not fit together or cannot be read, before anything is written.
        FileNotFoundError: for missing ones.
    """
    dataset = open_dataset(request.dataset)
    structures = structures_of(dataset.json, request.tolerances_mm, kits=request.kits, lesions=request.lesions)
    focus = focus_of(structures, request.focus)
    borders = _checked_borders(request.volume_groups_ml)
    folds = check_splits(dataset, request.folds)
    models = find_models(dataset, request.trainers, request.plans, request.configuration, request.names)
    for given, model in zip(request.trainers, models, strict=True):
        if model.plans != request.plans and "__" not in given:
            say(f"{given} has no results with {request.plans}; those with {model.plans} are taken")
    models, unfinished = finished_repeats(dataset, models, folds)
    if unfinished:
        say(unfinished)
    items = collect(dataset, models, folds)
    absent = sorted(set(request.view_cases or ()) - {item.case for item in items})
    if absent:
        raise ValueError(f"--view-cases: {absent[0]} is no validation case of the folds {list(folds)}")
    trainings = [read_training(model, fold) for model in models for fold in folds]
    ignored = dataset.json["labels"].get(IGNORE)
    clicked = collect_clicked(dataset, models, folds)
    say(f"{len(items)} predictions of {len(models)} models, folds {' '.join(map(str, folds))}: complete")
    rows = measure_all(
        items,
        structures,
        known_labels(dataset),
        ignored_label=None if ignored is None else int(ignored),
        store=output / "measured.jsonl",
        processes=request.processes,
    )
    controls = declared_controls(models, request.controls)
    results = Results(
        dataset,
        models,
        folds,
        structures,
        focus,
        items,
        rows,
        [entry for metric in METRICS for entry in summarise(rows, metric)],
        [entry for metric in METRICS for entry in differences(rows, metric, controls)],
        volume_groups(rows, focus.name, borders),
        trainings,
        clicked,
        provenance(dataset, models, trainings, items, request.configuration, request.command),
        [unfinished] if unfinished else [],
    )
    for folder in ("tables", "figures"):  # nothing of an earlier report stays beside this one
        shutil.rmtree(output / folder, ignore_errors=True)
    with look():
        chapters = sections.all_sections(results, output / "figures", request.view_cases, tqdm)
    _write(output / "cases.csv", cases_csv(rows))
    if clicked:
        _write(output / "clicks.csv", clicks_csv(clicked))
    else:
        (output / "clicks.csv").unlink(missing_ok=True)
    _write(output / "summary.json", summary_json(results))
    (output / "tables").mkdir()
    for table in (table for chapter in chapters for table in chapter.tables):
        _write_table(table, output / "tables")
    page = output / "report.html"
    _write(page, render(Page(f"{dataset.name}: {', '.join(results.names)}", sections.subtitle(results), chapters)))
    return page


def known_labels(dataset: Dataset) -> list[int]:
    """All label values of ``dataset.json``, background and ignore included."""
    values: set[int] = {0}
    for value in dataset.json["labels"].values():
        values.update(map(int, value if isinstance(value, list) else [value]))
    return sorted(values)


def focus_of(structures: Sequence[Structure], name: str | None) -> Structure:
    """The structure that overlays and sub-groups are about: the named one, a tumour, another lesion, or the first.

    Raises:
        ValueError: for a name that no structure has.
    """
    if name is not None:
        for structure in structures:
            if structure.name == name:
                return structure
        raise ValueError(f"there is no structure {name!r}; there are {[structure.name for structure in structures]}")
    lesions = [structure for structure in structures if structure.lesion]
    tumours = [structure for structure in lesions if any(w in structure.name.lower() for w in ("tumo", "cancer"))]
    return (tumours or lesions or list(structures))[0]


def cases_csv(rows: Sequence[Row]) -> str:
    """One line for each structure of each case with each repeat of a model; an empty cell where a figure is not defined."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    figures = ("dice", "surface_dice", "hd95_mm", "reference_ml", "predicted_ml", "volume_error_ml")
    counts = ("volume_error_percent", "empty", "lesions", "detected", "false_lesions")
    writer.writerow(["model", "repeat", "fold", "case", "structure", "tolerance_mm", *figures, *counts])
    for row in rows:
        values = [getattr(row.measures, name) for name in (*figures, *counts)]
        names = [csv_text(text) for text in (row.model, row.case, row.structure)]
        about = [names[0], row.repeat, row.fold, *names[1:], f"{row.tolerance_mm:.10g}"]
        writer.writerow([*about, *map(_cell, values)])
    return text.getvalue()


def summary_json(results: Results) -> str:
    """Statistics and provenance; ``null`` where a figure is not defined."""
    content = {
        "provenance": results.provenance,
        "folds": list(results.folds),
        "cases": len({item.case for item in results.items}),
        "structures": [asdict(structure) for structure in results.structures],
        "rules": sections.RULES,
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
        "trainings": [
            {key: value for key, value in asdict(run).items() if key != "curves"} for run in results.trainings
        ],
    }
    return json.dumps(_without_nan(content), indent=1, allow_nan=False) + "\n"


def _cell(value: object) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _checked_borders(borders_ml: Sequence[float] | None) -> Sequence[float] | None:
    if borders_ml is not None and not all(a < b for a, b in zip([0.0, *borders_ml], borders_ml, strict=False)):
        raise ValueError(f"--volume-groups-ml takes ascending positive volumes, got {list(borders_ml)}")
    return borders_ml


def _write_table(table: Table, folder: Path) -> None:
    _write(folder / f"{table.name}.md", table.markdown())
    _write(folder / f"{table.name}.tex", table.latex())


def _write(file: Path, text: str) -> None:
    """Whole or not at all."""
    partial = file.with_name(file.name + ".partial")
    partial.write_text(text, encoding="utf-8", newline="\n")
    os.replace(partial, file)
