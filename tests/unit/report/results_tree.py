"""A small results tree as nnU-Net writes it: 10 cases, 5 folds, trainers of known quality."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch

SHAPE = (20, 28, 30)
SPACING_MM = (3.0, 1.5, 1.5)  # z, y, x
PLANS = "nnUNetSAM3DPlans"
CONFIGURATION = "3d_fullres"
LABELS = {"background": 0, "kidney": 1, "tumour": 2, "cyst": 3}
# how far a trainer's masks are shifted, in voxels of x
SHIFTS = {"nnUNetTrainer_SAM3DFull": 3, "nnUNetTrainer_SAM3DDualPath": 1, "nnUNetTrainer_SAM3DOriginalEval": 3}


@dataclass(frozen=True)
class Tree:
    """Where the files are."""

    root: Path
    name: str
    cases: tuple[str, ...]

    @property
    def preprocessed(self) -> Path:
        return self.root / "preprocessed" / self.name

    @property
    def raw(self) -> Path:
        return self.root / "raw" / self.name

    def model(self, trainer: str) -> Path:
        return self.root / "results" / self.name / f"{trainer}__{PLANS}__{CONFIGURATION}"

    def prediction(self, trainer: str, case: str) -> Path:
        fold = self.cases.index(case) % 5
        return self.model(trainer) / f"fold_{fold}" / "validation" / f"{case}.nii.gz"

    @property
    def environment(self) -> dict[str, str]:
        return {f"nnUNet_{name}": str(self.root / name) for name in ("raw", "preprocessed", "results")}


def labels_of(number: int) -> np.ndarray:
    """A kidney with a tumour that grows with the number; case 0 has none, odd cases have a cyst."""
    z, y, x = np.indices(SHAPE) * np.reshape(SPACING_MM, (3, 1, 1, 1))
    labels = np.zeros(SHAPE, np.uint8)
    labels[((z - 30) / 20) ** 2 + ((y - 20) / 10) ** 2 + ((x - 18) / 10) ** 2 < 1] = 1
    if number:
        labels[(z - 24) ** 2 + (y - 20) ** 2 + (x - 18) ** 2 < (3.5 + 0.6 * number) ** 2] = 2
    if number % 2:
        labels[(z - 42) ** 2 + (y - 20) ** 2 + (x - 18) ** 2 < 4.0**2] = 3
    return labels


def write_image(array: np.ndarray, file: Path, spacing_mm: tuple[float, ...] = SPACING_MM) -> None:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing_mm[::-1])
    image.SetOrigin((-20.0, 5.0, 100.0))
    file.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(file))


def write_tree(
    root: Path,
    *,
    name: str = "Dataset990_Phantoms",
    trainers: Mapping[str, int] = SHIFTS,
    labels: Mapping[str, Any] = LABELS,
    case_name: str = "case_{:03d}",
) -> Tree:
    tree = Tree(root, name, tuple(case_name.format(number) for number in range(10)))
    dataset_json = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 10, "file_ending": ".nii.gz"}
    if any(isinstance(values, list) for values in labels.values()):
        dataset_json["regions_class_order"] = list(range(1, len(labels)))
    noise = np.random.default_rng(0)
    for number, case in enumerate(tree.cases):
        truth = labels_of(number)
        image = (truth * 60 - 80 + noise.normal(0, 8, SHAPE)).astype(np.int16)
        write_image(image, tree.raw / "imagesTr" / f"{case}_0000.nii.gz")
        write_image(truth, tree.raw / "labelsTr" / f"{case}.nii.gz")
        write_image(truth, tree.preprocessed / "gt_segmentations" / f"{case}.nii.gz")
        for trainer, shift in trainers.items():
            write_image(np.roll(truth, shift, axis=2), tree.prediction(trainer, case))
    splits = [
        {"train": [c for i, c in enumerate(tree.cases) if i % 5 != fold], "val": list(tree.cases[fold::5])}
        for fold in range(5)
    ]
    (tree.preprocessed / "splits_final.json").write_text(json.dumps(splits))
    for folder in (tree.raw, tree.preprocessed):
        (folder / "dataset.json").write_text(json.dumps(dataset_json))
    for trainer in trainers:
        (tree.model(trainer) / "plans.json").write_text(json.dumps({"plans_name": PLANS}))
        (tree.model(trainer) / "dataset.json").write_text(json.dumps(dataset_json))
        for fold in range(5):
            write_training(tree.model(trainer) / f"fold_{fold}", fold, 0 if trainer.endswith("Eval") else 4)
    return tree


def log_of(epochs: range, fold: int, seconds: float = 90.0) -> str:
    """nnU-Net's log lines of some epochs."""
    stamp = "2026-01-01 10:00:00.123456: "
    lines = ["", "#### Please cite the following paper when using nnU-Net: Isensee, F. (2021) ####", ""]
    for epoch in epochs:
        lines += [
            f"{stamp} ",
            f"{stamp}Epoch {epoch} ",
            f"{stamp}Current learning rate: 0.01 ",
            f"{stamp}train_loss {0.5 - 0.05 * epoch - 0.01 * fold:.4f} ",
            f"{stamp}val_loss {-0.6 + 0.02 * fold:.4f} ",
            f"{stamp}Pseudo dice [np.float32(0.8), np.float32({0.4 + 0.05 * epoch:.2f}), np.float32(nan)] ",
            f"{stamp}Epoch time: {seconds} s ",
        ]
    return "\n".join([*lines, f"{stamp}Training done. ", ""])


def write_training(folder: Path, fold: int, epochs: int) -> None:
    """Log, debug file, and a checkpoint of a stock trainer with 30 parameters, one of them under two names."""
    (folder / "training_log_2026_1_1_10_00_00.txt").write_text(log_of(range(epochs), fold))
    (folder / "debug.json").write_text(json.dumps({"device": "cpu", "torch_version": "2.14.1"}))
    weight = torch.zeros(20)
    weights = {"encoder.weight": weight, "decoder.encoder.weight": weight, "decoder.bias": torch.ones(10)}
    torch.save({"network_weights": weights, "trainer_name": "nnUNetTrainer"}, folder / "checkpoint_final.pth")


def lines_of(file: Path) -> list[dict[str, str]]:
    """A Markdown table as dictionaries."""
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in file.read_text().splitlines()[2:]]
    return [dict(zip(rows[0], row, strict=True)) for row in rows[2:]]
