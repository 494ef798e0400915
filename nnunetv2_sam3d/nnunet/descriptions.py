"""nnU-Net's descriptions, plans and ``dataset.json``: read with a look at every entry that somebody will use.

nnU-Net itself looks at nothing, and ends with whatever Python says of the first entry that is not there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunetv2_sam3d.json_files import (
    Form,
    complaint_of,
    entries,
    is_number,
    is_table,
    is_text,
    is_whole_number,
    list_of,
    read_json,
    read_table,
    table_of,
)

MODEL_PLANS = "plans.json"  # in the folder of a model; in nnUNet_preprocessed the file is called like the plans


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_order(value: Any) -> bool:
    return list_of(is_whole_number)(value) and sorted(value) == list(range(len(value))) and len(value) == 3


def _is_size(value: Any) -> bool:
    return list_of(is_whole_number)(value) and len(value) in (2, 3) and min(value) > 0


def _is_spacing(value: Any) -> bool:
    return list_of(is_number)(value) and len(value) in (2, 3) and all(0 < length < float("inf") for length in value)


def _is_count(value: Any) -> bool:
    return is_whole_number(value) and value > 0


def _is_label(value: Any) -> bool:
    values = value if isinstance(value, list) else [value]
    return bool(values) and all(is_whole_number(v) or (is_text(v) and v.isdecimal()) for v in values)


PLANS: Mapping[str, Form] = {
    "dataset_name": is_text,
    "plans_name": is_text,
    "image_reader_writer": is_text,
    "label_manager": is_text,
    "transpose_forward": _is_order,
    "transpose_backward": _is_order,
    "configurations": table_of(is_table),
}
BASE = ("plans_name", "configurations")
SOME_PLANS: Mapping[str, Form] = {"foreground_intensity_properties_per_channel": table_of(is_table)}
# of a configuration with all that it inherits
CONFIGURATION: Mapping[str, Form] = {
    "data_identifier": is_text,
    "batch_size": _is_count,
    "patch_size": _is_size,
    "spacing": _is_spacing,
}
SOME_CONFIGURATIONS: Mapping[str, Form] = {
    "inherits_from": is_text,
    "preprocessor_name": is_text,
    "batch_dice": _is_flag,
    "median_image_size_in_voxels": list_of(is_number),
    "normalization_schemes": list_of(is_text),
    "use_mask_for_norm": list_of(_is_flag),
    "architecture": is_table,
    "sam3d": is_table,
    **{f"resampling_fn_{what}": is_text for what in ("data", "seg", "probabilities")},
    **{f"resampling_fn_{what}_kwargs": is_table for what in ("data", "seg", "probabilities")},
}
# what nnU-Net needs for the prediction of an image, beside the above
PREDICTION: Mapping[str, Form] = {
    name: form
    for name, form in SOME_CONFIGURATIONS.items()
    if name.startswith("resampling_fn_") or name in ("preprocessor_name", "normalization_schemes", "use_mask_for_norm")
}
DATASET: Mapping[str, Form] = {"labels": table_of(_is_label), "file_ending": is_text}
SOME_DATASETS: Mapping[str, Form] = {
    "channel_names": table_of(is_text),
    "modality": table_of(is_text),
    "dataset": table_of(entries(images=list_of(is_text), label=is_text)),  # where cases lie elsewhere
    "regions_class_order": lambda value: value is None or list_of(is_whole_number)(value),
}


def read_plans(file: Path, remedy: str = "", *, needed: Collection[str] = BASE) -> dict[str, Any]:
    """The content of a plans file.

    Args:
        file: in nnUNet_preprocessed or a model's folder.
        remedy: by default how such a file comes about.
        needed: entries of :data:`PLANS` that must be there; all that are there are looked at.

    Raises:
        ValueError: if the file is damaged, with the remedy.
    """
    remedy = remedy or _plans_remedy(file)
    plans = read_table(file, remedy, {name: PLANS[name] for name in needed}, {**PLANS, **SOME_PLANS})
    for name, configuration in plans.get("configurations", {}).items():
        if complaint := complaint_of(configuration, {}, {**CONFIGURATION, **SOME_CONFIGURATIONS}):
            raise ValueError(f"{file} is damaged: of the configuration {name!r:.60}, {complaint}. {remedy}")
    return plans


def configuration_of(
    file: Path, plans: Mapping[str, Any], name: str, *, for_prediction: bool = False
) -> ConfigurationManager:
    """A configuration of plans with all that it inherits.

    Args:
        file: that the plans were read from.
        plans: its content.
        name: of the configuration.
        for_prediction: whether images will be preprocessed and segmentations exported by it.

    Raises:
        ValueError: if it is not there, or lacks what is needed.
    """
    if name not in plans["configurations"]:
        raise ValueError(f"{file} has no configuration {name!r}, only {sorted(plans['configurations'])}")
    try:
        configuration = PlansManager(dict(plans)).get_configuration(name)
    except (ValueError, RuntimeError, RecursionError) as error:
        reason = f"{name!r} inherits from what is not there, or from itself"
        raise ValueError(f"{file} is damaged: {reason}. {_plans_remedy(file)}") from error
    forms = {**CONFIGURATION, **(PREDICTION if for_prediction else {})}
    if complaint := complaint_of(configuration.configuration, forms, {}):
        raise ValueError(f"{file} is damaged: of the configuration {name!r}, {complaint}. {_plans_remedy(file)}")
    return configuration


def _plans_remedy(file: Path) -> str:
    if file.name == MODEL_PLANS:
        return "Copy it from nnUNet_preprocessed, where it is called like the plans, or from another copy of the model"
    return (
        "Make it anew with the options of then: nnUNetv2_plan_experiment, or nnUNetv2_sam3d plan for plans of the "
        "SAM3D trainers"
    )


def read_dataset(file: Path, remedy: str = "Copy it from the raw data set", *, channels: bool = True) -> dict[str, Any]:
    """The content of a ``dataset.json``, with labels that nnU-Net takes.

    Args:
        file: to read.
        remedy: the end of every error.
        channels: whether the names of the channels are needed.

    Raises:
        ValueError: if the file is damaged, with the remedy.
    """
    content = read_table(file, remedy, DATASET, SOME_DATASETS)
    try:
        if channels:
            channel_names(content)
        LabelManager(content["labels"], content.get("regions_class_order"))
    except (ValueError, RuntimeError, AssertionError, TypeError) as error:  # nnU-Net asserts what users may get wrong
        raise ValueError(f"{file} cannot be used: {error}. {remedy}") from error
    return content


def channel_names(dataset_json: Mapping[str, Any]) -> dict[str, str]:
    """Names of the channels by their numbers; nnU-Net reads the older key ``modality``, too.

    Raises:
        ValueError: if there are none.
    """
    names = dataset_json.get("channel_names", dataset_json.get("modality"))
    if not isinstance(names, Mapping) or not names or not all(str(number).isdecimal() for number in names):
        raise ValueError('dataset.json has no "channel_names" (older files: "modality"), such as {"0": "CT"}')
    return {str(number): str(name) for number, name in names.items()}


def plans_in(folder: Path) -> list[str]:
    """Names of the plans of a data set's folder; damaged files are none of them."""
    return sorted(file.stem for file in folder.glob("*.json") if _are_plans(file))


def _are_plans(file: Path) -> bool:
    try:
        content = read_json(file)
    except ValueError:
        return False
    return isinstance(content, dict) and "configurations" in content
