"""The folders of nnU-Net's that several rooms look into."""

from __future__ import annotations

from pathlib import Path

from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name


def model_folders(results: Path) -> list[str]:
    """Names of the models of a data set, ``TRAINER__PLANS__CONFIGURATION``; logs of runs lie beside them."""
    return sorted(file.parent.name for file in results.glob("*__*__*/plans.json"))


def dataset_folder(dataset: str | int) -> Path:
    """``nnUNet_preprocessed/DATASET`` for a name or a number."""
    return Path(str(nnUNet_preprocessed)) / maybe_convert_to_dataset_name(
        int(dataset) if str(dataset).isdigit() else str(dataset)
    )
