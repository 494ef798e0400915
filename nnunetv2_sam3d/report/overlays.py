"""Overlays of one case: annotation, each model's contour and errors on three planes through the structure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import Normal, Stroke

from nnunetv2_sam3d.evaluation.cases import Row, label_array, read_mask
from nnunetv2_sam3d.evaluation.folds import Item
from nnunetv2_sam3d.evaluation.structures import Structure
from nnunetv2_sam3d.report.style import REFERENCE_COLOUR, new_figure, short

PLANES = ("axial", "coronal", "sagittal")
MARGIN_MM = 25.0
EXCESS_COLOUR, MISSED_COLOUR = "#E69F00", "#56B4E9"
OUTLINE = [Stroke(linewidth=2.2, foreground="black"), Normal()]  # keeps lines visible on white and black


@dataclass(frozen=True)
class View:
    """One case, cropped around a structure; arrays are (z, y, x) from feet to head, front to back, right to left.

    Attributes:
        case: identifier.
        spacing_mm: (z, y, x).
        image: grey values, or ``None`` if the image is not there.
        reference: labels.
        predictions: labels by model.
    """

    case: str
    spacing_mm: tuple[float, ...]
    image: np.ndarray | None
    reference: np.ndarray
    predictions: Mapping[str, np.ndarray]


def choose_cases(rows: Sequence[Row], structure: str) -> dict[str, str]:
    """Worst, median and best case by the models' mean Dice of a structure, among those that have it.

    Returns:
        cases by what they are; fewer than three if there are fewer.
    """
    scores: dict[str, list[float]] = {}
    for row in rows:
        if row.structure == structure and row.measures.reference_ml:
            scores.setdefault(row.case, []).append(row.measures.dice)
    ranked = sorted(scores, key=lambda case: (sum(scores[case]) / len(scores[case]), case))
    if not ranked:
        return {}
    chosen = {"worst": ranked[0], "median": ranked[len(ranked) // 2], "best": ranked[-1]}
    first = {case: title for title, case in reversed(chosen.items())}  # with few cases one is two of them
    return {title: case for case, title in reversed(first.items())}


def load_view(items: Sequence[Item], image_file: Path | None, structure: Structure, labels: Sequence[int]) -> View:
    """Reads one case of all models and crops it around a structure in any of its masks, with a margin.

    Args:
        items: the case's predictions.
        image_file: first channel; ``None`` or absent for masks on a plain ground.
        structure: what the view is about.
        labels: values that masks may hold.
    """
    reference_image = _oriented(read_mask(items[0].reference))
    spacing_mm = reference_image.GetSpacing()[::-1]
    reference = label_array(reference_image, items[0].reference, labels)
    predictions = {
        item.model: label_array(_oriented(read_mask(item.prediction)), item.prediction, labels) for item in items
    }
    shown = structure.mask(reference)
    for prediction in predictions.values():
        shown = shown | structure.mask(prediction)
    box = _box(shown, spacing_mm)
    image = None
    if image_file is not None and image_file.is_file():
        image = sitk.GetArrayFromImage(_oriented(sitk.ReadImage(str(image_file))))[box].astype(np.float32)
    return View(
        items[0].case,
        spacing_mm,
        image,
        reference[box].copy(),
        {model: prediction[box].copy() for model, prediction in predictions.items()},
    )


def draw_overlays(
    view: View, structure: Structure, title: str, window: tuple[float, float] | None, dice: Mapping[str, float]
) -> Figure:
    """Planes in columns; first row the image with the annotation, then contour and errors of each model.

    Args:
        view: the case.
        structure: whose contours are drawn.
        title: above the figure.
        window: grey values of black and white; by default the middle 98 %.
        dice: of each model, for the row titles.
    """
    reference = structure.mask(view.reference)
    cuts = _cuts(reference if reference.any() else structure.mask(next(iter(view.predictions.values()))))
    image = np.zeros(view.reference.shape, np.float32) if view.image is None else view.image
    low, high = window or (float(np.percentile(image, 1)), float(np.percentile(image, 99)))
    masks = {name: structure.mask(labels) for name, labels in view.predictions.items()}
    box = _box(reference, view.spacing_mm)
    image, reference = image[box], reference[box]
    masks = {name: mask[box] for name, mask in masks.items()}
    cuts = [(axis, index - box[axis].start) for axis, index in cuts]
    depth_mm, height_mm, width_mm = (size * step for size, step in zip(image.shape, view.spacing_mm, strict=True))
    inch_per_mm = 7.0 / (2 * width_mm + height_mm)  # one scale for all panels
    figure = new_figure(7.6, 0.9 + (max(depth_mm, height_mm) * inch_per_mm + 0.08) * (1 + len(masks)))
    grid = figure.subplots(1 + len(masks), 3, squeeze=False, width_ratios=(width_mm, width_mm, height_mm))
    for row, (name, mask) in enumerate([("annotation", None), *masks.items()]):
        for axis, (plane, index) in enumerate(cuts):
            panel = grid[row][axis]
            rest = [other for other in range(3) if other != plane]
            grey, truth = _cut(image, plane, index), _cut(reference, plane, index)
            height, width = (size * view.spacing_mm[other] for size, other in zip(grey.shape, rest, strict=True))
            extent = (0.0, width, 0.0, height)
            panel.imshow(grey, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), extent=extent)
            if mask is not None:
                found = _cut(mask, plane, index)
                _tint(panel, found & ~truth, EXCESS_COLOUR, extent)
                _tint(panel, truth & ~found, MISSED_COLOUR, extent)
                _contour(panel, truth, REFERENCE_COLOUR, "dashed", extent)
                _contour(panel, found, "white", "solid", extent)
            else:
                _contour(panel, truth, REFERENCE_COLOUR, "dashed", extent)
            panel.set(xticks=[], yticks=[], facecolor="black")
            panel.grid(False)
            for side in panel.spines.values():
                side.set_visible(False)
            if row == 0:
                panel.set_title(PLANES[axis], fontsize=9)
        label = short(name) if mask is None else f"{short(name)}\nDice {dice[name]:.3f}"
        grid[row][0].set_ylabel(label, fontsize=9)
    figure.suptitle(title, fontsize=10)
    figure.legend(
        handles=[
            Line2D([], [], color=REFERENCE_COLOUR, linestyle="--", path_effects=OUTLINE, label="annotation"),
            Line2D([], [], color="white", path_effects=OUTLINE, label="model"),
            Patch(color=EXCESS_COLOUR, label="too much"),
            Patch(color=MISSED_COLOUR, label="missed"),
        ],
        loc="outside lower center",
        ncols=4,
        fontsize=8,
        frameon=False,
    )
    return figure


def _oriented(image: sitk.Image) -> sitk.Image:
    """Axes along the patient's (LPS), so that planes are what they are called."""
    return sitk.DICOMOrient(image, "LPS")


def _box(mask: np.ndarray, spacing_mm: Sequence[float]) -> tuple[slice, ...]:
    """The box around a mask with a margin; everything for an empty mask."""
    box = []
    for axis, size in enumerate(mask.shape):
        occupied = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        low, high = (int(occupied[0]), int(occupied[-1])) if len(occupied) else (0, size - 1)
        margin = int(np.ceil(MARGIN_MM / spacing_mm[axis]))
        box.append(slice(max(0, low - margin), min(size, high + margin + 1)))
    return tuple(box)


def _cuts(mask: np.ndarray) -> list[tuple[int, int]]:
    """For axial, coronal, sagittal: axis and the index of the slice that shows most of the mask."""
    return [(axis, int(mask.sum(axis=tuple(o for o in range(3) if o != axis)).argmax())) for axis in range(3)]


def _cut(volume: np.ndarray, axis: int, index: int) -> np.ndarray:
    """A slice with the patient's front or head up."""
    slice_ = np.take(volume, index, axis)
    return slice_ if axis == 0 else slice_[::-1]


def _tint(panel: Axes, area: np.ndarray, name: str, extent: tuple[float, float, float, float]) -> None:
    layer = np.zeros((*area.shape, 4))
    layer[area] = to_rgba(name, 0.6)
    panel.imshow(layer, extent=extent, interpolation="nearest")


def _contour(panel: Axes, area: np.ndarray, name: str, line: str, extent: tuple[float, float, float, float]) -> None:
    if area.any():
        padded = np.pad(area.astype(float), 1)  # closes contours at the border
        size = [(extent[3] / area.shape[0]), (extent[1] / area.shape[1])]
        y = extent[3] - (np.arange(padded.shape[0]) - 0.5) * size[0]
        x = (np.arange(padded.shape[1]) - 0.5) * size[1]
        lines = panel.contour(x, y, padded, [0.5], colors=name, linewidths=1.2, linestyles=line)
        lines.set_path_effects(OUTLINE)
