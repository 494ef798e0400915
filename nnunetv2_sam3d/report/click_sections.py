"""Results with clicks: their chapters, tables, curves and CSV; automatic metrics have a column or mark of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from nnunetv2_sam3d.clicks.click_files import read_clicks
from nnunetv2_sam3d.evaluation.click_test import settings_in_words
from nnunetv2_sam3d.evaluation.clicked import (
    ClickedResults,
    ClickedSummary,
    click_folder,
    clicks_frame,
    summarise_clicked,
)
from nnunetv2_sam3d.evaluation.protocol import clicks_file, clicks_title, mask_file
from nnunetv2_sam3d.files import write_text
from nnunetv2_sam3d.json_files import entries, is_number, list_of, read_table
from nnunetv2_sam3d.report.overlays import draw_overlays, load_view, worst_median_best
from nnunetv2_sam3d.report.page import Picture, Section
from nnunetv2_sam3d.report.style import MODEL_LINES, MODEL_MARKERS, colour, new_figure, picture, plot_style, save
from nnunetv2_sam3d.report.tables import Table, csv_text, interval
from nnunetv2_sam3d.results.collect import Item
from nnunetv2_sam3d.results.structures import DEFAULT_TOLERANCE_MM, Structure
from nnunetv2_sam3d.results.trained_models import Dataset, RepeatedModel, reader_of


def clicked_sections(
    clicked: Sequence[ClickedResults],
    models: Sequence[str],
    figures: Path,
    draw_cases: Callable[[ClickedResults, str], list[Picture]],
) -> list[Section]:
    """A chapter for each protocol and settings.

    Args:
        clicked: the results.
        models: all of the report, in their order.
        figures: folder that the curves are drawn into.
        draw_cases: pictures of cases, for results and the name that their files get.
    """
    chapters = []
    for number, results in enumerate(clicked):
        summaries = summarise_clicked(results)
        notes = []
        cases = {model: {entry.case for entry in results.cases if entry.model == model} for model in models}
        if absent := [model for model, have in cases.items() if not have]:
            notes.append(f"Not evaluated with these clicks: {', '.join(absent)}.")
        if len({frozenset(have) for have in cases.values() if have}) > 1:
            notes.append("The models were evaluated on different cases: their means do not compare.")
        texts = []
        if results.left_out:
            left_out = "; ".join(f"{case}: {reason}" for case, reason in results.left_out.items())
            texts.append(f"Left out, counted in no mean: {left_out}.")
        name = f"{results.protocol.replace('-', '_')}_{number}"
        pictures = []
        if any(entry.clicks == 0 for entry in summaries):
            caption = (
                "Mean over the cases against the number of clicks, with 95 % interval over folds and cases; no click "
                "is the automatic result, marked by a hollow symbol."
            )
            curves = click_curves(results, summaries, models)
            pictures.append(picture(curves, figures, f"curves_with_clicks_{name}", caption))
            pictures += draw_cases(results, name)
        title = f"With clicks ({results.protocol} protocol)"
        tables = [clicked_table(results, summaries, f"with_clicks_{name}")]
        chapters.append(Section(f"clicks-{number}", title, notes, texts, tables, pictures))
    return chapters


def clicked_table(results: ClickedResults, summaries: Sequence[ClickedSummary], name: str) -> Table:
    """Dice and surface Dice by model; every number of clicks has a column of its own, and so has automatic."""
    counts = sorted({entry.clicks for entry in summaries})
    lines = []
    for metric in results.shown:
        for model in dict.fromkeys(entry.model for entry in summaries):
            found = {entry.clicks: entry for entry in summaries if (entry.model, entry.metric) == (model, metric)}
            first = next(iter(found.values()))
            cells = [interval(e.mean, e.low, e.high) if (e := found.get(count)) else "-" for count in counts]
            lines.append([metric, model, " ".join(map(str, first.folds)), str(first.cases), *cells])
    columns = ["metric", "model", "folds", "cases", *map(clicks_title, counts)]
    caption = (
        f"Results with clicks placed on the ground truth, {results.protocol} protocol: "
        f"{results.settings['target']}, {settings_in_words(results.settings)}, seed {results.settings['seed']}; mean "
        f"over the cases with 95 % interval over folds and cases."
    )
    return Table(name, caption, pd.DataFrame(lines, columns=columns), ("metric", "model", "folds"))


def click_curves(results: ClickedResults, summaries: Sequence[ClickedSummary], models: Sequence[str]) -> Figure:
    """Metrics against the number of clicks, all models in one panel a metric; of one model, the cases as thin lines.

    Args:
        results: of one protocol.
        summaries: of them.
        models: all of the report; a model keeps its colour, marker and line.
    """
    figure = new_figure(8.0, 3.4)
    present = [model for model in models if any(entry.model == model for entry in summaries)]
    counts = sorted({entry.clicks for entry in summaries})
    for axis, name in zip(figure.subplots(1, 2, sharey=True), results.shown, strict=True):
        for case in sorted({entry.case for entry in results.cases}) if len(present) == 1 else ():
            course = sorted((entry.clicks, entry.metrics[name]) for entry in results.cases if entry.case == case)
            axis.plot(*zip(*course, strict=True), color="#999999", linewidth=0.6, alpha=0.7, zorder=1)
        for rank, model in enumerate(present):
            place = models.index(model)
            line = [entry for entry in summaries if (entry.model, entry.metric) == (model, name)]
            # beside each other, as intervals on one place could not be told apart
            x = [entry.clicks + 0.12 * (rank - (len(present) - 1) / 2) for entry in line]
            mean = [entry.mean for entry in line]
            # NaN with one case: no bar
            ends = [[e.mean - e.low for e in line], [e.high - e.mean for e in line]]
            style = {"color": colour(place), "markersize": 5, "zorder": 3}
            axis.errorbar(
                x, mean, ends, label=model, capsize=2.5, linewidth=1.4, elinewidth=0.9, **style,
                linestyle=MODEL_LINES[place % len(MODEL_LINES)], marker=MODEL_MARKERS[place % len(MODEL_MARKERS)],
            )  # fmt: skip
            if line[0].clicks == 0:
                marker = MODEL_MARKERS[place % len(MODEL_MARKERS)]
                axis.plot(x[:1], mean[:1], marker, markerfacecolor="white", **(style | {"zorder": 4}))
        axis.set_xticks(counts, [str(count) if count else "auto" for count in counts])
        axis.set_xlabel("clicks")
        axis.set_ylabel(name)
        axis.set_ylim(-0.03, 1.03)
        axis.tick_params(labelleft=True)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), fontsize=8, frameon=False)
    return figure


def clicks_csv(clicked: Sequence[ClickedResults]) -> str:
    """One line for each metric of each case with each number of clicks, model and protocol."""
    return csv_text(clicks_frame(clicked))


def write_curves(results: ClickedResults, model: str, output: Path) -> None:
    """``metrics.csv``, ``curves.svg`` and ``curves.png`` of one model's fold."""
    write_text(output / "metrics.csv", clicks_csv([results]))
    if results.cases:
        with plot_style():
            save(click_curves(results, summarise_clicked(results), [model]), output, "curves")


MOST_CLICKS = 5  # in a picture


def click_pictures(
    results: ClickedResults,
    models: Sequence[RepeatedModel],
    dataset: Dataset,
    images: Mapping[str, Path],
    labels: Sequence[int],
    window: tuple[float, float] | None,
    figures: Path,
    name: str,
) -> list[Picture]:
    """Worst, median and best case of each model by its Dice with the fewest clicks.

    Args:
        results: of the whole-volume protocol; without kept masks there is nothing to draw.
        models: of the report.
        dataset: their data set.
        images: first channel by case.
        labels: values that masks may hold.
        window: grey values of black and white.
        figures: folder that the pictures are written into.
        name: of the results, for the files' names.
    """
    structure = Structure(
        results.settings["target"], tuple(results.settings["target_labels"]), DEFAULT_TOLERANCE_MM, lesion=False
    )
    fewest = min((entry.clicks for entry in results.cases if entry.clicks), default=0)
    pictures = []
    for model in models:
        own = [entry for entry in results.cases if entry.model == model.name]
        reader = reader_of(model.folder)
        folders = {e.case: click_folder(model, e.fold, results) for e in own}
        scores = {
            e.case: e.metrics["Dice"]
            for e in own
            if e.clicks == fewest and clicks_file(folders[e.case], e.case).is_file()
        }
        for title, case in worst_median_best(scores).items():
            found = {e.clicks: e.metrics["Dice"] for e in own if e.case == case and e.clicks <= MOST_CLICKS}
            masks = {n: mask_file(folders[case], n, case, dataset.ending) for n in sorted(found)}
            items = [
                Item(clicks_title(n), 0, case, file, dataset.reference(case), reader=reader)
                for n, file in masks.items()
            ]
            points = [click.position for click in read_clicks(clicks_file(folders[case], case)).clicks]
            record = folders[case] / "cases" / f"{case}.json"
            remedy = "The command that wrote it makes it anew: nnUNetv2_sam3d evaluate"
            placed = read_table(record, remedy, {"placed": list_of(entries(sign=is_number))})["placed"]
            signs = {clicks_title(n): [click["sign"] for click in placed[:n]] for n in masks}
            label = f"{model.name}, {title} case with {clicks_title(fewest)}: {case}"
            dice = {clicks_title(n): value for n, value in found.items()}
            view = load_view(items, images.get(case), structure, labels, points)
            caption = (
                f"{label}; {structure.name}, planes through the first click. Yellow dashes: annotation; white line: "
                f"the model; orange: too much; blue: missed. Clicks that lie in other planes are pale."
            )
            drawn = draw_overlays(view, structure, label, window, dice, signs)
            pictures.append(picture(drawn, figures, f"clicks_{name}_{model.name}_{title}", caption, "png"))
    return pictures
