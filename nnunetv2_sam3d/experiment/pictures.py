"""Overlay pictures: the image, the annotation and every trainer's result on the slice that shows most."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunetv2_sam3d.experiment.comparison import Comparison, json_file_ending

# Okabe and Ito's colours, which colour-blind readers can tell apart
COLOURS = ("#E69F00", "#D55E00", "#56B4E9", "#009E73", "#CC79A7", "#F0E442", "#0072B2")
MAX_CASES = 4


def draw_overlays(comparison: Comparison, file: Path) -> Path | None:
    """Draws unseen cases, or validation cases where there are none, one row each.

    Returns:
        the PNG, or ``None`` if there is nothing to draw.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    cases = _cases(comparison)
    if not cases:
        return None
    columns = ["image", "annotation", *(name.removeprefix("nnUNetTrainer_") for name in comparison.trainers)]
    figure = Figure(figsize=(2.6 * len(columns), 2.7 * len(cases) + 0.3), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(cases), len(columns), squeeze=False)
    for row, (line, (image_file, label_file, predictions)) in enumerate(zip(axes, cases, strict=True)):
        image, spacing = _read(image_file)
        labels, _ = _read(label_file)
        index = _slice(labels)
        low, high = _window(image, comparison)
        for axis, name, mask in zip(
            line, columns, [None, labels, *(_read(path)[0] for path in predictions)], strict=True
        ):
            axis.imshow(image[index], cmap="gray", vmin=low, vmax=high, aspect=spacing[1] / spacing[2])
            if mask is not None:
                shown = mask[index]
                for label in np.unique(shown[shown > 0]):
                    axis.contour(shown == label, [0.5], colors=_colour(int(label)), linewidths=1.0)
            axis.set_axis_off()
            if row == 0:
                axis.set_title(name, fontsize=9)
        line[0].text(2, 2, label_file.name.split(".")[0], color="white", fontsize=7, va="top")
    lines = [Line2D([], [], color=_colour(label), label=name) for label, name in _names(comparison).items()]
    figure.legend(handles=lines, loc="outside lower center", ncols=min(6, max(1, len(lines))), fontsize=8)
    figure.savefig(file)
    return file


def _colour(label: int) -> str:
    return COLOURS[(label - 1) % len(COLOURS)]


def _names(comparison: Comparison) -> dict[int, str]:
    """Values in the masks and what ``dataset.json`` calls them; regions by the value that stands for them."""
    dataset = json.loads((comparison.raw / "dataset.json").read_text())
    entries = {name: value for name, value in dataset["labels"].items() if name not in ("background", "ignore")}
    order = dataset.get("regions_class_order")
    if order:
        return dict(sorted(zip(order, entries, strict=False)))
    return {int(value): name for name, value in entries.items()}


def _cases(comparison: Comparison) -> list[tuple[Path, Path, list[Path]]]:
    """Image, labels and predictions of the cases to draw."""
    ending = json_file_ending(comparison.raw)
    folders = [comparison.test_folder(trainer) for trainer in comparison.trainers]
    images, labels = comparison.raw / "imagesTs", comparison.raw / "labelsTs"
    if not labels.is_dir() or not all(folder.is_dir() for folder in folders):
        folders = [comparison.fold_folder(trainer) / "validation" for trainer in comparison.trainers]
        images, labels = comparison.raw / "imagesTr", comparison.raw / "labelsTr"
    cases = []
    for path in sorted(folders[0].glob(f"*{ending}")):
        predictions = [folder / path.name for folder in folders]
        image = images / f"{path.name[: -len(ending)]}_0000{ending}"
        if all(file.is_file() for file in (image, labels / path.name, *predictions)):
            cases.append((image, labels / path.name, predictions))
    return cases[:MAX_CASES]


def _read(file: Path) -> tuple[np.ndarray, tuple[float, ...]]:
    """Array (z, y, x) and spacing in mm of the same order."""
    image = sitk.ReadImage(str(file))
    return sitk.GetArrayFromImage(image), image.GetSpacing()[::-1]


def _slice(labels: np.ndarray) -> int:
    """The axial slice that shows most of the rarest label."""
    present, counts = np.unique(labels[labels > 0], return_counts=True)
    rarest = present[counts.argmin()] if len(present) else 0
    return int((labels == rarest).sum((1, 2)).argmax())


def _window(image: np.ndarray, comparison: Comparison) -> tuple[float, float]:
    """A soft tissue window for CT, the middle 98 % of the values otherwise."""
    channels = json.loads((comparison.raw / "dataset.json").read_text())["channel_names"]
    if str(channels.get("0", "")).lower() == "ct":
        return -160.0, 240.0
    return float(np.percentile(image, 1)), float(np.percentile(image, 99))
