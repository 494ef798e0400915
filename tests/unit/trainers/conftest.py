"""Trainers built as nnU-Net's commands build them, on a network of toy size and without data."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from trainer_kit import CONFIGURATION, NAME, TOY, MakeTrainer, Pair, finish, plans_of, sam_checkpoint

from nnunetv2_sam3d.trainers import variants as trainers
from nnunetv2_sam3d.trainers.sam3d_trainer import nnUNetTrainer_SAM3D


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Networks this small gain nothing from threads, and lose much where other processes want the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def folders(nnunet_paths: Path) -> Path:
    """nnU-Net's paths, with a preprocessed folder in which it recognises its format."""
    data = nnunet_paths / "preprocessed" / NAME / "nnUNetPlans_3d_fullres"
    data.mkdir(parents=True)
    (data / "case_0.b2nd").touch()
    return nnunet_paths


@pytest.fixture
def make_trainer() -> MakeTrainer:
    """A function that makes a trainer; `classes` counts the background.

    Each has other random weights, unless it is to be `reproducible` as it is for users.
    """
    made: list[nnUNetTrainer_SAM3D] = []

    def make(
        kind: str, *, classes: int = 3, fold: int = 0, configuration: str = CONFIGURATION, initialize: bool = False,
        reproducible: bool = False, labels: dict[str, Any] | None = None, regions_class_order: list[int] | None = None,
        plans: dict[str, Any] | None = None, **settings: Any,
    ) -> nnUNetTrainer_SAM3D:  # fmt: skip
        torch.manual_seed(len(made))
        labels = labels or {"background": 0} | {f"label {value}": value for value in range(1, classes)}
        dataset = {"channel_names": {"0": "MR"}, "labels": labels, "numTraining": 1, "file_ending": ".nii.gz"}
        dataset |= {} if regions_class_order is None else {"regions_class_order": regions_class_order}
        plans = deepcopy(plans_of(TOY | settings) if plans is None else plans)
        plans["continue_training"] = False
        trainer = getattr(trainers, f"nnUNetTrainer_SAM3D{kind}")(
            plans, configuration, fold, dataset, torch.device("cpu")
        )
        trainer.seed += 0 if reproducible else len(made)
        made.append(trainer)
        if initialize:
            trainer.initialize()
        return trainer

    return make


@pytest.fixture
def original(make_trainer: MakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pair:
    """SAM's file and an Original that was trained on it."""
    file = tmp_path / "sam.pth"
    sam_checkpoint(make_trainer("Full", initialize=True), file)
    with monkeypatch.context() as patch:
        patch.setenv("nnUNet_sam_checkpoint", str(file))
        trainer = make_trainer("Original", initialize=True)
        trainer.inference_allowed_mirroring_axes = (0, 1, 2)  # as nnU-Net sets them on the way to its data loaders
        return file, finish(trainer)
