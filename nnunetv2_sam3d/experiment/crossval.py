"""Several trainers over the folds of a data set: which steps there are, in which order, and what they need."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nnunetv2_sam3d.experiment.models import Model
from nnunetv2_sam3d.experiment.steps import Step, is_whole, program
from nnunetv2_sam3d.json_files import entries, is_table, is_text, list_of, read_json
from nnunetv2_sam3d.nnunet.descriptions import configuration_of, read_plans
from nnunetv2_sam3d.nnunet.folders import dataset_folder
from nnunetv2_sam3d.nnunet.layout import repeat_plans
from nnunetv2_sam3d.settings import Settings
from nnunetv2_sam3d.trainers.names import check_trainers, full_name, plans_of, trainer_class

STOCK_EPOCHS = 1000  # of nnUNetTrainer


def parse_models(dataset: str, names: Sequence[str], plans: str, configuration: str) -> tuple[Model, ...]:
    """Models by the names that users give: ``DualPath``, a class name, or ``TRAINER__PLANS``.

    Raises:
        ValueError: for trainers that nnU-Net does not know, or a model that is named twice.
    """
    check_trainers([name.partition("__")[0] for name in names])
    models = []
    for name in names:
        trainer, _, own_plans = name.partition("__")
        trainer = full_name(trainer)
        models.append(Model(dataset, trainer, own_plans or plans_of(trainer, plans), configuration))
    if len(set(models)) != len(models):
        raise ValueError(f"a trainer is named twice in {list(names)}")
    return tuple(models)


def with_repeats(models: Sequence[Model], repeats: int) -> tuple[Model, ...]:
    """The models, then those of repeats 2, 3, ...; nnU-Net's own trainers have none, since nothing seeds them.

    Raises:
        ValueError: for fewer than one repeat, or models that are repeats already.
    """
    if repeats < 1:
        raise ValueError(f"every trainer is trained at least once, got --repeats {repeats}")
    more = [
        replace(model, plans=repeat_plans(model.plans, repeat))
        for repeat in range(2, repeats + 1)
        for model in models
        if is_sam3d(model)
    ]
    return (*models, *more)


@dataclass(frozen=True)
class CrossValidation:
    """Models and folds.

    Attributes:
        models: what is trained; a repeat of a model is one more.
        folds: of nnU-Net's split.
        all_folds: how many the split has; with all of them, a model's results are accumulated.
        pretrained: start of the SAM3D trainings that start from no other one of the run.
        npz: whether the validations keep their probabilities, for nnU-Net's ensembles.
        accumulate: whether the folds' validations are brought together in the end.
    """

    models: tuple[Model, ...]
    folds: tuple[int, ...]
    all_folds: int
    pretrained: Path | None = None
    npz: bool = False
    accumulate: bool = True
    _steps: dict[tuple[Model, int], Step] = field(default_factory=dict, compare=False, repr=False)

    @property
    def dataset(self) -> str:
        """The data set's name."""
        return self.models[0].dataset

    def folder(self, model: Model, what: str) -> Path:
        """Where logs and records of a model's fold (``fold_3``) or of all folds go, for each plans of their own."""
        return model.folder.parent / f"crossval__{model.plans}__{model.configuration}__{what}"

    def source(self, model: Model, fold: int) -> Model | None:
        """The model whose same fold a training starts from: the recipe's first that is there or in this run."""
        if not starts_from(model):
            return None
        for trainer in starts_from(model):
            other = Model(model.dataset, trainer, model.plans, model.configuration)
            if other in self.models or other.trained(fold):
                return other
        return None

    def depends_on(self, model: Model, fold: int) -> Model | None:
        """The model of this run whose fold has to be finished first."""
        source = self.source(model, fold)
        return source if source in self.models else None

    def takes_pretrained(self, model: Model, fold: int) -> bool:
        """Whether a training begins with the file of ``pretrained``."""
        return self.pretrained is not None and is_sam3d(model) and self.depends_on(model, fold) is None

    def training(self, model: Model, fold: int) -> Step:
        """A fold's training, after the one that it starts from."""
        if (model, fold) not in self._steps:
            before = self.depends_on(model, fold)
            start = ("-pretrained_weights", str(self.pretrained)) if self.takes_pretrained(model, fold) else ()
            self._steps[model, fold] = model.training(
                fold,
                *(("--npz",) if self.npz else ()),
                folder=self.folder(model, f"fold_{fold}"),
                group=f"{_repeat(model)}, fold {fold}" if model.repeat > 1 else f"fold {fold}",
                after=() if before is None else (self.training(before, fold),),
                start=start,
                epochs=epochs_of(model),
            )
        return self._steps[model, fold]

    def accumulation(self, model: Model) -> Step:
        """The validations of all folds in one folder with one summary, by nnU-Net's command."""
        folds = [str(fold) for fold in range(self.all_folds)]
        summary = model.folder / f"crossval_results_folds_{'_'.join(folds)}" / "summary.json"
        inputs = tuple(model.summary(fold) for fold in range(self.all_folds))
        return Step(
            title=f"accumulate {model.trainer}",
            command=(
                program("nnUNetv2_accumulate_crossval_results"),
                model.dataset,
                "-c",
                model.configuration,
                *model.options,
                "-f",
                *folds,
            ),
            results=(summary,),
            folder=self.folder(model, "all_folds"),
            group=_repeat(model),
            after=tuple(self.training(model, fold) for fold in self.folds),
            inputs=inputs,
            unchanged=lambda: _figures(summary) == _figures(*inputs) != [],
        )

    def steps(self) -> list[Step]:
        """All steps, repeat by repeat and fold by fold, each after those that it needs."""
        steps: list[Step] = []
        for repeat in sorted({model.repeat for model in self.models}):
            for fold in self.folds:
                ordered = [model for model in self.ordered_models(fold) if model.repeat == repeat]
                steps += [self.training(model, fold) for model in ordered]
        if self.accumulate:
            others = set(range(self.all_folds)) - set(self.folds)
            steps += [
                self.accumulation(model)
                for model in self.models
                if all(model.summary(fold).is_file() for fold in others)
            ]
        return steps

    def ordered_models(self, fold: int) -> list[Model]:
        """The models of a fold, those first that others start from."""

        def depth(model: Model) -> int:
            before = self.depends_on(model, fold)
            return 0 if before is None else 1 + depth(before)

        return sorted(self.models, key=depth)


def _repeat(model: Model) -> str:
    """The repeat for the display; of the first one nothing, as of a run without repeats."""
    return f"repeat {model.repeat}" if model.repeat > 1 else ""


def _figures(*summaries: Path) -> list[str]:
    """Cases and their metrics in summaries of nnU-Net's, as text, in which NaN equals NaN; nothing of damaged ones."""
    cases = [case for file in summaries for case in _cases(file)]
    return sorted(json.dumps([Path(case["prediction_file"]).name, case["metrics"]], sort_keys=True) for case in cases)


def _cases(summary: Path) -> list[dict[str, Any]]:
    found = read_json(summary).get("metric_per_case") if is_whole(summary) else []
    return found if list_of(entries(prediction_file=is_text, metrics=is_table))(found) else []


def is_sam3d(model: Model) -> bool:
    """Whether a model's trainer is one of this package's, or made from one."""
    return hasattr(trainer_class(model.trainer), "recipe")


def starts_from(model: Model) -> tuple[str, ...]:
    """Trainers that a model's trainer starts from, the first that exists."""
    return trainer_class(model.trainer).recipe.starts_from if is_sam3d(model) else ()  # type: ignore[attr-defined]


def settings_of(model: Model) -> Settings:
    """A model's settings, from its plans."""
    file = dataset_folder(model.dataset) / f"{model.plans}.json"
    return Settings.from_plans(configuration_of(file, read_plans(file), model.configuration).configuration, file)


def epochs_of(model: Model) -> int:
    """How many epochs a training will show; 0 if that is not known before."""
    if model.trainer == "nnUNetTrainer":
        return STOCK_EPOCHS
    if not is_sam3d(model) or not trainer_class(model.trainer).recipe.groups:  # type: ignore[attr-defined]
        return 0
    return settings_of(model).epochs_of(starts_from(model))
