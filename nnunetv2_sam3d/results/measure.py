"""From predictions to the one table of cases: reads, checks and measures in parallel, and keeps what was measured."""

from __future__ import annotations

import gzip
import hashlib
import json
import multiprocessing
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import SimpleITK as sitk
from tqdm import tqdm

from nnunetv2_sam3d.results.collect import Item
from nnunetv2_sam3d.results.metrics import Measures, measure
from nnunetv2_sam3d.results.structures import Structure

RULES_VERSION = 1  # raised whenever the same masks would give other figures


@dataclass(frozen=True)
class Row:
    """One structure of one case with one model: a line of ``cases.csv``.

    Attributes:
        model: name of the model.
        fold: whose validation case it is.
        case: nnU-Net's identifier.
        structure: label or region.
        tolerance_mm: of the surface Dice.
        measures: the figures.
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
    """The table of cases, with the columns of ``cases.csv``; NaN where a figure is not defined."""
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
) -> list[Row]:
    """Measures every item; what ``store`` holds of an earlier run with the same files and rules is not measured again.

    Args:
        items: predictions and references.
        structures: what is measured of each.
        known_labels: values that a mask may hold.
        ignored_label: voxels of the reference that do not count.
        store: JSON lines file; damaged or outdated lines are passed over.
        processes: worker processes.

    Returns:
        the rows in the order of items, then structures.

    Raises:
        ValueError: for masks that do not fit together, are damaged or hold unknown labels, naming the file.
    """
    rules = [RULES_VERSION, [asdict(structure) for structure in structures], sorted(known_labels), ignored_label]
    tasks = [(item.prediction, item.reference, structures, known_labels, ignored_label) for item in items]
    keys = [_key(item, rules) for item in items]
    known = _read_store(store)
    missing = [number for number, key in enumerate(keys) if key not in known]
    store.parent.mkdir(parents=True, exist_ok=True)
    with open(store, "a", encoding="utf-8") as file, _pool(min(processes, len(missing))) as mapped:
        results = mapped(_measure_item, [tasks[number] for number in missing])
        for number, measures in zip(missing, tqdm(results, "measure", len(missing), unit="case"), strict=True):
            known[keys[number]] = measures
            file.write(json.dumps({"key": keys[number], "measures": [asdict(entry) for entry in measures]}) + "\n")
            file.flush()
    return [
        Row(item.model, item.fold, item.case, structure.name, structure.tolerance_mm, measures, item.repeat)
        for item, key in zip(items, keys, strict=True)
        for structure, measures in zip(structures, known[key], strict=True)
    ]


def read_mask(file: Path) -> sitk.Image:
    """A label map.

    Raises:
        ValueError: if the file is damaged, cut short or not three-dimensional.
    """
    try:
        if file.name.endswith(".gz"):  # SimpleITK fills what is cut off with zeros and says nothing
            with gzip.open(file) as stream:
                while stream.read(1 << 22):
                    pass
        image = sitk.ReadImage(str(file))
    except (RuntimeError, OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{file} is damaged or no image: {str(error).strip().splitlines()[-1]}") from error
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise ValueError(f"{file} is no three-dimensional label map; only these can be reported")
    return image


def label_array(image: sitk.Image, file: Path, known_labels: Sequence[int]) -> np.ndarray:
    """The labels of an image as uint8 or uint16, (z, y, x).

    Raises:
        ValueError: for values that are no known label, naming the file.
    """
    values = sitk.GetArrayViewFromImage(image)
    labels = values.astype(np.uint8 if max(known_labels) < 256 else np.uint16)
    if not np.array_equal(labels, values):
        raise ValueError(f"{file} holds values from {values.min()} to {values.max()} that are no integer labels")
    # plane by plane: bincount turns what it counts into 64-bit integers
    present = sum(np.bincount(plane.ravel(), minlength=np.iinfo(labels.dtype).max + 1) for plane in labels)
    unknown = sorted(set(np.flatnonzero(present).tolist()) - set(known_labels))
    if unknown:
        raise ValueError(f"{file} holds the label {unknown[0]}, dataset.json knows {sorted(known_labels)}")
    return labels


def check_geometry(prediction: sitk.Image, reference: sitk.Image, files: tuple[Path, Path]) -> None:
    """Raises ValueError if two images do not share their grid (a hundredth of a voxel is forgiven)."""
    least = min(reference.GetSpacing())
    for name, ours, theirs, tolerance in (
        ("size", prediction.GetSize(), reference.GetSize(), 0.0),
        ("spacing", prediction.GetSpacing(), reference.GetSpacing(), 1e-3 * least),
        ("origin", prediction.GetOrigin(), reference.GetOrigin(), 1e-2 * least),
        ("direction", prediction.GetDirection(), reference.GetDirection(), 1e-3),
    ):
        if not np.allclose(ours, theirs, rtol=0, atol=tolerance):
            raise ValueError(
                f"{files[0]} does not lie on the grid of {files[1]}: its {name} is {_shown(ours)}, the reference's "
                f"{_shown(theirs)}. Predict the case again, or repair the image headers"
            )


def _shown(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:.6g}" for value in values) + ")"


def _measure_item(task: tuple[Path, Path, Sequence[Structure], Sequence[int], int | None]) -> list[Measures]:
    prediction_file, reference_file, structures, known_labels, ignored_label = task
    prediction_image, reference_image = read_mask(prediction_file), read_mask(reference_file)
    check_geometry(prediction_image, reference_image, (prediction_file, reference_file))
    spacing_mm = reference_image.GetSpacing()[::-1]
    predictable = [label for label in known_labels if label != ignored_label]
    prediction = label_array(prediction_image, prediction_file, predictable)
    reference = label_array(reference_image, reference_file, known_labels)
    if ignored_label is not None:
        ignored = reference == ignored_label
        prediction[ignored] = 0
        reference[ignored] = 0
    return [
        measure(
            structure.mask(prediction),
            structure.mask(reference),
            spacing_mm,
            structure.tolerance_mm,
            count_lesions=structure.lesion,
        )
        for structure in structures
    ]


def _key(item: Item, rules: Sequence[Any]) -> str:
    """Changes with the content of either mask and with everything that decides the figures."""
    digest = hashlib.sha256(json.dumps(rules, sort_keys=True).encode())
    for file in (item.prediction, item.reference):
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _read_store(store: Path) -> dict[str, list[Measures]]:
    known = {}
    names = {field.name for field in fields(Measures)}
    for line in store.read_text(encoding="utf-8").splitlines() if store.is_file() else []:
        try:
            entry: Mapping[str, Any] = json.loads(line)
            if all(set(measures) == names for measures in entry["measures"]):
                known[entry["key"]] = [Measures(**measures) for measures in entry["measures"]]
        except (ValueError, KeyError, TypeError):  # the line that an interruption cut off
            continue
    return known


@contextmanager
def _pool(processes: int) -> Iterator[Any]:
    if processes <= 1:
        yield map
        return
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        yield pool.imap
