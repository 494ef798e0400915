"""Overlays of one case: annotation, each model's contour and errors on three planes through the structure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import Normal, Stroke
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

from nnunetv2_sam3d.clicks.geometry import Geometry
from nnunetv2_sam3d.nnunet.images import read_image, reader_called
from nnunetv2_sam3d.report.style import REFERENCE_COLOUR, new_figure, short
from nnunetv2_sam3d.results.collect import Item
from nnunetv2_sam3d.results.measure import Row, read_mask
from nnunetv2_sam3d.results.structures import Structure

PLANES = ("axial", "coronal", "sagittal")
MARGIN_MM = 25.0
NEAR_PLANE_MM = 4.0  # a click so near to a plane is in it
CLICK_LOOK: dict[str, Any] = {"color": "#D55E00", "markeredgecolor": "black", "linestyle": "none"}
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
        points: clicks, (N, 3) as (z, y, x) in voxels of the arrays.
    """

    case: str
    spacing_mm: tuple[float, ...]
    image: np.ndarray | None
    reference: np.ndarray
    predictions: Mapping[str, np.ndarray]
    points: np.ndarray = field(default_factory=lambda: np.zeros((0, 3)))


def choose_cases(rows: Sequence[Row], structure: str) -> dict[str, str]:
    """Worst, median and best case by the models' mean Dice of a structure, among those that have it.

    Returns:
        cases by what they are; fewer than three if there are fewer.
    """
    scores: dict[str, list[float]] = {}
    for row in rows:
        if row.structure == structure and row.measures.reference_ml:
            scores.setdefault(row.case, []).append(row.measures.dice)
    return worst_median_best({case: sum(values) / len(values) for case, values in scores.items()})


def worst_median_best(scores: Mapping[str, float]) -> dict[str, str]:
    """Cases by what they are; fewer than three if there are fewer."""
    ranked = sorted(scores, key=lambda case: (scores[case], case))
    if not ranked:
        return {}
    chosen = {"worst": ranked[0], "median": ranked[len(ranked) // 2], "best": ranked[-1]}
    first = {case: title for title, case in reversed(chosen.items())}  # with few cases one is two of them
    return {title: case for case, title in reversed(first.items())}


def load_view(
    items: Sequence[Item],
    image_file: Path | None,
    structure: Structure,
    labels: Sequence[int],
    points_lps: Sequence[Sequence[float]] = (),
) -> View:
    """Reads one case of all models and crops it around a structure in any of its masks, with a margin.

    Args:
        items: the case's predictions.
        image_file: first channel; ``None`` or absent for masks on a plain ground.
        structure: what the view is about.
        labels: values that masks may hold.
        points_lps: clicks, (x, y, z) in mm of the patient.
    """
    reader = items[0].reader
    annotation = read_mask(items[0].reference, reader)
    place = Orientation(annotation.geometry, annotation.spacing_mm)
    reference = place.turned(annotation.labels(labels))
    predictions = {item.model: place.turned(read_mask(item.prediction, item.reader).labels(labels)) for item in items}
    shown = structure.mask(reference)
    for prediction in predictions.values():
        shown = shown | structure.mask(prediction)
    box = _box(shown, place.spacing_mm)
    image = None
    if image_file is not None and image_file.is_file():
        image = place.turned(read_image([image_file], reader_called(reader))[0][0])[box].astype(np.float32)
    return View(
        items[0].case,
        place.spacing_mm,
        image,
        reference[box].copy(),
        {model: prediction[box].copy() for model, prediction in predictions.items()},
        place.voxels(points_lps) - [side.start for side in box],
    )


def draw_overlays(
    view: View,
    structure: Structure,
    title: str,
    window: tuple[float, float] | None,
    dice: Mapping[str, float],
    signs: Mapping[str, Sequence[int]] | None = None,
) -> Figure:
    """Planes in columns; first row the image with the annotation, then contour and errors of each model.

    Args:
        view: the case.
        structure: whose contours are drawn.
        title: above the figure.
        window: grey values of black and white; by default the middle 98 %.
        dice: of each model, for the row titles.
        signs: of the clicks that each model had, the first of ``view.points``; planes go through the first click. A
            click that lies in another plane is drawn pale where it would be seen through the image.
    """
    reference = structure.mask(view.reference)
    cuts = _cuts(reference if reference.any() else structure.mask(next(iter(view.predictions.values()))))
    if len(view.points):
        cuts = [(axis, int(np.rint(view.points[0, axis]))) for axis in range(3)]
    image = np.zeros(view.reference.shape, np.float32) if view.image is None else view.image
    low, high = window or (float(np.percentile(image, 1)), float(np.percentile(image, 99)))
    masks = {name: structure.mask(labels) for name, labels in view.predictions.items()}
    box = _box(reference, view.spacing_mm)
    image, reference = image[box], reference[box]
    points = view.points - [side.start for side in box]
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
                had = (signs or {}).get(name, ())
                _mark(panel, points[: len(had)], had, plane, index, view.spacing_mm, extent)
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
    handles: list[Line2D | Patch] = [
        Line2D([], [], color=REFERENCE_COLOUR, linestyle="--", path_effects=OUTLINE, label="annotation"),
        Line2D([], [], color="white", path_effects=OUTLINE, label="model"),
        Patch(color=EXCESS_COLOUR, label="too much"),
        Patch(color=MISSED_COLOUR, label="missed"),
    ]
    if signs:
        for marker, sign in (("P", "click"), ("X", "background click")):
            handles.append(Line2D([], [], marker=marker, label=sign, **CLICK_LOOK))
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=len(handles),
        fontsize=8,
        frameon=False,
    )
    return figure


class Orientation:
    """How an array is turned so that its axes go along the patient's, and planes are what they are called.

    Args:
        geometry: of the array; arrays of formats without one stay as they are.
        spacing_mm: (z, y, x).

    Attributes:
        spacing_mm: (z, y, x) of the turned array.
    """

    def __init__(self, geometry: Geometry, spacing_mm: Sequence[float]) -> None:
        lps = geometry.lps_from_array
        ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ (np.diag([*spacing_mm[::-1], 1.0]) if lps is None else lps)
        self._turn = ornt_transform(io_orientation(ras), axcodes2ornt("LPS"))
        turned_ras = ras @ inv_ornt_aff(self._turn, geometry.shape[::-1])
        self._array_from_lps = np.linalg.inv(np.diag([-1.0, -1.0, 1.0, 1.0]) @ turned_ras)
        self.spacing_mm = tuple(np.asarray(spacing_mm)[::-1][np.argsort(self._turn[:, 0])][::-1].tolist())

    def turned(self, values: np.ndarray) -> np.ndarray:
        """An array (z, y, x) along right to left, front to back, feet to head of the patient, again as (z, y, x)."""
        return apply_orientation(values.T, self._turn).T

    def voxels(self, points_lps: Sequence[Sequence[float]]) -> np.ndarray:
        """Places in the patient -> (N, 3), (z, y, x) in voxels of the turned array."""
        points = np.array(points_lps, float).reshape(-1, 3)
        return (points @ self._array_from_lps[:3, :3].T + self._array_from_lps[:3, 3])[:, ::-1]


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
    return [(axis, int(np.argmax(mask.sum(axis=tuple(o for o in range(3) if o != axis))))) for axis in range(3)]


def _cut(volume: np.ndarray, axis: int, index: int) -> np.ndarray:
    """A slice with the patient's front or head up."""
    slice_ = np.take(volume, index, axis)
    return slice_ if axis == 0 else slice_[::-1]


def _mark(
    panel: Axes,
    points: np.ndarray,
    signs: Sequence[int],
    plane: int,
    index: int,
    spacing_mm: Sequence[float],
    extent: tuple[float, float, float, float],
) -> None:
    """Clicks: a plus on the structure, a cross beside it."""
    down, across = (axis for axis in range(3) if axis != plane)
    for point, sign in zip(points, signs, strict=True):
        x = (point[across] + 0.5) * spacing_mm[across]
        y = (point[down] + 0.5) * spacing_mm[down]
        here = abs(point[plane] - index) * spacing_mm[plane] <= NEAR_PLANE_MM
        panel.plot(
            x, extent[3] - y if plane == 0 else y, "P" if sign > 0 else "X", alpha=1.0 if here else 0.35, markersize=7,
            markeredgewidth=0.8, scalex=False, scaley=False, **CLICK_LOOK,
        )  # fmt: skip


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
