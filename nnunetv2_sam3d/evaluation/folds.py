"""Which predictions there are: nnU-Net's result folders, checked for completeness before anything is measured."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2_sam3d.experiment.training import check_trainers
from nnunetv2_sam3d.planning import PLANS_NAME
from nnunetv2_sam3d.splits import read_folds


@dataclass(frozen=True)
class Model:
    """A trainer's results with one configuration.

    Attributes:
        name: what tables call it.
        trainer: class name.
        folder: nnU-Net's ``TRAINER__PLANS__CONFIGURATION``.
    """

    name: str
    trainer: str
    folder: Path

    @property
    def plans(self) -> str:
        """Name of its plans."""
        return self.folder.name.split("__")[1]


@dataclass(frozen=True)
class Item:
    """One automatic prediction and its reference.

    Attributes:
        model: name of the model.
        fold: whose validation case it is.
        case: nnU-Net's identifier.
        prediction: file.
        reference: file.
    """

    model: str
    fold: int
    case: str
    prediction: Path
    reference: Path


@dataclass(frozen=True)
class Dataset:
    """The files of a data set that a report needs.

    Attributes:
        name: ``Dataset220_KiTS``.
        folder: in ``nnUNet_preprocessed``.
        raw: in ``nnUNet_raw``; may be absent.
        results: in ``nnUNet_results``.
        json: content of ``dataset.json``.
        splits: content of ``splits_final.json``.
    """

    name: str
    folder: Path
    raw: Path
    results: Path
    json: dict[str, Any]
    splits: list[dict[str, list[str]]]

    @property
    def ending(self) -> str:
        """Ending of all image files."""
        return str(self.json["file_ending"])

    def reference(self, case: str) -> Path:
        """The annotation that nnU-Net's own validation reads."""
        return self.folder / "gt_segmentations" / f"{case}{self.ending}"


def open_dataset(folder: Path) -> Dataset:
    """Reads what the report needs of ``nnUNet_preprocessed/DATASET``.

    Raises:
        FileNotFoundError: naming the file and the command that makes it.
        ValueError: for a damaged file.
    """
    remedies = {
        "dataset.json": f"nnUNetv2_plan_and_preprocess -d {folder.name}",
        "splits_final.json": "nnUNetv2_train, which writes it when the first training of the data set starts",
    }
    for name, remedy in remedies.items():
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} does not exist; it is made by {remedy}")
    description = read_table(folder / "dataset.json", "Copy it from the raw data set")
    if lacking := [key for key in ("labels", "channel_names", "file_ending") if key not in description]:
        raise ValueError(f"{folder / 'dataset.json'} has no {lacking[0]!r}; copy it from the raw data set")
    return Dataset(
        folder.name,
        folder,
        Path(os.environ.get("nnUNet_raw", "")) / folder.name,
        Path(os.environ["nnUNet_results"]) / folder.name,
        description,
        read_folds(folder / "splits_final.json"),
    )


def read_json(file: Path) -> Any:
    """Content of a JSON file; ValueError that names a damaged one."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from error


def read_table(file: Path, remedy: str) -> dict[str, Any]:
    """Content of a JSON file that holds a table; ValueError with the remedy for a damaged one."""
    try:
        table = read_json(file)
    except ValueError as error:
        raise ValueError(f"{error}. {remedy}") from error
    if not isinstance(table, dict):
        raise ValueError(f"{file} is damaged: it holds no table. {remedy}")
    return table


def find_models(
    dataset: Dataset, trainers: Sequence[str], plans: str, configuration: str, names: Mapping[str, str]
) -> tuple[Model, ...]:
    """The result folders of the trainers.

    Args:
        dataset: where to look.
        trainers: short names, class names, or ``TRAINER__PLANS`` for a trainer with several plans.
        plans: preferred plans; a trainer that has only others is taken with them.
        configuration: such as ``3d_fullres``.
        names: short names and the classes they stand for.

    Raises:
        FileNotFoundError: for a trainer without results.
        ValueError: for trainers that nnU-Net does not know and that have no results, plans that do not exist, a trainer
            that is named twice or has results with several other plans.
    """
    there = model_folders(dataset.results)
    of_results = {folder.split("__")[1] for folder in there}
    if plans != PLANS_NAME and plans not in of_results and not (dataset.folder / f"{plans}.json").is_file():
        raise ValueError(
            f"-p {plans}: {dataset.name} has no plans of this name; there are results with "
            f"{', '.join(sorted(of_results)) or 'none'}. Choose one of them, or leave -p out"
        )
    without = [given.partition("__")[0] for given in trainers]
    without = [name for name in without if not any(dataset.results.glob(f"{names.get(name, name)}__*"))]
    if without:
        check_trainers(without)
    shorts = {full: short for short, full in names.items()}
    models: list[Model] = []
    for given in trainers:
        short, _, wanted = given.partition("__")
        trainer = names.get(short, short)
        found = sorted(path for path in dataset.results.glob(f"{trainer}__*__{configuration}") if path.is_dir())
        exact = [path for path in found if path.name.split("__")[1] == (wanted or plans)]
        chosen = exact or ([] if wanted else found)
        if not chosen:
            raise FileNotFoundError(
                f"{dataset.results / f'{trainer}__{wanted or plans}__{configuration}'} does not exist. Train it first, "
                f"or name one of the results that there are: {', '.join(there) or 'none'}"
            )
        if len(chosen) > 1:
            raise ValueError(
                f"{trainer} has results with several plans: {', '.join(path.name for path in chosen)}. Say which with "
                f"-p, or write {given}__PLANS"
            )
        name = shorts.get(trainer, trainer)
        models.append(Model(f"{name} ({wanted})" if wanted else name, trainer, chosen[0]))
    doubles = [name for name, count in Counter(model.folder.name for model in models).items() if count > 1]
    if doubles:
        raise ValueError(f"{doubles[0]} is named twice in --trainers")
    return tuple(models)


def model_folders(results: Path) -> list[str]:
    """Names of the models of a data set, ``TRAINER__PLANS__CONFIGURATION``; logs of runs lie beside them."""
    return sorted(file.parent.name for file in results.glob("*__*__*/plans.json"))


def check_splits(dataset: Dataset, folds: Sequence[int] | None) -> tuple[int, ...]:
    """The folds to report, after a check that no case is validated twice, and none never if all folds are asked for.

    Raises:
        ValueError: naming folds and cases.
    """
    file = dataset.folder / "splits_final.json"
    chosen = tuple(range(len(dataset.splits))) if folds is None else tuple(sorted(set(folds)))
    absent = [fold for fold in chosen if not 0 <= fold < len(dataset.splits)]
    if absent or not chosen:
        raise ValueError(f"{file} has the folds 0 to {len(dataset.splits) - 1}, not {absent}")
    counts = Counter(case for fold in chosen for case in dataset.splits[fold]["val"])
    double = sorted(case for case, count in counts.items() if count > 1)
    if double:
        raise ValueError(
            f"{file}: {_some(double)} would count more than once over the folds {list(chosen)}, so that pooled figures "
            f"would be wrong. Report folds that do not overlap: --folds {chosen[0]}"
        )
    everything = {case for split in dataset.splits for part in ("train", "val") for case in split.get(part, [])}
    missing = sorted(everything - set(counts))
    if folds is None and missing:
        raise ValueError(
            f"{file}: {_some(missing)} in no fold's validation set, so that the folds do not cover the data set. "
            f"Say which folds to report, the report will then state that they are not all: --folds "
            f"{' '.join(map(str, chosen))}"
        )
    return chosen


def collect(dataset: Dataset, models: Sequence[Model], folds: Sequence[int]) -> list[Item]:
    """Every validation case of every model and fold, exactly once.

    Raises:
        FileNotFoundError: for missing predictions or annotations, all of them in one message.
        ValueError: for predictions that the split does not have.
    """
    items, problems = [], []
    for model in models:
        for fold in folds:
            folder = model.folder / f"fold_{fold}" / "validation"
            cases = sorted(dataset.splits[fold]["val"])
            present = {path.name[: -len(dataset.ending)] for path in folder.glob(f"*{dataset.ending}")}
            if missing := sorted(set(cases) - present):
                trained = (folder.parent / "checkpoint_final.pth").is_file()
                problems.append(f"{folder} lacks {_some(missing)}{'' if trained else ', its fold is not trained'}")
            if foreign := sorted(present - set(cases)):
                raise ValueError(
                    f"{folder} holds {_some(foreign)} not in fold {fold} of {dataset.folder / 'splits_final.json'}: "
                    f"the split was changed after this training, or the folder holds other predictions. Validate the "
                    f"fold again (nnUNetv2_train ... --val) in an empty folder"
                )
            items += [
                Item(model.name, fold, case, folder / f"{case}{dataset.ending}", dataset.reference(case))
                for case in cases
            ]
    if problems:
        raise FileNotFoundError(
            "predictions are missing: " + "; ".join(problems) + ". Finish the training or validation "
            "(nnUNetv2_sam3d crossval does what is missing; nnUNetv2_train ... --val validates a trained fold), "
            "or report the finished folds only (--folds)"
        )
    without = sorted({item.reference.name for item in items if not item.reference.is_file()})
    if without:
        raise FileNotFoundError(
            f"{dataset.folder / 'gt_segmentations'} lacks {_some(without)}; preprocess the data set again: "
            f"nnUNetv2_preprocess -d {dataset.name}"
        )
    return items


def _some(names: Sequence[str], limit: int = 5) -> str:
    """``a, b and 3 more (5 cases)`` for messages."""
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
