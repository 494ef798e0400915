"""What is found out before the first epoch: whether a trainer can work with its plans and data, and what fits."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

from nnunetv2_sam3d.memory.count import step_bytes
from nnunetv2_sam3d.memory.model import GB, memory_of, peak_bytes
from nnunetv2_sam3d.network_architecture.sam3d import SAM3D
from nnunetv2_sam3d.settings import Settings
from nnunetv2_sam3d.trainers.losses import DiceCELoss
from nnunetv2_sam3d.trainers.recipes import Recipe, apply_freezing


def checked_settings(configuration_manager: ConfigurationManager, name: str) -> Settings:
    """The settings of a configuration that a SAM3D trainer can work with."""
    if configuration_manager.previous_stage_name is not None:
        raise NotImplementedError(
            f"{name} is a cascade stage; the SAM3D trainers take no segmentation of an earlier "
            f"stage. Use 3d_fullres or 3d_lowres."
        )
    if len(configuration_manager.patch_size) != 3:
        raise NotImplementedError(
            f"{name} is two-dimensional; the SAM3D trainers are three-dimensional. Use 3d_fullres or 3d_lowres."
        )
    settings = Settings.from_plans(configuration_manager.configuration)
    settings.network_config(adapter="original", in_channels=1, num_classes=2).check_patch_size(
        configuration_manager.patch_size
    )
    return settings


def check_foreground(dataset: Any, fold: int, folder: str) -> None:
    """Raises ValueError if no training case has any foreground (the loss would have nothing to learn).

    Args:
        dataset: nnU-Net's, of the training cases.
        fold: for the message.
        folder: of the preprocessed cases, for the message.
    """
    for case in dataset.identifiers:
        properties = dataset.load_case(case)[-1]
        if any(len(places) for places in properties["class_locations"].values()):
            return
    raise ValueError(
        f"none of the {len(dataset.identifiers)} training cases of fold {fold} in {folder} has a single foreground "
        f"voxel. Check the label files in labelsTr against the labels in dataset.json, then preprocess again."
    )


def decide_checkpointing(
    network: SAM3D,
    recipe: Recipe,
    *,
    patch_size: tuple[int, ...],
    batch_size: int,
    batch_dice: bool,
    device: torch.device,
    say: Callable[[str], None],
) -> None:
    """Recomputes activations where a step without that would not fit into the device's memory."""
    available = memory_of(device)
    if available is None:
        return
    precision = "float16" if device.type == "cuda" else network.cpu_training_precision
    # The loss of plain labels also for regions: with an ignore label, nnU-Net's losses look at values.
    labels = LabelManager({"background": 0, "target": 1}, None)
    counted = step_bytes(
        network.config,
        partial(apply_freezing, recipe=recipe),
        DiceCELoss(labels, batch_dice).train(),
        patch_size=patch_size,
        batch_size=batch_size,
        precision=precision,
        device=device.type,
    )
    needed = peak_bytes(counted, device.type, precision)
    network.encoder.checkpointing = needed > available
    say(
        f"Checkpointing {'on' if needed > available else 'off'}: without it a training step is predicted to take "
        f"{needed / GB:.1f} of {available / GB:.1f} GB"
    )
