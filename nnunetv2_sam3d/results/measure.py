"""From predictions to the one table of cases: reads, checks and measures in parallel, and keeps what was measured."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from nnunetv2_sam3d.children import worker_processes
from nnunetv2_sam3d.clicks.geometry import Geometry
from nnunetv2_sam3d.files import append_json_line, content_sha256, sha256
from nnunetv2_sam3d.messages import some
from nnunetv2_sam3d.nnunet.images import read_segmentation, reader_called
from nnunetv2_sam3d.results.collect import Item
from nnunetv2_sam3d.results.metrics import Measures, measure
from nnunetv2_sam3d.results.structures import Structure

RULES_VERSION = 1  # raised whenever the same masks would give other metrics
SAME_PLACE = 0.05  # voxels: headers are rounded to single precision
Found = tuple[list[Measures], float]  # of an item: its metrics, and how far its masks lie apart


@dataclass(frozen=True)
class Row:
    """One structure of one case with one model: a line of ``cases.csv``.

    Attributes:
        model: name of the model.
        fold: whose validation case it is.
        case: nnU-Net's identifier.
        structure: label or region.
        tolerance_mm: of the surface Dice.
        measures: the metrics.
        repeat: of the training.
    """

    model: str
    fold: int
    case: str
    structure: str
    tolerance_mm: float
    measures: Measures
    repeat: int = 1


# Columns of ``cases.csv``, by the names of attributes.
ROW_COLUMNS = ("model", "repeat", "fold", "case", "structure", "tolerance_mm")
MEASURES_COLUMNS = (
    "dice", "surface_dice", "hd95_mm", "reference_ml", "predicted_ml", "volume_error_ml", "volume_error_percent",
    "empty", "lesions", "detected", "false_lesions",
)  # fmt: skip


def cases_frame(rows: Sequence[Row]) -> pd.DataFrame:
    """The table of cases, with the columns of ``cases.csv``; NaN where a metric is not defined."""
    of_row, of_measures = attrgetter(*ROW_COLUMNS), attrgetter(*MEASURES_COLUMNS)
    lines = [(*of_row(row), *of_measures(row.measures)) for row in rows]
    return pd.DataFrame(lines, columns=[*ROW_COLUMNS, *MEASURES_COLUMNS])


def measure_all(
    items: Sequence[Item],
    structures: Sequence[Structure],
    known_labels: Sequence[int],
    *,
    ignored_label: int | None = None,
    store: Path,
    processes: int = 1,
    notes: list[str] | None = None,
) -> list[Row]:
    """Measures every item; what ``store`` holds of an earlier run with the same files and rules is not measured again.

    Args:
        items: predictions and references.
        structures: what is measured of each.
        known_labels: values that a mask may hold.
        ignored_label: voxels of the reference that do not count.
        store: JSON lines file; lines that were cut off or changed, or are outdated, are passed over.
        processes: worker processes.
        notes: gets sentences on what was accepted and passed over.

    Returns:
        the rows in the order of items, then structures.

    Raises:
        ValueError: for masks that do not fit together, are damaged or hold unknown labels, naming the file.
    """
    rules = [RULES_VERSION, [asdict(structure) for structure in structures], sorted(known_labels), ignored_label]
    tasks = [(item, structures, known_labels, ignored_label) for item in items]
    keys = [_key(item, rules) for item in items]
    known, damaged = _read_store(store)
    missing = [number for number, key in enumerate(keys) if key not in known]
    store.parent.mkdir(parents=True, exist_ok=True)
    with worker_processes(min(processes, len(missing))) as mapped:
        results = mapped(_measure_item, [tasks[number] for number in missing])
        for number, found in zip(missing, tqdm(results, "measure", len(missing), unit="case"), strict=True):
            known[keys[number]] = found
            append_json_line(store, _entry(keys[number], *found))
    _check_places([(item, known[key][1]) for item, key in zip(items, keys, strict=True)])
    if notes is not None:
        if damaged:
            notes.append(
                f"{store}: {damaged} lines do not hold what was written (cut off, changed, or of another version); the "
                f"cases are measured again."
            )
        apart = {item.reference.name: known[key][1] for item, key in zip(items, keys, strict=True) if known[key][1]}
        if apart:
            notes.append(told_apart(apart))
    return [
        Row(item.model, item.fold, item.case, structure.name, structure.tolerance_mm, measures, item.repeat)
        for item, key in zip(items, keys, strict=True)
        for structure, measures in zip(structures, known[key][0], strict=True)
    ]


@dataclass(frozen=True)
class Mask:
    """A label map as nnU-Net's reader gives it.

    Attributes:
        file: where it was read.
        values: (z, y, x), not checked.
        spacing_mm: (z, y, x).
        geometry: how the voxels lie in the patient.
    """

    file: Path
    values: np.ndarray
    spacing_mm: tuple[float, ...]
    geometry: Geometry

    def labels(self, known: Sequence[int]) -> np.ndarray:
        """The values as uint8 or uint16.

        Raises:
            ValueError: for values that are no known label, naming the file.
        """
        bits = 8 if max(known) < 256 else 16
        labels = self.values.astype(f"uint{bits}")
        if not np.array_equal(labels, self.values):
            raise ValueError(
                f"{self.file} holds values from {self.values.min()} to {self.values.max()} that are no integer labels"
            )
        # plane by plane: bincount turns what it counts into 64-bit integers
        present = np.zeros(1 << bits, np.int64)
        for plane in labels:
            present += np.bincount(plane.ravel(), minlength=1 << bits)
        unknown = sorted(set(np.flatnonzero(present).tolist()) - set(known))
        if unknown:
            raise ValueError(f"{self.file} holds the label {unknown[0]}, dataset.json knows {sorted(known)}")
        return labels


def read_mask(file: Path, reader: str) -> Mask:
    """A label map.

    Args:
        file: of it.
        reader: name of nnU-Net's reader that the plans name.

    Raises:
        ValueError: if the file is damaged, cut short or no label map.
    """
    values, properties = read_segmentation(file, reader_called(reader))
    spacing_mm = tuple(float(length) for length in properties["spacing"])
    return Mask(file, values, spacing_mm, Geometry.from_properties(properties, values.shape))


def grid_of(name: str, properties: Mapping[str, Any], transpose_forward: Sequence[int]) -> Mask:
    """The grid of an image by what nnU-Net's preprocessing notes of it, without values.

    Args:
        name: for errors.
        properties: of the preprocessed case.
        transpose_forward: of the plans.
    """
    transposed = properties["shape_before_cropping"]
    shape = [int(transposed[axis]) for axis in np.argsort(transpose_forward)]
    spacing_mm = tuple(float(length) for length in properties["spacing"])
    empty = np.broadcast_to(np.uint8(0), shape)  # a view of one number
    return Mask(Path(name), empty, spacing_mm, Geometry.from_properties(properties, shape))


def voxels_apart(prediction: Mask, reference: Mask) -> float:
    """How far two masks that are compared voxel by voxel lie from each other in the patient, in voxels at most.

    Returns:
        0 for masks that lie within :data:`SAME_PLACE` of each other, and for formats without a place.

    Raises:
        ValueError: for masks of other sizes or voxels, which nnU-Net does not accept either.
    """
    for name, ours, theirs, tolerance in (
        ("size", prediction.values.shape, reference.values.shape, 0.0),
        ("spacing", prediction.spacing_mm, reference.spacing_mm, 1e-3 * min(reference.spacing_mm)),
    ):
        if not np.allclose(ours, theirs, rtol=0, atol=tolerance):
            raise ValueError(
                f"{prediction.file} does not lie on the grid of {reference.file}: its {name} is {_shown(ours[::-1])}, "
                f"the reference's {_shown(theirs[::-1])}. Predict the case again, or repair the image headers"
            )
    if prediction.geometry.lps_from_array is None or reference.geometry.lps_from_array is None:
        return 0.0
    corners = list(product(*((0, size - 1) for size in reference.values.shape)))
    distances = np.linalg.norm(
        prediction.geometry.from_zyx(corners, "LPS") - reference.geometry.from_zyx(corners, "LPS"), axis=1
    )
    voxels = float(distances.max()) / min(reference.spacing_mm)
    return voxels if voxels > SAME_PLACE else 0.0


def told_apart(apart: Mapping[str, float]) -> str:
    """A sentence on annotations that do not lie where their images do; voxels by the names of files."""
    return (
        f"{len(apart)} annotations lie elsewhere in the patient than their images, by up to {max(apart.values()):.2g} "
        f"voxels: {some(apart)}. nnU-Net accepts this and compares voxel by voxel, and so does this package. Look at "
        f"them with nnUNetv2_plot_overlay_pngs."
    )


def _check_places(found: Sequence[tuple[Item, float]]) -> None:
    """Raises ValueError for a prediction that does not lie where other predictions of its case lie.

    Where all of them do not lie where the annotation does, it is the annotation that differs from its image.
    """
    least: dict[Path, float] = {}
    for item, apart in found:
        least[item.reference] = min(apart, least.get(item.reference, apart))
    for item, apart in found:
        if apart and not least[item.reference]:
            raise ValueError(
                f"{item.prediction} does not lie on the grid of {item.reference}, as other predictions of it do: "
                f"by origin and direction it lies up to {apart:.2g} voxels from it. Predict the case again, or repair "
                f"the image headers"
            )


def _shown(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:.6g}" for value in values) + ")"


def _measure_item(task: tuple[Item, Sequence[Structure], Sequence[int], int | None]) -> Found:
    item, structures, known_labels, ignored_label = task
    masks = read_mask(item.prediction, item.reader), read_mask(item.reference, item.reader)
    apart = voxels_apart(*masks)
    predictable = [label for label in known_labels if label != ignored_label]
    prediction, reference = masks[0].labels(predictable), masks[1].labels(known_labels)
    if ignored_label is not None:
        ignored = reference == ignored_label
        prediction[ignored] = 0
        reference[ignored] = 0
    measures = [
        measure(
            structure.mask(prediction),
            structure.mask(reference),
            masks[1].spacing_mm,
            structure.tolerance_mm,
            count_lesions=structure.lesion,
        )
        for structure in structures
    ]
    return measures, apart


def _key(item: Item, rules: Sequence[Any]) -> str:
    """Changes with the content of either mask and with everything that decides the metrics."""
    digest = hashlib.sha256(json.dumps([*rules, item.reader], sort_keys=True).encode())
    for file in (item.prediction, item.reference):
        digest.update(sha256(file).encode())
    return digest.hexdigest()


def _entry(key: str, measures: Sequence[Measures], apart: float) -> dict[str, Any]:
    """Content of a line of the store, with the hash by which a later run knows that it is what was written."""
    content = {"key": key, "measures": [asdict(entry) for entry in measures], "voxels_apart": apart}
    return content | {"sha256": content_sha256(content)}


def _read_store(store: Path) -> tuple[dict[str, Found], int]:
    """What was measured, by key, and how many lines are not what was written."""
    known: dict[str, Found] = {}
    damaged = 0
    if not store.is_file():
        return known, 0
    with open(store, encoding="utf-8", errors="replace") as lines:
        for line in filter(str.strip, lines):
            try:
                content = json.loads(line)
                if content["sha256"] != content_sha256(content):
                    raise ValueError
                measures = [Measures(**entry) for entry in content["measures"]]
                known[content["key"]] = measures, float(content["voxels_apart"])
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                damaged += 1
    return known, damaged
