"""The chapters of the page: which table and which figure stands where, and what is said beside them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from nnunetv2_sam3d.evaluation.clicked import ClickedResults
from nnunetv2_sam3d.evaluation.compare import FEW_CASES, METRICS
from nnunetv2_sam3d.evaluation.folds import Dataset
from nnunetv2_sam3d.evaluation.hierarchical import ALPHA
from nnunetv2_sam3d.report import clicks, contents, plots
from nnunetv2_sam3d.report.click_pictures import click_pictures
from nnunetv2_sam3d.report.meshes import scene
from nnunetv2_sam3d.report.overlays import choose_cases, draw_overlays, load_view
from nnunetv2_sam3d.report.page import Picture, Scene, Section
from nnunetv2_sam3d.report.style import picture

if TYPE_CHECKING:
    from nnunetv2_sam3d.report.build import Results

CT_WINDOW_HU = (-160.0, 240.0)
RULES = (
    "Empty masks: where prediction and annotation are both empty, Dice and surface Dice count 1; where one of them is, "
    "0 (as KiTS counts; nnU-Net's own summary leaves the first kind out). HD95 is not defined in either case and left "
    "out; the tables say in how many cases it is defined.",
    "Surface Dice: share of both surfaces within the tolerance of the other one, with the areas of surface elements "
    "(DeepMind's surface-distance, which KiTS uses). HD95: the larger one of both directed 95th percentiles, weighted "
    "by area. All distances in millimetres on the grid of the annotation.",
    f"Intervals: 95 %, of the mean that the recipe would reach with other cases, folds and trainings: a variance over "
    f"repeats, folds and cases (two-way random effects, Student's t with Satterthwaite's degrees of freedom). p is from "
    f"the same variance, Holm-adjusted over all comparisons of one metric; {ALPHA} is taken as the limit.",
    "p over cases: Wilcoxon signed-rank test over cases, two-sided, pairs without difference dropped. It leaves training "
    "noise out: another training would move the figures by an amount that it does not know.",
    "With one repeat, the intervals know of other trainings only what the folds tell. Folds share training cases, which "
    "no interval takes into account.",
)


def subtitle(results: Results) -> str:
    """One line on what was measured."""
    cases = len({item.case for item in results.items})
    whole = len({case for split in results.dataset.splits for case in (*split.get("train", ()), *split["val"])})
    folds = f"{len(results.folds)} of {len(results.dataset.splits)} folds"
    return f"{cases} of {whole} cases, each as a validation case of its fold; {folds}; {len(results.models)} models"


def all_sections(
    results: Results, figures: Path, view_cases: Sequence[str] | None, progress: Callable[..., Any]
) -> list[Section]:
    """Draws all figures into a folder and puts the chapters together."""

    def draw_clicked(clicked: ClickedResults, name: str) -> list[Picture]:
        images, window = _images(results.dataset), _window(results.dataset)
        return click_pictures(clicked, results.models, results.dataset, images, results.labels, window, figures, name)

    chapters = [
        _reading(results),
        _results(results, figures),
        *clicks.clicked_sections(results.clicked, results.names, figures, draw_clicked),
        _training(results, figures),
    ]
    chapters += _cases(results, figures, view_cases, progress)
    text = json.dumps(results.provenance, indent=1, ensure_ascii=False)
    chapters.append(Section("provenance", "Provenance", code=[text]))
    return chapters


def _reading(results: Results) -> Section:
    cases = len({item.case for item in results.items})
    notes = list(results.notes)
    if len(results.folds) < len(results.dataset.splits):
        notes.append(
            f"Not all folds: {len(results.folds)} of {len(results.dataset.splits)}. The figures are of {cases} cases "
            f"and stand for these only."
        )
    if len(results.folds) == 1:
        notes.append("With one fold there is no standard deviation over folds.")
    if cases < FEW_CASES:
        notes.append(
            f"Only {cases} cases: intervals and tests of so few can hardly show anything. "
            f"Read the single cases instead."
        )
    for name, start in sorted({(run.model, run.start) for run in results.trainings if run.start_replaced}):
        folds = [str(run.fold) for run in results.trainings if run.start_replaced and run.model == name]
        notes.append(
            f"{name} started from {start}, which has been trained again since in these folds: {', '.join(folds)}. "
            f"Results of both do not belong together."
        )
    if len({model.plans for model in results.models}) > 1:
        plans = ", ".join(f"{model.name}: {model.plans}" for model in results.models)
        notes.append(f"The models have different plans ({plans}), so that spacing and patch may differ, too.")
    return Section("reading", "How to read this", notes, RULES)


def _results(results: Results, figures: Path) -> Section:
    structures, models = results.structures, results.names
    rows = results.rows
    names = [structure.name for structure in structures]
    tables = [
        contents.pooled_table(results.summaries, structures, rows),
        *contents.difference_tables(results.differences, structures),
        contents.fold_table(results.summaries, structures),
        contents.detection_table(rows, models, structures),
    ]
    texts = []
    if results.groups:
        tables.append(contents.group_table(rows, models, results.focus, results.groups))
    else:
        texts.append(f"Too few cases with {results.focus.name} for sub-groups by its volume.")
    pictures = []
    for metric in METRICS[:3]:
        pictures.append(
            picture(
                plots.boxes(rows, models, names, metric),
                figures,
                f"{metric.key}_automatic",
                f"{metric.title} by case (automatic). Box: quartiles, line: median, diamond: mean, whiskers: to the "
                f"last case within 1.5 interquartile ranges. Grey lines join a case's results.",
            )
        )
    pictures.append(
        picture(
            plots.bland_altman(rows, models, names),
            figures,
            "volumes_automatic",
            "Bland-Altman plot of volumes (automatic). Solid: bias, dashed: 95 % limits of agreement; cases empty in "
            "both masks are left out.",
        )
    )
    return Section("automatic", "Automatic results", (), texts, tables, pictures)


def _training(results: Results, figures: Path) -> Section:
    table = contents.cost_table(results.trainings, results.names)
    curves = plots.learning_curves(results.trainings, results.names)
    if curves is None:
        return Section("training", "Training", texts=["No training log holds an epoch."], tables=[table])
    caption = (
        "Learning curves from nnU-Net's logs. Each model's validation loss is its own trainer's; loss values of "
        "different trainers need not be comparable. Pseudo Dice is of random patches, not of whole cases."
    )
    return Section(
        "training", "Training", tables=[table], pictures=[picture(curves, figures, "learning_curves", caption)]
    )


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
            caption = (
                f"{label[0].upper()}{label[1:]}; {results.focus.name}, on the slices that show most of it, around the "
                f"annotation. Yellow dashes: annotation; white line: the model; orange: too much; blue: missed."
            )
            figure = draw_overlays(view, results.focus, label, window, dice)
            pictures.append(picture(figure, figures, f"overlay_{titles[case]}", caption, "png"))
        if case in viewed:
            scenes.append(Scene(label, scene(view, results.structures, results.focus)))
    text = (
        f"Worst, median and best by the models' mean Dice of {results.focus.name}, among the cases that have it."
        if chosen
        else f"No case has {results.focus.name} in its annotation; there is nothing to draw."
    )
    found = [Section("cases", "Cases", texts=[text], pictures=pictures)]
    if scenes:
        coarse = "Surfaces are smoothed and coarser than the masks: for looking, not for measuring. Boxes choose."
        found.append(Section("surfaces", "In three dimensions", texts=[coarse], scenes=scenes))
    return found


def _window(dataset: Dataset) -> tuple[float, float] | None:
    """Grey values of black and white, where the modality has some that everybody uses."""
    return CT_WINDOW_HU if str(dataset.json["channel_names"].get("0", "")).lower() == "ct" else None


def _images(dataset: Dataset) -> dict[str, Path]:
    """First channel of every case; nothing if the raw data set is not there."""
    if not (dataset.raw / "imagesTr").is_dir() and "dataset" not in dataset.json:
        return {}
    files = get_filenames_of_train_images_and_targets(str(dataset.raw), dataset.json)
    return {case: Path(entry["images"][0]) for case, entry in files.items()}
