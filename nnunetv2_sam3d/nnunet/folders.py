"""The JSON files and folders of nnU-Net's that several rooms read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name


def read_json(file: Path) -> Any:
    """Content of a JSON file; ValueError that names a damaged one."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged: {error}") from error


def read_table(file: Path, remedy: str) -> dict[str, Any]:
    """Content of a JSON file that holds a table; ValueError with the remedy for a damaged one."""
    try:
        table = read_json(file)
    except ValueError as error:
        raise ValueError(f"{error}. {remedy}") from error
    if not isinstance(table, dict):
        raise ValueError(f"{file} is damaged: it holds no table. {remedy}")
    return table


def channel_names(dataset_json: Mapping[str, Any]) -> dict[str, str]:
    """Names of the channels by their numbers; nnU-Net reads the older key ``modality``, too.

    Raises:
        ValueError: if there are none.
    """
    names = dataset_json.get("channel_names", dataset_json.get("modality"))
    if not isinstance(names, Mapping) or not names:
        raise ValueError('dataset.json has no "channel_names" (older files: "modality"), such as {"0": "CT"}')
    return {str(number): str(name) for number, name in names.items()}


def model_folders(results: Path) -> list[str]:
    """Names of the models of a data set, ``TRAINER__PLANS__CONFIGURATION``; logs of runs lie beside them."""
    return sorted(file.parent.name for file in results.glob("*__*__*/plans.json"))


def read_plans(file: Path) -> dict[str, Any]:
    """The content of a plans file.

    Raises:
        ValueError: if the file is damaged, naming it.
    """
    try:
        return load_json(str(file))
    except (ValueError, RecursionError) as error:  # what json raises for broken text
        raise ValueError(f"{file} is damaged ({error}). Plan the data set again: nnUNetv2_plan_experiment") from error


def plans_in(folder: Path) -> list[str]:
    """Names of the plans of a data set's folder."""
    return sorted(file.stem for file in folder.glob("*.json") if "configurations" in read_plans(file))


def dataset_folder(dataset: str | int) -> Path:
    """``nnUNet_preprocessed/DATASET`` for a name or a number."""
    return Path(str(nnUNet_preprocessed)) / maybe_convert_to_dataset_name(
        int(dataset) if str(dataset).isdigit() else str(dataset)
    )
