"""A planned and preprocessed data set, as far as the checks before a cross-validation look at it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from nnunetv2_sam3d.experiment.crossval import CrossValidation, parse_models

NAME = "Dataset991_Toy"
CASES = tuple(f"case_{number}" for number in range(10))
TOY_NETWORK = {
    "embed_dim": 32, "num_heads": 2, "out_channels": 16, "decoder_channels": 8, "prompt_mlp_dim": 32,
    "position_grid": 4,
}  # fmt: skip


class Site:
    """nnU-Net's three folders with one data set."""

    def __init__(self, root: Path, cases: Path) -> None:
        shutil.copytree(cases, root / "preprocessed" / NAME)
        self.preprocessed = root / "preprocessed" / NAME
        self.results = root / "results" / NAME
        self.data = self.preprocessed / "nnUNetPlans_3d_fullres"
        self.results.parent.mkdir()
        dataset = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "a": 1}, "file_ending": ".nii.gz"}
        (self.preprocessed / "dataset.json").write_text(json.dumps(dataset))
        self.write_plans("nnUNetPlans")
        self.write_plans("nnUNetSAM3DPlans", sam3d={"variant": "vit_tiny", "network": TOY_NETWORK, "epochs": 7})

    def write_plans(self, name: str, **configuration: Any) -> None:
        full = {
            "data_identifier": "nnUNetPlans_3d_fullres", "batch_size": 2, "patch_size": [16, 16, 16],
            "spacing": [1.0, 1.0, 1.0], "architecture": {"network_class_name": "x", "arch_kwargs": {},
            "_kw_requires_import": []},
        } | configuration  # fmt: skip
        plans = {
            "dataset_name": NAME, "plans_name": name, "label_manager": "LabelManager", "transpose_forward": [0, 1, 2],
            "transpose_backward": [0, 1, 2],
            "image_reader_writer": "SimpleITKIO",
            "configurations": {"3d_fullres": full},
        }  # fmt: skip
        (self.preprocessed / f"{name}.json").write_text(json.dumps(plans))

    def model(self, trainer: str, plans: str = "nnUNetSAM3DPlans") -> Path:
        return self.results / f"nnUNetTrainer_{trainer}__{plans}__3d_fullres"

    def finish(self, trainer: str, *folds: int, plans: str = "nnUNetSAM3DPlans") -> None:
        """Leaves what finished trainings leave, without their weights."""
        for fold in folds:
            folder = self.model(trainer, plans) / f"fold_{fold}"
            (folder / "validation").mkdir(parents=True)
            torch.save({}, folder / "checkpoint_final.pth")
            (folder / "validation" / "summary.json").write_text("{}")


@pytest.fixture(scope="session")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Annotations, and images as nnU-Net has preprocessed them: small ones, which nothing is trained with."""
    root = tmp_path_factory.mktemp("cases")
    for folder in (root / "gt_segmentations", root / "nnUNetPlans_3d_fullres"):
        folder.mkdir()
    for number, case in enumerate(CASES):
        labels = np.zeros((6, 7, 8), np.uint8)
        labels[2:4, 2:4, 2:4] = 1
        mask = sitk.GetImageFromArray(labels)
        mask.SetOrigin((-10.0, 5.0, float(number)))
        sitk.WriteImage(mask, str(root / "gt_segmentations" / f"{case}.nii.gz"))
        properties = SimpleITKIO().read_seg(str(root / "gt_segmentations" / f"{case}.nii.gz"))[1] | {
            "shape_before_cropping": labels.shape, "bbox_used_for_cropping": [[0, size] for size in labels.shape],
            "shape_after_cropping_and_before_resampling": labels.shape,
            "class_locations": {1: np.argwhere(labels[None] == 1)},
        }  # fmt: skip
        nnUNetDatasetBlosc2.save_case(
            labels[None].astype(np.float32), labels[None].astype(np.int8), properties,
            str(root / "nnUNetPlans_3d_fullres" / case),
        )  # fmt: skip
    return root


@pytest.fixture
def site(cases: Path, nnunet_paths: Path) -> Site:
    return Site(nnunet_paths, cases)


@pytest.fixture
def make(site: Site) -> Callable[..., CrossValidation]:
    """A function that describes a cross-validation of the data set."""

    def crossval(*trainers: str, folds: tuple[int, ...] = (0, 1, 2, 3, 4), **more: Any) -> CrossValidation:
        models = parse_models(NAME, trainers, "nnUNetSAM3DPlans", "3d_fullres")
        return CrossValidation(models, folds, all_folds=5, **more)

    return crossval
