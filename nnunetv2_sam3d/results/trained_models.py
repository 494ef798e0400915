"""The data set of a report and the models that are in it: nnU-Net's result folders, with their repeats."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2_sam3d.nnunet.descriptions import read_dataset, read_plans
from nnunetv2_sam3d.nnunet.folders import model_folders
from nnunetv2_sam3d.nnunet.layout import PLANS_NAME, ModelName, fold_folder, repeat_of
from nnunetv2_sam3d.nnunet.splits import read_folds

READER = "SimpleITKIO"


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


@dataclass(frozen=True)
class RepeatedModel:
    """A trainer's results with one configuration: one arm of a comparison, with all of its repeats.

    Attributes:
        name: what tables call it.
        trainer: class name.
        folder: nnU-Net's ``TRAINER__PLANS__CONFIGURATION`` of the first repeat.
        repeats: numbers of the repeats, ascending.
    """

    name: str
    trainer: str
    folder: Path
    repeats: tuple[int, ...] = (1,)

    @property
    def plans(self) -> str:
        """Name of the plans of the first repeat."""
        return ModelName.of(self.folder).plans

    def folder_of(self, repeat: int) -> Path:
        """nnU-Net's folder of a repeat."""
        return self.folder.with_name(str(ModelName.of(self.folder).of_repeat(repeat)))

    def fold_folder(self, fold: int, repeat: int) -> Path:
        """nnU-Net's folder of a fold of a repeat."""
        return fold_folder(self.folder_of(repeat), fold)


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
    description = read_dataset(folder / "dataset.json")
    return Dataset(
        folder.name,
        folder,
        Path(os.environ.get("nnUNet_raw", "")) / folder.name,
        Path(os.environ["nnUNet_results"]) / folder.name,
        description,
        read_folds(folder / "splits_final.json"),
    )


def find_models(
    dataset: Dataset,
    trainers: Sequence[str],
    plans: str,
    configuration: str,
    names: Mapping[str, str],
    check_names: Callable[[Sequence[str]], None] = lambda names: None,
) -> tuple[RepeatedModel, ...]:
    """The result folders of the trainers, each with those of its repeats.

    Results with the plans P_repeat2, P_repeat3, ... are repeats of those with P. Plans that are asked for by the name
    of a repeat stand for this repeat alone.

    Args:
        dataset: where to look.
        trainers: short names, class names, or ``TRAINER__PLANS`` for a trainer with several plans.
        plans: preferred plans; a trainer that has only others is taken with them.
        configuration: such as ``3d_fullres``.
        names: short names and the classes they stand for.
        check_names: raises ValueError for trainers without results that nnU-Net does not know.

    Raises:
        FileNotFoundError: for a trainer without results.
        ValueError: for trainers that nnU-Net does not know and that have no results, plans that do not exist, a trainer
            that is named twice or has results with several other plans, and repeats of plans that differ from the
            first repeat's.
    """
    there = model_folders(dataset.results)
    of_results = {ModelName.of(folder).plans for folder in there}
    if plans != PLANS_NAME and plans not in of_results and not (dataset.folder / f"{plans}.json").is_file():
        raise ValueError(
            f"-p {plans}: {dataset.name} has no plans of this name; there are results with "
            f"{', '.join(sorted(of_results)) or 'none'}. Choose one of them, or leave -p out"
        )
    without = [given.partition("__")[0] for given in trainers]
    without = [name for name in without if not any(dataset.results.glob(f"{names.get(name, name)}__*"))]
    if without:
        check_names(without)
    shorts = {full: short for short, full in names.items()}
    models: list[RepeatedModel] = []
    for given in trainers:
        short, _, wanted = given.partition("__")
        trainer = names.get(short, short)
        found = sorted(path for path in dataset.results.glob(f"{trainer}__*__{configuration}") if path.is_dir())
        exact = [path for path in found if ModelName.of(path).plans == (wanted or plans)]
        firsts = [path for path in found if ModelName.of(path).repeat == 1]
        chosen = exact or ([] if wanted else firsts)
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
        title = f"{name} ({wanted})" if wanted else name
        models.append(RepeatedModel(title, trainer, chosen[0], _repeats(chosen[0], found)))
    doubles = [name for name, count in Counter(model.folder.name for model in models).items() if count > 1]
    if doubles:
        raise ValueError(f"{doubles[0]} is named twice in --trainers")
    return tuple(models)


def _repeats(folder: Path, others: Sequence[Path]) -> tuple[int, ...]:
    """Numbers of the repeats of a model's folder among other folders of its trainer, after a check of their plans."""
    plans, number = repeat_of(ModelName.of(folder).plans)
    if number > 1:  # asked for by name
        return (number,)
    repeats = {1: folder}
    for other in others:
        repeated, number = repeat_of(ModelName.of(other).plans)
        if repeated == plans and number > 1:
            repeats[number] = other
    contents = {number: _plans_without_repeat(repeats[number] / "plans.json") for number in sorted(repeats)}
    for number, content in contents.items():
        if None not in (content, contents[1]) and content != contents[1]:
            raise ValueError(
                f"{repeats[number] / 'plans.json'} differs from {folder / 'plans.json'} in more than the repeat, so "
                f"that they are no repeats of one training. Delete or rename the folder of the older plans"
            )
    return tuple(contents)


def _plans_without_repeat(file: Path) -> dict[str, Any] | None:
    """What the plans of all repeats have in common; nothing where the file is absent."""
    if not file.is_file():
        return None
    plans = read_plans(file, needed=())
    plans.pop("plans_name", None)
    for configuration in plans.get("configurations", {}).values():
        configuration.get("sam3d", {}).pop("repeat", None)
    return plans


def declared_controls(models: Sequence[RepeatedModel], controls: Mapping[str, str]) -> dict[str, str]:
    """Which model each one is to be compared with.

    Args:
        models: of a report.
        controls: class names of trainers and of their declared controls.

    Returns:
        names of models by name, for those whose control is among the models with the same plans.
    """
    names = {(model.trainer, model.plans): model.name for model in models}
    wanted = {model.name: (controls.get(model.trainer, ""), model.plans) for model in models}
    return {name: names[control] for name, control in wanted.items() if control in names}


def reader_of(model: Path) -> str:
    """Name of the reader in the plans of a model's folder; nnU-Net's usual one where they do not say."""
    plans = _plans_without_repeat(model / "plans.json") or {}
    return str(plans.get("image_reader_writer", READER))
