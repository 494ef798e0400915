"""Writes the plans of repeats, copies of those that are repeated."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from nnunetv2_sam3d.experiment.models import Model
from nnunetv2_sam3d.files import write_whole
from nnunetv2_sam3d.nnunet.descriptions import read_plans
from nnunetv2_sam3d.nnunet.folders import dataset_folder
from nnunetv2_sam3d.nnunet.layout import CHECKPOINTS, repeat_of, repeat_plans
from nnunetv2_sam3d.settings import PLANS_KEY


def write_repeat_plans(models: Iterable[Model]) -> None:
    """Writes the plans of the models that are repeats, if they are not there.

    Raises:
        ValueError: if there are other plans under the name of a repeat, naming what was trained with them.
    """
    for dataset, name in dict.fromkeys((model.dataset, model.plans) for model in models if model.repeat > 1):
        folder = dataset_folder(dataset)
        plans, repeat = repeat_of(name)
        source, file = folder / f"{plans}.json", folder / f"{name}.json"
        expected = repeated(read_plans(source), repeat)
        if not file.is_file():
            _write(file, expected)
        elif read_plans(file) != expected:
            trained = sorted({model.folder for model in models if model.plans == name and _has_checkpoints(model)})
            remedy = f"Delete {file}, and it is written anew."
            if trained:
                remedy = (
                    f"Put {source} back as it was for these trainings, or delete {file} and what was trained with it: "
                    f"{', '.join(map(str, trained))}."
                )
            raise ValueError(
                f"{file} is not repeat {repeat} of {source}: {_differing(read_plans(file), expected)} differ. {remedy}"
            )


def repeated(plans: Mapping[str, Any], repeat: int) -> dict[str, Any]:
    """The content of the plans of a repeat >= 2: another name, and the repeat among each configuration's settings."""
    copy = deepcopy(dict(plans))
    copy["plans_name"] = repeat_plans(copy["plans_name"], repeat)
    for configuration in copy["configurations"].values():
        if PLANS_KEY in configuration or "inherits_from" not in configuration:  # others inherit the settings whole
            configuration[PLANS_KEY] = {**configuration.get(PLANS_KEY, {}), "repeat": repeat}
    return copy


def _differing(plans: Mapping[str, Any], others: Mapping[str, Any], place: str = "") -> str:
    """What differs, as dotted names."""
    names = []
    for key in sorted({*plans, *others}):
        ours, theirs = plans.get(key), others.get(key)
        if isinstance(ours, dict) and isinstance(theirs, dict):
            if ours != theirs:
                names.append(_differing(ours, theirs, f"{place}{key}."))
        elif ours != theirs:
            names.append(f"{place}{key}")
    return ", ".join(names)


def _write(file: Path, plans: dict[str, Any]) -> None:
    write_whole(file, lambda out: out.write(json.dumps(plans, indent=4).encode()))


def _has_checkpoints(model: Model) -> bool:
    return any((folder / name).is_file() for folder in model.folder.glob("fold_*") for name in CHECKPOINTS)
