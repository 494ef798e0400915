"""What the trainer tests share: plans of a toy network, and small steps of training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nnunetv2_sam3d.trainers.sam3d_trainer import nnUNetTrainer_SAM3D
from nnunetv2_sam3d.weights.checkpoint_file import read_checkpoint

NAME, PLANS, CONFIGURATION = "Dataset991_Toy", "nnUNetSAM3DPlans", "3d_fullres"
PATCH = (8, 16, 16)
TOY = {
    "variant": "vit_tiny",
    "network": {"embed_dim": 32, "num_heads": 2, "out_channels": 16, "decoder_channels": 8, "prompt_mlp_dim": 32,
                "position_grid": 4},
    "token_stride": 4, "epochs": 20, "iterations_per_epoch": 3, "val_iterations_per_epoch": 1,
}  # fmt: skip
RECIPES = ("Original", "DualPath", "Full", "OriginalEval")
MakeTrainer = Callable[..., Any]
with_each_trainer = pytest.mark.parametrize("kind", RECIPES)
with_each_that_trains = pytest.mark.parametrize("kind", RECIPES[:3])


def plans_of(settings: dict[str, Any] | None, **configuration: Any) -> dict[str, Any]:
    """As much of nnU-Net's plans as a trainer without data reads."""
    resampling = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    full = {
        "data_identifier": "nnUNetPlans_3d_fullres", "preprocessor_name": "DefaultPreprocessor", "batch_size": 2,
        "patch_size": list(PATCH), "spacing": [1.0, 1.0, 1.0], "median_image_size_in_voxels": [20, 24, 16],
        "normalization_schemes": ["ZScoreNormalization"], "use_mask_for_norm": [False], "batch_dice": False,
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": resampling,
        "architecture": {"network_class_name": "unused", "arch_kwargs": {}, "_kw_requires_import": []},
    } | configuration  # fmt: skip
    if settings is not None:
        full["sam3d"] = settings
    return {
        "dataset_name": NAME,
        "plans_name": PLANS,
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "label_manager": "LabelManager",
        "configurations": {
            CONFIGURATION: full,
            "2d": full | {"patch_size": [16, 16]},
            "3d_lowres": full | {"next_stage": "3d_cascade_fullres"},
            "3d_cascade_fullres": {"inherits_from": CONFIGURATION, "previous_stage": "3d_lowres"},
        },
    }


def finish(trainer: nnUNetTrainer_SAM3D, steps: int = 1) -> Path:
    """Trains a little and leaves the file that a finished training leaves."""
    train(trainer, steps)
    file = Path(trainer.output_folder) / "checkpoint_final.pth"
    trainer.save_checkpoint(str(file))
    return file


def batch(trainer: nnUNetTrainer_SAM3D, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, len(trainer.label_manager.all_labels), (2, 1, *PATCH), generator=generator)
    return {"data": torch.randn(2, 1, *PATCH, generator=generator), "target": target.float()}


def train(trainer: nnUNetTrainer_SAM3D, steps: int) -> None:
    trainer.network.train()
    for step in range(steps):
        trainer.train_step(batch(trainer, step))


def values(trainer: nnUNetTrainer_SAM3D) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in trainer.network.named_parameters()}


def trained_names(trainer: nnUNetTrainer_SAM3D) -> set[str]:
    return {name for name, parameter in trainer.network.named_parameters() if parameter.requires_grad}


def in_optimizer(trainer: nnUNetTrainer_SAM3D) -> list[set[str]]:
    """Names in each group of the optimizer."""
    names = {id(parameter): name for name, parameter in trainer.network.named_parameters()}
    return [{names[id(parameter)] for parameter in group["params"]} for group in trainer.optimizer.param_groups]


def sam_checkpoint(trainer: nnUNetTrainer_SAM3D, file: Path) -> dict[str, Tensor]:
    """Writes a file like SAM's that fits the trainer's encoder; returns its values by our names."""
    ours = {}
    for name, parameter in trainer.network.named_parameters():
        if name.startswith("encoder.") and not any(
            word in name for word in (".adapter.", "rel_pos_d", "depth_embed", "slice_embed", "neck_3d")
        ):
            ours[name] = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(ours)))
    content = {"image_encoder." + name.removeprefix("encoder.").removeprefix("stem."): ours[name] for name in ours}
    torch.save(content | {"image_encoder.neck.0.weight": torch.zeros(1), "mask_decoder.x": torch.zeros(1)}, file)
    return ours


Pair = tuple[Path, Path]  # a base and the checkpoint that was trained on it


def dualpath_on(base: Path, make_trainer: MakeTrainer, **settings: Any) -> Pair:
    """A DualPath that was trained on a file, as -pretrained_weights gives it."""
    trainer = make_trainer("DualPath", **settings)
    trainer._load_start = lambda: trainer.start.take(base)
    trainer.initialize()
    return base, finish(trainer)


def without_local_path(trainer: nnUNetTrainer_SAM3D) -> None:
    """Leaves the global path of DualPath adapters, which is the original adapter that they started from."""
    for block in trainer.plain_network.encoder.blocks:
        block.adapter.fuse = lambda g, local: g


def weights_of(checkpoint: Path) -> dict[str, Tensor]:
    return read_checkpoint(checkpoint)["network_weights"]


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Whether tables of tensors are the same, bit for bit."""
    return first.keys() == second.keys() and all(
        value.dtype == second[name].dtype
        and value.shape == second[name].shape
        and value.numpy().tobytes() == second[name].numpy().tobytes()
        for name, value in first.items()
    )
