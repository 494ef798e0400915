"""A trained fold on disk: its checkpoint, its validation cases, their preprocessed data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_results
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor

from nnunetv2_sam3d.messages import some
from nnunetv2_sam3d.nnunet.descriptions import MODEL_PLANS, PLANS, configuration_of, read_dataset, read_plans
from nnunetv2_sam3d.nnunet.folders import model_folders
from nnunetv2_sam3d.nnunet.layout import FINAL, ModelName, dataset_number, fold_folder
from nnunetv2_sam3d.nnunet.preprocessed import read_case
from nnunetv2_sam3d.nnunet.splits import read_folds


@dataclass(frozen=True)
class Volume:
    """A preprocessed case.

    Attributes:
        case: its name.
        image: (C, D, H, W), an array or anything that is sliced like one (nnU-Net's compressed files are).
        segmentation: ground truth (D, H, W); negative where nnU-Net has seen nothing but zeros in the image.
        spacing_mm: of the voxels, along D, H, W.
        properties: nnU-Net's notes on the original image, which lead back to its grid.
    """

    case: str
    image: Any
    segmentation: np.ndarray
    spacing_mm: Sequence[float]
    properties: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainedFold:
    """One fold of a model folder, ``TRAINER__PLANS__CONFIGURATION/fold_N``.

    Attributes:
        model: the model folder.
        fold: number, or ``"all"`` for nnU-Net's fold that trains with every case.
        checkpoint_name: file in the fold's folder.

    Raises:
        ValueError: if the folder is no such folder, or lacks what is needed, naming it.
    """

    model: Path
    fold: int | str
    checkpoint_name: str = FINAL

    def __post_init__(self) -> None:
        if len(self.model.name.split("__")) != 3 or not (self.model / "plans.json").is_file():
            raise ValueError(
                f"{self.model} is no folder of a trained model: expected one called TRAINER__PLANS__CONFIGURATION, in "
                f"nnUNet_results/DATASET, with plans.json in it"
            )
        if not self.checkpoint.is_file():
            if there := sorted(path.name for path in self.folder.glob("*.pth")):
                raise ValueError(f"{self.checkpoint} does not exist. Checkpoints of that fold: {', '.join(there)}.")
            have = sorted(path.parent.name for path in self.model.glob(f"fold_*/{self.checkpoint_name}"))
            raise ValueError(
                f"{self.checkpoint} does not exist: fold {self.fold} is not trained to its end. "
                f"{'Folds with that file: ' + ', '.join(have) if have else 'No other fold has one either'}."
            )

    @property
    def folder(self) -> Path:
        return fold_folder(self.model, self.fold)

    @property
    def checkpoint(self) -> Path:
        return self.folder / self.checkpoint_name

    @property
    def dataset_json(self) -> dict[str, Any]:
        return read_dataset(
            self.model / "dataset.json", "Copy it from nnUNet_preprocessed, or from another copy of the model"
        )

    @property
    def plans_file(self) -> Path:
        return self.model / MODEL_PLANS

    @property
    def plans(self) -> PlansManager:
        return PlansManager(read_plans(self.plans_file, needed=PLANS))

    @property
    def configuration(self) -> ConfigurationManager:
        name = ModelName.of(self.model).configuration
        return configuration_of(self.plans_file, read_plans(self.plans_file), name, for_prediction=True)

    @property
    def labels(self) -> LabelManager:
        return self.plans.get_label_manager(self.dataset_json)

    @property
    def preprocessed(self) -> Path:
        return Path(str(nnUNet_preprocessed.require())) / self.plans.dataset_name

    def validation_cases(self) -> list[str]:
        """Names of the fold's validation cases, from ``splits_final.json``."""
        file = self.preprocessed / "splits_final.json"
        if not file.is_file():
            raise ValueError(f"{file} does not exist; without it, nobody knows the validation cases of a fold")
        splits = read_folds(file)
        if not isinstance(self.fold, int) or not self.fold < len(splits):
            raise ValueError(f"{file} has {len(splits)} folds, and fold {self.fold} is none of them")
        return sorted(splits[self.fold]["val"])

    def volumes(self, cases: list[str]) -> Iterator[Volume]:
        """The preprocessed data of cases, one after the other.

        Raises:
            ValueError: if there are none, with the command that makes them.
        """
        folder = self.preprocessed / self.configuration.data_identifier
        absent = [case for case in cases if not (folder / f"{case}.pkl").is_file()]
        if absent:
            number, name = dataset_number(self.plans.dataset_name), ModelName.of(self.model)
            raise ValueError(
                f"{folder} has no preprocessed data of {len(absent)} cases: {some(absent)}. Make them: "
                f"nnUNetv2_preprocess -d {number} -plans_name {name.plans} -c {name.configuration}"
            )
        for case in cases:
            image, segmentation, properties = read_case(folder, case, wholly=True)
            yield Volume(case, image, np.asarray(segmentation[0]), list(self.configuration.spacing), properties)

    def annotation_file(self, case: str) -> Path:
        """The annotation that nnU-Net's validation compares a case with.

        Raises:
            ValueError: if the file is not there, with the command that makes it.
        """
        file = self.preprocessed / "gt_segmentations" / f"{case}{self.dataset_json['file_ending']}"
        if not file.is_file():
            number = dataset_number(self.plans.dataset_name)
            raise ValueError(f"{file} does not exist. Preprocess the data again: nnUNetv2_preprocess -d {number}")
        return file

    def original_segmentation(self, logits: Tensor, properties: Mapping[str, Any]) -> np.ndarray:
        """Logits (classes, D, H, W) as nnU-Net exports them: labels (z, y, x) on the grid of the original image."""
        return convert_predicted_logits_to_segmentation_with_correct_shape(
            logits,
            self.plans,
            self.configuration,
            self.labels,
            dict(properties),
            num_threads_torch=torch.get_num_threads(),
        )


def find_model(model: Path | None, dataset: str | None, trainer: str, plans: str, configuration: str) -> Path:
    """The model folder: as given, or by the names that nnU-Net makes it of.

    Raises:
        ValueError: if neither or both are given, or the data set has no model of these names, with those that it has.
    """
    if (model is None) == (dataset is None):
        raise ValueError("give either the folder of a trained model or a data set (-d, with -tr, -p and -c)")
    if model is not None:
        if not model.is_dir():
            raise ValueError(
                f"{model} does not exist; expected nnU-Net's folder of a model, TRAINER__PLANS__CONFIGURATION"
            )
        return model.absolute()
    name = maybe_convert_to_dataset_name(int(str(dataset)) if str(dataset).isdigit() else str(dataset))
    folder = Path(str(nnUNet_results.require())) / name / f"{trainer}__{plans}__{configuration}"
    if not folder.is_dir():
        there = model_folders(folder.parent)
        advice = (
            f"Choose a model of that data set with -tr, -p and -c (TRAINER__PLANS__CONFIGURATION): {', '.join(there)}"
            if there
            else f"{name} has no trained model: nnUNetv2_train {name} {configuration} FOLD -tr {trainer} -p {plans}"
        )
        raise ValueError(f"{folder} does not exist. {advice}")
    return folder


def trained_folds(model: Path, checkpoint_name: str) -> list[int]:
    """Numbers of the folds that have a checkpoint of that name."""
    numbers = (path.parent.name.removeprefix("fold_") for path in model.glob(f"fold_*/{checkpoint_name}"))
    return sorted(int(number) for number in numbers if number.isdigit())
