"""The comparison of trainers on one fold, as steps of stock nnU-Net commands."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from nnunetv2_sam3d.experiment.models import CONFIGURATION, Model
from nnunetv2_sam3d.experiment.steps import Step, program
from nnunetv2_sam3d.nnunet.folders import dataset_folder
from nnunetv2_sam3d.nnunet.layout import PLANS_NAME
from nnunetv2_sam3d.planning.plans import derive_plans, window_patch
from nnunetv2_sam3d.settings import Settings
from nnunetv2_sam3d.trainers.names import BASE_PLANS, plans_of


@dataclass(frozen=True)
class Comparison:
    """What is compared.

    Attributes:
        dataset: data set number.
        trainers: class names, in the order in which they are trained.
        fold: fold of nnU-Net's split.
        settings: of the SAM3D trainers.
        device: ``cpu``, ``cuda`` or ``mps``.
        patch_size: voxels; chosen from nnU-Net's plan by default.
        batch_size: nnU-Net's by default, fewer where the tokens would be many.
        spacing_mm: nnU-Net's by default.
        plans: name of the derived plans.
        processes: worker processes of nnU-Net's preprocessing and export.
        test_time_mirroring: whether the unseen cases are predicted with mirroring.
    """

    dataset: int
    trainers: tuple[str, ...]
    fold: int
    settings: Settings
    device: str
    patch_size: tuple[int, ...] | None = None
    batch_size: int | None = None
    spacing_mm: tuple[float, ...] | None = None
    plans: str = PLANS_NAME
    processes: int = 2
    test_time_mirroring: bool = True

    @property
    def name(self) -> str:
        """The data set's name."""
        return dataset_folder(self.dataset).name

    @property
    def raw(self) -> Path:
        """The raw data set."""
        return Path(os.environ["nnUNet_raw"]) / self.name

    @property
    def folder(self) -> Path:
        """Where logs, pictures and tables of the comparison go."""
        return Path(os.environ["nnUNet_results"]) / self.name / f"comparison__{self.plans}__fold_{self.fold}"

    def model(self, trainer: str) -> Model:
        """A trainer with its plans."""
        return Model(self.name, trainer, plans_of(trainer, self.plans))

    def fold_folder(self, trainer: str) -> Path:
        """nnU-Net's folder of a trainer's fold."""
        return self.model(trainer).fold_folder(self.fold)

    def test_folder(self, trainer: str) -> Path:
        """Predictions of the unseen cases."""
        return self.folder / "imagesTs_predicted" / trainer

    def preprocessed(self, data_identifier: str) -> tuple[Path, ...]:
        """What preprocessing leaves last for each case, so that a broken-off run is noticed."""
        folder, ending = dataset_folder(self.dataset), json_file_ending(self.raw)
        cases = sorted(path.name[: -len(ending)] for path in (self.raw / "labelsTr").glob(f"*{ending}"))
        return tuple(folder / data_identifier / f"{case}.pkl" for case in cases)

    def prepare(self) -> Step:
        """Planning by nnU-Net, and preprocessing where its own spacing is kept (or a stock trainer needs it)."""
        plans = dataset_folder(self.dataset) / f"{BASE_PLANS}.json"
        workers = str(self.processes)
        options = ("-d", str(self.dataset), "-c", CONFIGURATION, "-npfp", workers, "--verify_dataset_integrity")
        command = (program("nnUNetv2_plan_and_preprocess"), *options)
        if self.spacing_mm is not None and all(self.model(trainer).plans == self.plans for trainer in self.trainers):
            return Step("plan", (*command, "--no_pp"), (plans,), self.folder)
        results = (plans, *self.preprocessed(f"{BASE_PLANS}_{CONFIGURATION}"))
        return Step("plan and preprocess", (*command, "-np", workers), results, self.folder)

    def derive(self) -> Step | None:
        """Writes the SAM3D plans; returns the preprocessing that another spacing needs."""
        patch, batch = self.patch_size, self.batch_size
        if patch is None:
            patch, limit = window_patch(self.dataset, BASE_PLANS, CONFIGURATION, self.settings)
            batch = limit if batch is None else batch
        file = dataset_folder(self.dataset) / f"{self.plans}.json"
        earlier = file.read_text() if file.is_file() else None
        plan = derive_plans(
            self.dataset,
            base=BASE_PLANS,
            name=self.plans,
            configuration=CONFIGURATION,
            settings=self.settings,
            patch_size=patch,
            spacing_mm=self.spacing_mm,
            batch_size=batch,
        )
        trained = [
            trainer
            for trainer in self.trainers
            if self.model(trainer).plans == self.plans and self.fold_folder(trainer).is_dir()
        ]
        if earlier is not None and trained and json.loads(earlier) != json.loads(file.read_text()):
            file.write_text(earlier)
            raise ValueError(
                f"{trained[0]} was trained with {file} as it is, and these options would change it. Repeat the options "
                f"of the first run, give the new plans another name (-o NAME), or delete "
                f"{self.model(trained[0]).folder}."
            )
        if plan.data_identifier == f"{BASE_PLANS}_{CONFIGURATION}":
            return None
        command = ("-d", str(self.dataset), "-plans_name", self.plans, "-c", CONFIGURATION, "-np", str(self.processes))
        return Step(
            "preprocess for the new spacing",
            (program("nnUNetv2_preprocess"), *command),
            self.preprocessed(plan.data_identifier),
            self.folder,
        )

    def training(self, trainer: str) -> Step:
        """Training and validation of one trainer."""
        untold = trainer.endswith(("Eval", "TimeBudget"))
        return self.model(trainer).training(self.fold, folder=self.folder, epochs=0 if untold else self.settings.epochs)

    def prediction(self, trainer: str) -> list[Step]:
        """Prediction and evaluation of the cases in ``imagesTs``, if the data set has such with labels."""
        images, labels, out = self.raw / "imagesTs", self.raw / "labelsTs", self.test_folder(trainer)
        if not images.is_dir() or not any(images.iterdir()):
            return []
        ending = json_file_ending(self.raw)
        cases = sorted({path.name[: -len(ending) - 5] for path in images.glob(f"*{ending}")})
        mirroring = () if self.test_time_mirroring else ("--disable_tta",)
        steps = [
            Step(
                f"predict unseen cases with {trainer}",
                (
                    program("nnUNetv2_predict"),
                    "-i",
                    str(images),
                    "-o",
                    str(out),
                    "-d",
                    str(self.dataset),
                    "-c",
                    CONFIGURATION,
                    *self.model(trainer).options,
                    "-f",
                    str(self.fold),
                    "-npp",
                    str(self.processes),
                    "-nps",
                    str(self.processes),
                    "--continue_prediction",
                    *mirroring,
                ),
                tuple(out / f"{case}{ending}" for case in cases),
                self.folder,
                on_device=True,
            )
        ]
        if labels.is_dir() and any(labels.iterdir()):
            steps.append(
                Step(
                    f"evaluate {trainer} on unseen cases",
                    (
                        program("nnUNetv2_evaluate_folder"),
                        str(labels),
                        str(out),
                        "-djfile",
                        str(out / "dataset.json"),
                        "-pfile",
                        str(out / "plans.json"),
                        "-np",
                        str(self.processes),
                    ),
                    (out / "summary.json",),
                    self.folder,
                )
            )
        return steps


def json_file_ending(raw: Path) -> str:
    """``file_ending`` of a raw data set."""
    return json.loads((raw / "dataset.json").read_text())["file_ending"]
