"""nnU-Net's training of one trainer on one fold: where its results are, its command, what it starts from."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2_sam3d.experiment.steps import Step, program
from nnunetv2_sam3d.nnunet.layout import (
    CHECKPOINTS,
    FINAL,
    ModelName,
    fold_folder,
    repeat_of,
    training_title,
    validation_summary,
)
from nnunetv2_sam3d.nnunet.validation import is_validated

CONFIGURATION = "3d_fullres"


@dataclass(frozen=True)
class Model:
    """A trainer with plans, whose folds stand in one folder.

    Attributes:
        dataset: the data set's name.
        trainer: class name.
        plans: name of the plans.
        configuration: in them.
    """

    dataset: str
    trainer: str
    plans: str
    configuration: str = CONFIGURATION

    @property
    def folder(self) -> Path:
        """nnU-Net's folder of the model."""
        return Path(os.environ["nnUNet_results"]) / self.dataset / str(self)

    @property
    def repeat(self) -> int:
        """Which repeat the plans are for, from 1."""
        return repeat_of(self.plans)[1]

    @property
    def options(self) -> tuple[str, ...]:
        """How nnU-Net's commands are told."""
        return ("-tr", self.trainer, "-p", self.plans)

    def fold_folder(self, fold: int) -> Path:
        """nnU-Net's folder of a fold."""
        return fold_folder(self.folder, fold)

    def summary(self, fold: int) -> Path:
        """What the validation of a fold leaves last."""
        return validation_summary(self.fold_folder(fold))

    def trained(self, fold: int) -> bool:
        """Whether another trainer can start from a fold, which needs no validation."""
        return (self.fold_folder(fold) / FINAL).is_file()

    def training(self, fold: int, *more: str, **step: Any) -> Step:
        """Training and validation of a fold.

        Args:
            fold: of nnU-Net's split.
            more: arguments of the command.
            step: further fields of the step.
        """
        folder = self.fold_folder(fold)
        return Step(
            title=training_title(self.trainer),
            command=(program("nnUNetv2_train"), self.dataset, self.configuration, str(fold), *self.options, *more),
            results=(folder / FINAL, self.summary(fold)),
            inputs=(folder / FINAL,),
            unchanged=lambda: is_validated(folder),
            checkpoints=tuple(folder / name for name in CHECKPOINTS),
            on_device=True,
            **step,
        )

    def __str__(self) -> str:
        return str(ModelName(self.trainer, self.plans, self.configuration))
