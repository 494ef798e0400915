"""The comparison of trainers on one fold: a cross-validation of one fold between planning and predicting new cases."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunetv2_sam3d.experiment.crossval import CrossValidation
from nnunetv2_sam3d.experiment.models import CONFIGURATION, Model
from nnunetv2_sam3d.experiment.steps import Step, is_whole, program
from nnunetv2_sam3d.files import write_text
from nnunetv2_sam3d.nnunet.descriptions import read_dataset
from nnunetv2_sam3d.nnunet.folders import dataset_folder
from nnunetv2_sam3d.nnunet.layout import PLANS_NAME
from nnunetv2_sam3d.planning.plans import derive_plans, window_patch
from nnunetv2_sam3d.settings import Settings
from nnunetv2_sam3d.trainers.names import BASE_PLANS, plans_of, recipe_of

CASES_A_WORKER = 8  # fewer are faster done than another process is started
SMALL_BYTES = 64 << 20  # of all images of a prediction together; below, no process of its own is worth its start


@dataclass(frozen=True)
class Comparison:
    """What is compared.

    Attributes:
        dataset: data set number.
        trainers: class names, in the order in which they are trained.
        fold: fold of nnU-Net's split.
        settings: of the SAM3D trainers.
        patch_size: voxels; chosen from nnU-Net's plan by default.
        batch_size: nnU-Net's by default, fewer where the tokens would be many.
        spacing_mm: nnU-Net's by default.
        plans: name of the derived plans.
        processes: worker processes of nnU-Net's preprocessing and export.
        test_time_mirroring: whether the unseen cases are predicted with mirroring.
        verify: whether nnU-Net checks the raw data set before it plans.
    """

    dataset: int
    trainers: tuple[str, ...]
    fold: int
    settings: Settings
    patch_size: tuple[int, ...] | None = None
    batch_size: int | None = None
    spacing_mm: tuple[float, ...] | None = None
    plans: str = PLANS_NAME
    processes: int = 2
    test_time_mirroring: bool = True
    verify: bool = True

    @property
    def name(self) -> str:
        """The data set's name."""
        return dataset_folder(self.dataset).name

    @property
    def raw(self) -> Path:
        """The raw data set."""
        return Path(os.environ["nnUNet_raw"]) / self.name

    @property
    def ending(self) -> str:
        """``file_ending`` of the raw data set."""
        remedy = "Copy it from where the data set came from"
        return str(read_dataset(self.raw / "dataset.json", remedy, channels=False)["file_ending"])

    @property
    def folder(self) -> Path:
        """Where the report of the comparison goes, and the predictions of unseen cases."""
        return Path(os.environ["nnUNet_results"]) / self.name / f"comparison__{self.plans}__fold_{self.fold}"

    @property
    def training_logs(self) -> Path:
        """Where the trainings leave their logs."""
        run = self.crossval(self.trainers[:1], 1)
        return run.folder(run.models[0], f"fold_{self.fold}") / "logs"

    def model(self, trainer: str) -> Model:
        """A trainer with its plans."""
        return Model(self.name, trainer, plans_of(trainer, self.plans))

    def crossval(self, trainers: Sequence[str], all_folds: int) -> CrossValidation:
        """Training and validation of trainers on the one fold."""
        models = tuple(self.model(trainer) for trainer in trainers)
        return CrossValidation(models, (self.fold,), all_folds, accumulate=False)

    def predicting(self, trainer: str) -> str:
        """The trainer whose predictions are those of another one: an evaluating trainer's are its start's."""
        recipe = recipe_of(trainer)
        starts = recipe.starts_from if recipe and not recipe.groups else ()
        return next((start for start in starts if start in self.trainers), trainer)

    def predicted(self, trainer: str) -> Path:
        """Predictions of the unseen cases."""
        return self.folder / "imagesTs_predicted" / self.predicting(trainer)

    def annotated(self) -> list[str]:
        """Cases of ``labelsTr``."""
        return sorted(path.name[: -len(self.ending)] for path in _files(self.raw / "labelsTr", self.ending))

    def unseen(self) -> list[str]:
        """Cases of ``imagesTs``."""
        images = _files(self.raw / "imagesTs", self.ending)
        return sorted({path.name[: -len(f"_0000{self.ending}")] for path in images})

    def prepare(self) -> Step:
        """Planning by nnU-Net, and preprocessing where its own spacing is kept (or a stock trainer needs it)."""
        plans = dataset_folder(self.dataset) / f"{BASE_PLANS}.json"
        workers = str(self.processes)
        options = ("-d", str(self.dataset), "-c", CONFIGURATION, "-npfp", workers)
        checked = ("--verify_dataset_integrity",) if self.verify else ()
        command = (program("nnUNetv2_plan_and_preprocess"), *options, *checked)
        if self.spacing_mm is not None and all(self.model(trainer).plans == self.plans for trainer in self.trainers):
            return Step("plan", (*command, "--no_pp"), (plans,), self.folder)
        results = (plans, *self._preprocessed(f"{BASE_PLANS}_{CONFIGURATION}"))
        return Step("plan and preprocess", (*command, "-np", workers), results, self.folder)

    def derive(self) -> Step | None:
        """Writes the SAM3D plans; returns the preprocessing that another spacing needs.

        Raises:
            ValueError: if models are there that were trained with other plans of this name.
        """
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
        models = [self.model(trainer) for trainer in self.trainers]
        trained = [model for model in models if model.plans == self.plans and model.fold_folder(self.fold).is_dir()]
        if earlier is not None and trained and json.loads(earlier) != json.loads(file.read_text()):
            write_text(file, earlier)
            raise ValueError(
                f"{trained[0].trainer} was trained with {file} as it is, and these options would change it. Repeat the "
                f"options of the first run, give the new plans another name (-o NAME), or delete {trained[0].folder}."
            )
        if plan.data_identifier == f"{BASE_PLANS}_{CONFIGURATION}":
            return None
        command = ("-d", str(self.dataset), "-plans_name", self.plans, "-c", CONFIGURATION, "-np", str(self.processes))
        return Step(
            "preprocess for the new spacing",
            (program("nnUNetv2_preprocess"), *command),
            self._preprocessed(plan.data_identifier),
            self.folder,
        )

    def prediction(self, trainer: str, training: Step) -> Step:
        """Prediction of the cases in ``imagesTs`` by nnU-Net's command.

        Args:
            trainer: class name.
            training: after which it is run, and again where the predictions are older.
        """
        out, cases = self.predicted(trainer), self.unseen()
        results = tuple(out / f"{case}{self.ending}" for case in cases)
        images = sum(path.stat().st_size for path in _files(self.raw / "imagesTs", self.ending))
        workers = str(0 if images < SMALL_BYTES else max(1, min(self.processes, len(cases) // CASES_A_WORKER)))
        checkpoint = training.results[0]
        there = [result for result in results if result.exists()]
        newest = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        current = newest > 0 and all(result.stat().st_mtime_ns >= newest and is_whole(result) for result in there)
        return Step(
            title=f"predict unseen cases with {trainer}",
            command=(
                *(program("nnUNetv2_predict"), "-i", str(self.raw / "imagesTs"), "-o", str(out)),
                *("-d", str(self.dataset), "-c", CONFIGURATION, *self.model(trainer).options, "-f", str(self.fold)),
                *("-npp", workers, "-nps", workers),
                *(("--continue_prediction",) if current or not there else ()),  # keeps files, whatever made them
                *(() if self.test_time_mirroring else ("--disable_tta",)),
            ),
            results=results,
            folder=self.folder,
            after=(training,),
            inputs=(checkpoint,),
            on_device=True,
        )

    def _preprocessed(self, data_identifier: str) -> tuple[Path, ...]:
        """What preprocessing leaves last for each case, so that a broken-off run is noticed."""
        return tuple(dataset_folder(self.dataset) / data_identifier / f"{case}.pkl" for case in self.annotated())


def _files(folder: Path, ending: str) -> list[Path]:
    return sorted(path for path in folder.glob(f"*{ending}") if not path.name.startswith("."))
