"""Cases with clicks to look at: each model's masks after some numbers of clicks, with the clicks in them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from nnunetv2_sam3d.clicks.reading import read_clicks
from nnunetv2_sam3d.evaluation.clicked import ClickedResults, click_folder
from nnunetv2_sam3d.evaluation.kept import clicks_file, mask_file
from nnunetv2_sam3d.evaluation.protocol import clicks_title
from nnunetv2_sam3d.report.overlays import draw_overlays, load_view, worst_median_best
from nnunetv2_sam3d.report.page import Picture
from nnunetv2_sam3d.report.style import picture
from nnunetv2_sam3d.results.collect import Dataset, Item, Model
from nnunetv2_sam3d.results.structures import DEFAULT_TOLERANCE_MM, Structure

MOST_CLICKS = 5  # in a picture


def click_pictures(
    results: ClickedResults,
    models: Sequence[Model],
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
        folders = {e.case: click_folder(model, e.fold, results) for e in own}
        scores = {
            e.case: e.figures["Dice"]
            for e in own
            if e.clicks == fewest and clicks_file(folders[e.case], e.case).is_file()
        }
        for title, case in worst_median_best(scores).items():
            found = {e.clicks: e.figures["Dice"] for e in own if e.case == case and e.clicks <= MOST_CLICKS}
            masks = {n: mask_file(folders[case], n, case, dataset.ending) for n in sorted(found)}
            items = [Item(clicks_title(n), 0, case, file, dataset.reference(case)) for n, file in masks.items()]
            points = [click.position for click in read_clicks(clicks_file(folders[case], case)).clicks]
            placed = json.loads((folders[case] / "cases" / f"{case}.json").read_text())["placed"]
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
