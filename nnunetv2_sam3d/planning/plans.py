"""Derives plans for the SAM3D trainers from nnU-Net's own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from math import prod
from pathlib import Path
from typing import Any

from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunetv2_sam3d.files import write_bytes, write_text
from nnunetv2_sam3d.network_architecture.config import as_token_stride
from nnunetv2_sam3d.network_architecture.windows import WINDOW
from nnunetv2_sam3d.nnunet.descriptions import channel_names, configuration_of, read_dataset, read_plans
from nnunetv2_sam3d.nnunet.folders import dataset_folder
from nnunetv2_sam3d.nnunet.labels import click_target
from nnunetv2_sam3d.nnunet.layout import PLANS_NAME, dataset_number
from nnunetv2_sam3d.settings import PLANS_KEY, Settings
from nnunetv2_sam3d.weights.reading import read_weights
from nnunetv2_sam3d.weights.sources import find_sam_checkpoint
from nnunetv2_sam3d.weights.transfer import check_encoder_fits

# nnU-Net's planners by the plans that they make
PLANNERS = {f"nnUNetResEncUNet{size}Plans": f"nnUNetPlannerResEnc{size}" for size in ("M", "L", "XL")}


@dataclass(frozen=True)
class Protocol:
    """What a published experiment fixes of the data, so that figures can be compared.

    Attributes:
        spacing_mm: along D, H, W.
        patch_size: voxels (D, H, W).
        clip_hu: lower and upper bound of the intensities.
        mean_hu: subtracted after clipping.
        std_hu: divided by at last.
    """

    spacing_mm: tuple[float, float, float]
    patch_size: tuple[int, int, int]
    clip_hu: tuple[float, float]
    mean_hu: float
    std_hu: float

    def intensities(self) -> dict[str, float]:
        """The numbers by the names under which nnU-Net's CTNormalization reads them from the plans."""
        lower, upper = self.clip_hu
        return {"percentile_00_5": lower, "percentile_99_5": upper, "mean": self.mean_hu, "std": self.std_hu}


# Gong et al., arXiv:2306.13465: their KiTS experiment.
PROTOCOLS = {
    "3dsam-adapter": Protocol((1.0, 1.0, 1.0), (128, 128, 128), (-54.0, 247.0), 59.53867, 55.457336),
}


@dataclass(frozen=True)
class Plan:
    """Derived plans on disk.

    Attributes:
        file: the plans.
        data_identifier: folder of the preprocessed data that they use.
        preprocess: the command that must be run before training, or ``None`` if the preprocessed data fit.
        summary: what was chosen, for people.
        kept: other plans that had the name before; ``None`` if there were none, or if nobody asked to keep them.
    """

    file: Path
    data_identifier: str
    preprocess: str | None
    summary: dict[str, Any]
    kept: Path | None = None


@dataclass(frozen=True)
class BaseSizes:
    """What the base plans and the data set say about the memory of a training.

    Attributes:
        patch_size: voxels (D, H, W); the protocol's if there is one.
        batch_size: samples.
        in_channels: channels of the images.
        num_classes: channels of the logits.
    """

    patch_size: tuple[int, ...]
    batch_size: int
    in_channels: int
    num_classes: int


def base_sizes(dataset: str | int, base: str, configuration: str, protocol: str | None = None) -> BaseSizes:
    """Reads the sizes of a data set and a three-dimensional configuration of its plans."""
    folder, _, full = _read_base(dataset, base, configuration)
    content = read_dataset(folder / "dataset.json")
    _, labels = _labels(folder)
    return BaseSizes(
        PROTOCOLS[protocol].patch_size if protocol else tuple(full["patch_size"]),
        full["batch_size"],
        len(channel_names(content)),
        labels.num_segmentation_heads,
    )


def check_click_targets(folder: Path, settings: Settings) -> None:
    """Raises ValueError if clicks shall be on what the dataset.json of a folder does not have."""
    if settings.click_targets is not None:
        click_target(*_labels(folder), settings.click_targets)


def check_sam_checkpoint(settings: Settings) -> None:
    """Raises ValueError if the file that the settings name as SAM's weights is none, or is of another size.

    The training would notice it, hours later.
    """
    if not settings.sam_checkpoint:
        return
    path = find_sam_checkpoint(settings.variant, settings.sam_checkpoint)
    assert path is not None  # a setting that names no file is an error
    weights = read_weights(path)
    if weights.config is None:
        check_encoder_fits(weights, settings.network_config(adapter="original", in_channels=1, num_classes=2))


def _labels(folder: Path) -> tuple[dict[str, Any], LabelManager]:
    """``labels`` of a data set's dataset.json, and what nnU-Net makes of them."""
    content = read_dataset(folder / "dataset.json", channels=False)
    return content["labels"], LabelManager(content["labels"], content.get("regions_class_order"))


def _read_base(dataset: str | int, base: str, configuration: str) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """Folder of a data set, its plans, and the configuration in them with all that it inherits."""
    folder = dataset_folder(dataset)
    source = folder / f"{base}.json"
    if not source.is_file():
        planner = f" -pl {PLANNERS[base]}" if base in PLANNERS else ""
        raise FileNotFoundError(
            f"{source} does not exist{_like(folder)}. Plan the data set first: nnUNetv2_plan_and_preprocess "
            f"-d {dataset_number(folder.name)} -c {configuration}{planner}"
        )
    plans = read_plans(source)
    full = configuration_of(source, plans, configuration).configuration
    if len(full["patch_size"]) != 3:
        raise NotImplementedError(f"{configuration} is two-dimensional, the SAM3D trainers are not")
    return folder, plans, full


def _like(folder: Path) -> str:
    """For the error on a data set that is not there: the names that are most like it."""
    names = [path.name for path in folder.parent.glob("Dataset*") if path.is_dir()]
    near = [] if folder.is_dir() else get_close_matches(folder.name, names)
    return f" (there is {' and '.join(near)})" if near else ""


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
    protocol: str | None = None,
    keep_earlier: bool = False,
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
        protocol: a key of ``PROTOCOLS``: sets spacing, patch size and intensity window. The derived plans then hold
            the one configuration, since nnU-Net's plans have one intensity window for all of them, and the others'
            data were made with another one.
        keep_earlier: other plans of that name are kept as ``NAME.json.bak``.

    Raises:
        ValueError: for values that cannot work, before anything is written.
        FileNotFoundError: without the base plans.
    """
    if name == base:
        raise ValueError(
            f"the derived plans cannot be called like the plans they are derived from ({base}); choose "
            f"another name with -o"
        )
    folder, plans, full = _read_base(dataset, base, configuration)
    check_click_targets(folder, settings)
    chosen = plans["configurations"][configuration]
    identifier = f"{name}_{configuration}"
    if protocol is not None:
        if patch_size is not None or spacing_mm is not None:
            raise ValueError(f"the protocol {protocol} fixes patch size and spacing; give no others with it")
        chosen = plans["configurations"][configuration] = dict(full)
        _apply_protocol(plans, configuration, PROTOCOLS[protocol], folder / f"{base}.json")
        patch_size, spacing_mm = PROTOCOLS[protocol].patch_size, PROTOCOLS[protocol].spacing_mm
    chosen[PLANS_KEY] = settings.to_dict()
    chosen["patch_size"] = _checked_patch(patch_size, full["patch_size"])
    chosen["batch_size"] = _checked_batch(batch_size, full["batch_size"])
    settings.network_config(adapter="original", in_channels=1, num_classes=2).check_patch_size(chosen["patch_size"])
    if spacing_mm is not None and list(spacing_mm) != list(full["spacing"]):
        _change_spacing(chosen, full, spacing_mm, identifier)
    elif protocol is not None:
        chosen["data_identifier"] = identifier
    elif "data_identifier" in full:
        chosen["data_identifier"] = full["data_identifier"]
    plans["plans_name"] = name
    target = folder / f"{name}.json"
    _keep_preprocessed_data(target, plans, configuration)
    text = json.dumps(plans, indent=4) + "\n"
    kept = None
    if keep_earlier and target.is_file() and (earlier := target.read_bytes()).strip() != text.strip().encode():
        kept = target.with_suffix(".json.bak")
        write_bytes(kept, earlier)
    write_text(target, text)
    present = (folder / chosen["data_identifier"]).is_dir()
    command = f"nnUNetv2_preprocess -d {dataset_number(folder.name)} -plans_name {name} -c {configuration}"
    return Plan(
        target,
        chosen["data_identifier"],
        None if present else command,
        {
            "patch size": chosen["patch_size"],
            "spacing [mm]": list(chosen.get("spacing", full["spacing"])),
            "batch size": chosen["batch_size"],
            **({"intensity window [HU]": PROTOCOLS[protocol].intensities()} if protocol else {}),
            **settings.to_dict(),
        },
        kept,
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
    file = dataset_folder(dataset) / f"{base}.json"
    guide = configuration_of(file, read_plans(file), configuration)
    strides = as_token_stride(settings.token_stride)
    windows = [max(1, round(size / (WINDOW * stride))) for size, stride in zip(guide.patch_size, strides, strict=True)]
    while prod(windows) * WINDOW**3 > max_tokens:
        windows[windows.index(max(windows))] -= 1
    batch = max(1, min(guide.batch_size, max_tokens // (prod(windows) * WINDOW**3)))
    return tuple(count * WINDOW * stride for count, stride in zip(windows, strides, strict=True)), batch


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


def _apply_protocol(plans: dict[str, Any], configuration: str, protocol: Protocol, source: Path) -> None:
    """Puts the protocol's intensity window into the plans and leaves the other configurations out."""
    chosen = plans["configurations"][configuration]
    if chosen["normalization_schemes"] != ["CTNormalization"]:
        raise ValueError(
            f"the protocol is one for CT, and {source} normalises {configuration} by "
            f"{chosen['normalization_schemes']}. It needs a data set with the one channel 'CT' in its dataset.json."
        )
    for unused in ("inherits_from", "previous_stage", "next_stage"):
        chosen.pop(unused, None)
    plans["configurations"] = {configuration: chosen}
    plans["foreground_intensity_properties_per_channel"]["0"] |= protocol.intensities()


def _keep_preprocessed_data(target: Path, plans: dict[str, Any], configuration: str) -> None:
    """Another spacing or intensity window under the same name must not meet the data of the old one."""
    if not target.is_file():
        return
    earlier_plans = read_plans(target, "Move it away, then run the command again")
    earlier = earlier_plans["configurations"].get(configuration, {})
    chosen = plans["configurations"][configuration]
    folder = target.parent / chosen["data_identifier"]
    if earlier.get("data_identifier") != chosen["data_identifier"] or not folder.is_dir():
        return
    if earlier.get("spacing") != chosen.get("spacing"):
        before, now = (f"spacing {some.get('spacing')}" for some in (earlier, chosen))
    elif _intensities(earlier_plans) != _intensities(plans):
        before, now = (f"the intensities {_intensities(some)}" for some in (earlier_plans, plans))
    else:
        return
    raise ValueError(
        f"{folder} holds data preprocessed for {before} of the earlier plans {target.name}, the new ones have {now}. "
        f"Give the new plans another name (-o NAME), or delete that folder first."
    )


def _intensities(plans: dict[str, Any]) -> Any:
    return plans.get("foreground_intensity_properties_per_channel")
