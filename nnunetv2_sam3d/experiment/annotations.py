"""What a report would refuse, or tell, of the data that trainings are about to begin with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_sam3d.messages import some
from nnunetv2_sam3d.nnunet.labels import all_values
from nnunetv2_sam3d.nnunet.layout import dataset_number
from nnunetv2_sam3d.results.measure import grid_of, read_mask, told_apart, voxels_apart
from nnunetv2_sam3d.results.structures import structures_of
from nnunetv2_sam3d.results.trained_models import READER, Dataset, open_dataset


def check_annotations(folder: Path, plans: PlansManager, cases: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Holds the annotations, which validation and report will read, against their images and ``dataset.json``.

    Args:
        folder: ``nnUNet_preprocessed/DATASET``.
        plans: of the trainings.
        cases: properties of the preprocessed images, by name.

    Returns:
        sentences on what nnU-Net warns of and accepts.

    Raises:
        ValueError: for annotations that are absent, cannot be read, hold unknown labels, or have another size or other
            voxels than their images; and for a ``dataset.json`` without structures.
    """
    dataset = open_dataset(folder)
    structures_of(dataset.json)
    remedy = (
        f"Correct them in {dataset.raw / 'labelsTr'}, then preprocess the data again: nnUNetv2_preprocess -d "
        f"{dataset_number(dataset.name)}"
    )
    wrong: list[str] = []
    apart: dict[str, float] = {}
    for case, properties in cases.items():
        try:
            if voxels := _compare(dataset, plans, case, properties):
                apart[dataset.reference(case).name] = voxels
        except ValueError as error:
            wrong.append(str(error))
    if wrong:
        raise ValueError(f"{len(wrong)} annotations cannot be used: {some(wrong)}. {remedy}")
    return [told_apart(apart)] if apart else []


def _compare(dataset: Dataset, plans: PlansManager, case: str, properties: Mapping[str, Any]) -> float:
    """How far an annotation lies from its image, in voxels; 0 for the same place."""
    file = dataset.reference(case)
    if not file.is_file():
        raise ValueError(f"{file} does not exist")
    mask = read_mask(file, plans.plans.get("image_reader_writer", READER))
    mask.labels(all_values(dataset.json["labels"]))
    return voxels_apart(grid_of(f"{case}, the image", properties, plans.transpose_forward), mask)
