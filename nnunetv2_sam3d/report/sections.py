"""The chapters of the page: which table and which figure stands where, and what is said beside them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from nnunetv2_sam3d.evaluation.clicked import ClickedResults
from nnunetv2_sam3d.nnunet.descriptions import channel_names
from nnunetv2_sam3d.report import click_sections as clicks
from nnunetv2_sam3d.report import metric_tables, plots
from nnunetv2_sam3d.report.answer import answer, answer_figure, caption
from nnunetv2_sam3d.report.arms import arms_table, noise_table
from nnunetv2_sam3d.report.click_sections import click_pictures
from nnunetv2_sam3d.report.gates import changed_table, gate_pictures, gate_table, unmeasured
from nnunetv2_sam3d.report.meshes import scene
from nnunetv2_sam3d.report.overlays import choose_cases, draw_overlays, load_view
from nnunetv2_sam3d.report.overview import overview_table
from nnunetv2_sam3d.report.page import Picture, Scene, Section
from nnunetv2_sam3d.report.request import Results
from nnunetv2_sam3d.report.rules import RULES
from nnunetv2_sam3d.report.study import crossval_of
from nnunetv2_sam3d.report.style import picture
from nnunetv2_sam3d.report.tables import counted
from nnunetv2_sam3d.report.threats import threats
from nnunetv2_sam3d.results.statistics import METRICS
from nnunetv2_sam3d.results.trained_models import Dataset

CT_WINDOW_HU = (-160.0, 240.0)


def subtitle(results: Results) -> str:
    """One line on what was measured."""
    whole = len({case for split in results.dataset.splits for case in (*split.get("train", ()), *split["val"])})
    folds = f"{len(results.folds)} of {len(results.dataset.splits)} folds"
    repeats = sorted({len(model.repeats) for model in results.models})
    trained = counted(repeats[0], "repeat") if len(repeats) == 1 else f"{repeats[0]} to {repeats[-1]} repeats"
    return (
        f"{results.cases} of {whole} cases, each as a validation case of its fold; {folds}; "
        f"{counted(len(results.models), 'model')}; {trained}"
    )


def all_sections(
    results: Results, figures: Path, view_cases: Sequence[str] | None, progress: Callable[..., Any]
) -> list[Section]:
    """Draws all figures into a folder and puts the chapters together: answer, overview, cases, then the rest."""

    def draw_clicked(clicked: ClickedResults, name: str) -> list[Picture]:
        images, window = _images(results.dataset), _window(results.dataset)
        return click_pictures(clicked, results.models, results.dataset, images, results.labels, window, figures, name)

    dangers = threats(results)
    text = json.dumps(results.provenance, indent=1, ensure_ascii=False)
    return [
        _answer(results, figures, len(dangers)),
        Section("overview", "Overview", tables=[overview_table(results)]),
        *_cases(results, figures, view_cases, progress),
        Section("arms", "Arms", tables=[arms_table(results.models, results.trainings, results.wanted_controls)]),
        *_differences(results),
        *_noise(results),
        *_gates(results),
        _results(results, figures),
        *clicks.clicked_sections(results.clicked, results.names, figures, draw_clicked),
        _tables(results),
        _training(results, figures),
        Section("threats", f"Threats to validity ({len(dangers)})", texts=dangers, folded=True),
        Section("reading", "How it was measured", texts=RULES, folded=True),
        Section("provenance", "Provenance", code=[text], folded=True),
    ]


def _answer(results: Results, figures: Path, dangers: int) -> Section:
    shown = picture(answer_figure(results), figures, "answer", caption(results))
    more = f"What these figures cannot show is listed below, under threats to validity ({dangers})."
    return Section("answer", "Answer", pictures=[shown], lead=answer(results), closing=more)


def _differences(results: Results) -> list[Section]:
    tables = metric_tables.difference_tables(results.differences, results.structures)
    title = "Differences from the declared controls" if results.controls else "Differences"
    return [Section("differences", title, tables=tables, folded=True)] if tables else []


def _noise(results: Results) -> list[Section]:
    table = noise_table(results.summaries, results.structures)
    title = "Noise between repeats"
    if table:
        return [Section("noise", title, tables=[table], folded=True)]
    lacking = "No arm has two repeats, so that nothing tells how far another training would be from these."
    remedy = f"More repeats: {crossval_of(results, 3)}"
    return [Section("noise", title, texts=[f"{lacking} {remedy}"], folded=True)] if results.study else []


def _gates(results: Results) -> list[Section]:
    if not results.gates:
        return []
    lacking = unmeasured(results.gates)
    tables = [table for table in (gate_table(results.gates), changed_table(results.gates)) if table]
    texts = [lacking] if lacking else []
    return [Section("gates", "Gates and paths", (), texts, tables, gate_pictures(results.gates), folded=True)]


def _results(results: Results, figures: Path) -> Section:
    structures, models = results.structures, results.names
    names = [structure.name for structure in structures]
    once = (
        "" if all(len(model.repeats) == 1 for model in results.models) else " Of each case, the mean over the repeats."
    )
    pictures = []
    for metric in (metric for metric in METRICS if metric.plotted):
        pictures.append(
            picture(
                plots.boxes(results.rows, models, names, metric),
                figures,
                f"{metric.key}_automatic",
                f"{metric.title} by case (automatic). Box: quartiles, line: median, diamond: mean, whiskers: to the "
                f"last case within 1.5 interquartile ranges. Grey lines join a case's results.{once}",
            )
        )
    pictures.append(
        picture(
            plots.bland_altman(results.rows, models, names),
            figures,
            "volumes_automatic",
            "Bland-Altman plot of volumes (automatic). Solid: bias, dashed: 95 % limits of agreement; cases empty in "
            "both masks are left out." + (" All repeats." if once else ""),
        )
    )
    return Section("automatic", "Automatic results", pictures=pictures)


def _tables(results: Results) -> Section:
    structures, models, rows = results.structures, results.names, results.rows
    tables = [
        metric_tables.pooled_table(results.summaries, structures, rows),
        metric_tables.fold_table(results.summaries, structures),
        metric_tables.detection_table(rows, models, structures),
    ]
    texts = []
    if results.groups:
        tables.append(metric_tables.group_table(rows, models, results.focus, results.groups))
    else:
        texts.append(f"Too few cases with {results.focus.name} for sub-groups by its volume.")
    return Section("tables", "Tables of the automatic results", texts=texts, tables=tables, folded=True)


def _training(results: Results, figures: Path) -> Section:
    curves = plots.learning_curves(results.trainings, results.names)
    if curves is None:
        return Section("training", "Training", texts=["No training log holds an epoch."], folded=True)
    legend = (
        "Learning curves from nnU-Net's logs, those of all repeats. Each model's validation loss is its own trainer's; "
        "loss values of different trainers need not be comparable. Pseudo Dice is of patches, not of whole cases."
    )
    pictures = [picture(curves, figures, "learning_curves", legend)]
    return Section("training", "Training", pictures=pictures, folded=True)


def _cases(
    results: Results, figures: Path, view_cases: Sequence[str] | None, progress: Callable[..., Any]
) -> list[Section]:
    rows = results.rows
    first = {model.name: model.repeats[0] for model in results.models}
    chosen = choose_cases(rows, results.focus.name)
    viewed = list(view_cases) if view_cases is not None else list(chosen.values())
    titles = {case: title for title, case in chosen.items()}
    images = _images(results.dataset)
    window = _window(results.dataset)
    pictures, scenes = [], []
    for case in progress(list(dict.fromkeys([*chosen.values(), *viewed])), "draw", unit="case"):
        items = [item for item in results.items if (item.case, item.repeat) == (case, first[item.model])]
        view = load_view(items, images.get(case), results.focus, results.labels)
        label = f"{titles[case]} case: {case}" if case in titles else case
        if case in titles:
            dice = {
                r.model: r.measures.dice
                for r in rows
                if (r.case, r.structure, r.repeat) == (case, results.focus.name, first[r.model])
            }
            legend = (
                f"{label[0].upper()}{label[1:]}; {results.focus.name}, on the slices that show most of it, around the "
                f"annotation. Yellow dashes: annotation; white line: the model; orange: too much; blue: missed."
            )
            figure = draw_overlays(view, results.focus, label, window, dice)
            pictures.append(picture(figure, figures, f"overlay_{titles[case]}", legend, "png"))
        if case in viewed:
            scenes.append(Scene(label, scene(view, results.structures, results.focus)))
    text = (
        f"Worst, median and best by the models' mean Dice of {results.focus.name}, among the cases that have it."
        + (" Masks of the first repeat." if any(len(model.repeats) > 1 for model in results.models) else "")
        if chosen
        else f"No case has {results.focus.name} in its annotation; there is nothing to draw."
    )
    found = [Section("cases", "Cases", texts=[text], pictures=pictures)]
    if scenes:
        texts = [
            "Surfaces are smoothed and coarser than the masks: for looking, not for measuring.",
            "The boxes choose what is shown.",
        ]
        found.append(Section("surfaces", "In three dimensions", texts=texts, scenes=scenes))
    return found


def _window(dataset: Dataset) -> tuple[float, float] | None:
    """Grey values of black and white, where the modality has some that everybody uses."""
    return CT_WINDOW_HU if str(channel_names(dataset.json).get("0", "")).lower() == "ct" else None


def _images(dataset: Dataset) -> dict[str, Path]:
    """First channel of every case; nothing if the raw data set is not there."""
    if not (dataset.raw / "imagesTr").is_dir() and "dataset" not in dataset.json:
        return {}
    files = get_filenames_of_train_images_and_targets(str(dataset.raw), dataset.json)
    return {case: Path(entry["images"][0]) for case, entry in files.items()}
