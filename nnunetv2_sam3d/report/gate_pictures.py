"""Figures of gate and local path on a slice of a case."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from nnunetv2_sam3d.evaluation.gate_maps import MapView
from nnunetv2_sam3d.own_files import made_anew
from nnunetv2_sam3d.report.overlays import EXCESS_COLOUR, OUTLINE
from nnunetv2_sam3d.report.style import REFERENCE_COLOUR, new_figure, plot_style, save

CHANGED_COLOUR = EXCESS_COLOUR


def draw_gate_maps(view: MapView, target: str, title: str) -> Figure:
    """Above: the image and each block's gate. Below: what changes without the local path, and each block's share of it.

    The maps of a row share one colour scale, from the 2nd to the 98th percentile of all of them.

    Args:
        view: the slice.
        target: name of the structure whose contour is drawn.
        title: above the figure.
    """
    rows, columns = view.shown
    height, width = ((part.stop - part.start) * step for part, step in zip(view.shown, view.spacing_mm, strict=True))
    panels = 1 + len(view.gates)
    figure = new_figure(2.0 * panels, 2 * (2.0 * min(max(height / width, 0.5), 2.0) + 0.55) + 0.7)
    grid = figure.subplots(2, panels, squeeze=False)
    for line, maps in enumerate((view.gates, view.shares)):
        first = grid[line][0]
        _bar(figure, _image(first, view), first).ax.set_visible(False)  # for the room that the others take
        if line:
            _tint(first, view)
        first.set_title("image" if line == 0 else "changed without local", fontsize=8)
        # one range for all blocks: a map that hardly varies must not look as if it did
        inside = np.concatenate([_within(values, view).ravel() for values in maps.values()])
        low, high = (float(end) for end in np.percentile(inside, (2, 98)))
        high = max(high, low + 1e-3)
        for place, (block, values) in enumerate(maps.items(), 1):
            panel = grid[line][place]
            _image(panel, view)
            drawn = panel.imshow(
                values, cmap="viridis", vmin=low, vmax=high, alpha=0.6, interpolation="nearest",
                extent=_extent(view, values.shape, view.token_stride),
            )  # fmt: skip
            _frame(panel, view)
            panel.set_title(f"{'gate' if line == 0 else 'local share'}, block {block}", fontsize=8)
            bar = _bar(figure, drawn, panel)
            bar.set_ticks([low, high], labels=[f"{low:.3f}", f"{high:.3f}"])
            for label, side in zip(bar.ax.get_xticklabels(), ("left", "right"), strict=True):
                label.set(horizontalalignment=side, fontsize=7)
        for panel in grid[line]:
            _contour(panel, view.target, REFERENCE_COLOUR, "dashed", view)
            _contour(panel, view.predicted, "white", "solid", view)
    figure.suptitle(title, fontsize=9)
    handles = [
        Line2D([], [], color=REFERENCE_COLOUR, linestyle="--", path_effects=OUTLINE, label=f"{target}, annotated"),
        Line2D([], [], color="white", path_effects=OUTLINE, label=f"{target}, predicted"),
        Patch(color=CHANGED_COLOUR, label="other label without the local path"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return figure


def write_gate_maps(views: list[MapView], target: str, folder: Path) -> None:
    """``CASE.png`` for each view, in place of what was drawn in that folder before."""
    with made_anew(folder, "adapters") as new, plot_style():
        for view in views:
            figure = draw_gate_maps(view, target, f"{view.case}, slice {view.slice_number} of the preprocessed data")
            save(figure, new, view.case, kinds=("png",))


def _extent(view: MapView, size: tuple[int, ...], voxels: tuple[int, int]) -> tuple[float, float, float, float]:
    """Of a map of the slice, in mm from its first row and column, rows downwards."""
    height, width = (n * v * step for n, v, step in zip(size, voxels, view.spacing_mm, strict=True))
    return 0.0, width, height, 0.0


def _bar(figure: Figure, drawn: AxesImage, panel: Axes) -> Colorbar:
    return figure.colorbar(drawn, ax=panel, orientation="horizontal", pad=0.03, shrink=0.9, aspect=18)


def _image(panel: Axes, view: MapView) -> AxesImage:
    inside = view.image[view.shown]
    low, high = float(np.percentile(inside, 1)), float(np.percentile(inside, 99))
    extent = _extent(view, view.image.shape, (1, 1))
    drawn = panel.imshow(view.image, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), extent=extent)
    _frame(panel, view)
    return drawn


def _frame(panel: Axes, view: MapView) -> None:
    """Shows what is not padding, and nothing around it."""
    rows, columns = view.shown
    panel.set_ylim(rows.stop * view.spacing_mm[0], rows.start * view.spacing_mm[0])
    panel.set_xlim(columns.start * view.spacing_mm[1], columns.stop * view.spacing_mm[1])
    panel.set(xticks=[], yticks=[])
    panel.grid(False)
    for side in panel.spines.values():
        side.set_visible(False)


def _within(values: np.ndarray, view: MapView) -> np.ndarray:
    """Those tokens of a map that hold a voxel of the image."""
    rows, columns = (
        slice(part.start // stride, -(-part.stop // stride))
        for part, stride in zip(view.shown, view.token_stride, strict=True)
    )
    return values[rows, columns]


def _tint(panel: Axes, view: MapView) -> None:
    layer = np.zeros((*view.changed["local"].shape, 4))
    layer[view.changed["local"]] = to_rgba(CHANGED_COLOUR, 0.9)
    panel.imshow(layer, extent=_extent(view, view.image.shape, (1, 1)), interpolation="nearest")


def _contour(panel: Axes, area: np.ndarray, name: str, line: str, view: MapView) -> None:
    if area.any():
        padded = np.pad(area.astype(float), 1)  # closes contours at the border
        y, x = ((np.arange(n) - 0.5) * step for n, step in zip(padded.shape, view.spacing_mm, strict=True))
        lines = panel.contour(x, y, padded, [0.5], colors=name, linewidths=1.0, linestyles=line)
        lines.set_path_effects(OUTLINE)
