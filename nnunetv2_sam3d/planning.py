"""Derives plans for the SAM3D trainers from nnU-Net's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from batchgenerators.utilities.file_and_folder_operations import load_json, save_json
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_sam3d.network_architecture.config import as_token_stride
from nnunetv2_sam3d.network_architecture.windows import WINDOW
from nnunetv2_sam3d.settings import PLANS_KEY, Settings

PLANS_NAME = "nnUNetSAM3DPlans"


@dataclass(frozen=True)
class Plan:
    """Derived plans on disk.

    Attributes:
        file: the plans.
        data_identifier: folder of the preprocessed data that they use.
        preprocess: the command that must be run before training, or ``None`` if the preprocessed data fit.
        summary: what was chosen, for people.
    """

    file: Path
    data_identifier: str
    preprocess: str | None
    summary: dict[str, Any]


def derive_plans(
    dataset: str | int,
    *,
    base: str = "nnUNetPlans",
    name: str = PLANS_NAME,
    configuration: str = "3d_fullres",
    settings: Settings,
    patch_size: Sequence[int] | None = None,
    spacing_mm: Sequence[float] | None = None,
    batch_size: int | None = None,
) -> Plan:
    """Writes ``nnUNet_preprocessed/DATASET/NAME.json``.

    The plans' own architecture stays, so that the stock trainer works with the derived plans as well.

    Args:
        dataset: name or number.
        base: plans to start from.
        name: name of the derived plans.
        configuration: the configuration that is changed.
        settings: of the network and the training.
        patch_size: voxels (D, H, W); the base's by default.
        spacing_mm: target spacing (D, H, W); the base's by default. Another one needs preprocessing.
        batch_size: the base's by default.

    Raises:
        ValueError: for values that cannot work, before anything is written.
        FileNotFoundError: without the base plans.
    """
    folder = dataset_folder(dataset)
    source = folder / f"{base}.json"
    if not source.is_file():
        raise FileNotFoundError(
            f"{source} does not exist. Plan the data set first: "
            f"nnUNetv2_plan_and_preprocess -d {dataset} -c {configuration}"
        )
    if name == base:
        raise ValueError(
            f"the derived plans cannot be called like the plans they are derived from ({base}); choose "
            f"another name with -o"
        )
    plans = read_plans(source)
    if configuration not in plans["configurations"]:
        raise ValueError(f"{source} has no configuration {configuration!r}, only {sorted(plans['configurations'])}")
    chosen = plans["configurations"][configuration]
    full = PlansManager(plans).get_configuration(configuration).configuration
    if len(full["patch_size"]) != 3:
        raise NotImplementedError(f"{configuration} is two-dimensional, the SAM3D trainers are not")
    chosen[PLANS_KEY] = settings.to_dict()
    chosen["patch_size"] = _checked_patch(patch_size, full["patch_size"])
    chosen["batch_size"] = _checked_batch(batch_size, full["batch_size"])
    settings.network_config(adapter="original", in_channels=1, num_classes=2).check_patch_size(chosen["patch_size"])
    if spacing_mm is not None and list(spacing_mm) != list(full["spacing"]):
        _change_spacing(chosen, full, spacing_mm, f"{name}_{configuration}")
    elif "data_identifier" in full:
        chosen["data_identifier"] = full["data_identifier"]
    plans["plans_name"] = name
    target = folder / f"{name}.json"
    _keep_preprocessed_data(target, chosen, configuration)
    save_json(plans, str(target), sort_keys=False)
    present = (folder / chosen["data_identifier"]).is_dir()
    command = f"nnUNetv2_preprocess -d {_number(folder)} -plans_name {name} -c {configuration}"
    return Plan(
        target,
        chosen["data_identifier"],
        None if present else command,
        {
            "patch size": chosen["patch_size"],
            "spacing [mm]": list(chosen.get("spacing", full["spacing"])),
            "batch size": chosen["batch_size"],
            **settings.to_dict(),
        },
    )


def window_patch(
    dataset: str | int, base: str, configuration: str, settings: Settings, max_tokens: int = 8192
) -> tuple[tuple[int, ...], int]:
    """A patch of whole attention windows near the base plans' one, and a batch size, for modest machines.

    Windows are 8 tokens wide; what a patch has beyond whole windows is computed and thrown away.

    Args:
        dataset: name or number.
        base: plans whose patch and batch size are the guide.
        configuration: in them.
        settings: their token stride decides the size of a window in voxels.
        max_tokens: bound on the tokens of a patch, and of a batch.

    Returns:
        patch size (D, H, W) in voxels, and batch size.
    """
    plans = read_plans(dataset_folder(dataset) / f"{base}.json")
    guide = PlansManager(plans).get_configuration(configuration)
    strides = as_token_stride(settings.token_stride)
    windows = [max(1, round(size / (WINDOW * stride))) for size, stride in zip(guide.patch_size, strides, strict=True)]
    while prod(windows) * WINDOW**3 > max_tokens:
        windows[windows.index(max(windows))] -= 1
    batch = max(1, min(guide.batch_size, max_tokens // (prod(windows) * WINDOW**3)))
    return tuple(count * WINDOW * stride for count, stride in zip(windows, strides, strict=True)), batch


def read_plans(file: Path) -> dict[str, Any]:
    """The content of a plans file.

    Raises:
        ValueError: if the file is damaged, naming it.
    """
    try:
        return load_json(str(file))
    except ValueError as error:  # what json raises for broken text
        raise ValueError(f"{file} is damaged ({error}). Plan the data set again: nnUNetv2_plan_experiment") from error


def dataset_folder(dataset: str | int) -> Path:
    """``nnUNet_preprocessed/DATASET`` for a name or a number."""
    return Path(str(nnUNet_preprocessed)) / maybe_convert_to_dataset_name(
        int(dataset) if str(dataset).isdigit() else str(dataset)
    )


def _number(folder: Path) -> int:
    return int(folder.name[len("Dataset") : len("Dataset") + 3])


def _checked_patch(patch_size: Sequence[int] | None, base: Sequence[int]) -> list[int]:
    patch = [int(size) for size in (base if patch_size is None else patch_size)]
    if len(patch) != 3 or min(patch) < 1:
        raise ValueError(f"the patch size must be three positive voxel counts (D H W), got {patch}")
    return patch


def _checked_batch(batch_size: int | None, base: int) -> int:
    batch = base if batch_size is None else batch_size
    if batch < 1:
        raise ValueError(f"the batch size must be at least 1, got {batch}")
    return batch


def _change_spacing(chosen: dict[str, Any], full: dict[str, Any], spacing_mm: Sequence[float], identifier: str) -> None:
    spacing = [float(value) for value in spacing_mm]
    if len(spacing) != 3 or not all(0.01 <= value <= 100 for value in spacing):
        raise ValueError(f"the spacing must be three lengths between 0.01 and 100 mm (D H W), got {spacing}")
    ratio = [old / new for old, new in zip(full["spacing"], spacing, strict=True)]
    chosen["median_image_size_in_voxels"] = [
        size * factor for size, factor in zip(full["median_image_size_in_voxels"], ratio, strict=True)
    ]
    chosen["spacing"] = spacing
    chosen["data_identifier"] = identifier


def _keep_preprocessed_data(target: Path, chosen: dict[str, Any], configuration: str) -> None:
    """Another spacing under the same name must not meet the data of the old one."""
    if not target.is_file():
        return
    earlier = load_json(str(target))["configurations"].get(configuration, {})
    folder = target.parent / chosen["data_identifier"]
    if (
        earlier.get("data_identifier") == chosen["data_identifier"]
        and folder.is_dir()
        and earlier.get("spacing") != chosen.get("spacing")
    ):
        raise ValueError(
            f"{folder} holds data preprocessed for spacing {earlier.get('spacing')} of the earlier plans "
            f"{target.name}, the new ones have {chosen.get('spacing')}. Give the new plans another name "
            f"(-o NAME), or delete that folder first."
        )
