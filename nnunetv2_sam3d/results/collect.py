"""Which predictions there are: nnU-Net's result folders, checked for completeness before anything is measured."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nnunetv2_sam3d.messages import some
from nnunetv2_sam3d.nnunet.descriptions import read_dataset, read_plans
from nnunetv2_sam3d.nnunet.folders import model_folders
from nnunetv2_sam3d.nnunet.layout import FINAL, PLANS_NAME, ModelName, fold_folder, repeat_of
from nnunetv2_sam3d.nnunet.splits import read_folds
from nnunetv2_sam3d.nnunet.validation import is_outdated, taken_over_from

UNSEEN = -1  # the fold of cases that are in none

READER = "SimpleITKIO"


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


@dataclass(frozen=True)
class Item:
    """One automatic prediction and its reference.

    Attributes:
        model: name of the model.
        fold: whose validation case it is, or ``UNSEEN``.
        case: nnU-Net's identifier.
        prediction: file.
        reference: file.
        repeat: of the training that predicted it.
        reader: nnU-Net's reader of the plans, which reads both files.
    """

    model: str
    fold: int
    case: str
    prediction: Path
    reference: Path
    repeat: int = 1
    reader: str = READER


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
            f"{file}: {some(double)} would count more than once over the folds {list(chosen)}, so that pooled metrics "
            f"would be wrong. Report folds that do not overlap: --folds {chosen[0]}"
        )
    everything = {case for split in dataset.splits for part in ("train", "val") for case in split.get(part, [])}
    missing = sorted(everything - set(counts))
    if folds is None and missing:
        raise ValueError(
            f"{file}: {some(missing)} in no fold's validation set, so that the folds do not cover the data set. "
            f"Say which folds to report, the report will then state that they are not all: --folds "
            f"{' '.join(map(str, chosen))}"
        )
    return chosen


def finished_repeats(
    dataset: Dataset, models: Sequence[RepeatedModel], folds: Sequence[int]
) -> tuple[tuple[RepeatedModel, ...], str | None]:
    """The models without those further repeats that lack predictions.

    Returns:
        the models, and a sentence on what was left out; ``None`` if nothing was.
    """
    kept, unfinished = [], []
    for model in models:
        whole = [model.repeats[0]]
        for repeat in model.repeats[1:]:
            if lacking := unfinished_folds(dataset, model, repeat, folds):
                unfinished.append(f"{model.name} repeat {repeat} (fold {' '.join(map(str, lacking))})")
            else:
                whole.append(repeat)
        kept.append(replace(model, repeats=tuple(whole)))
    if not unfinished:
        return tuple(kept), None
    count = "1 unfinished repeat is" if len(unfinished) == 1 else f"{len(unfinished)} unfinished repeats are"
    most = max(repeat for model in models for repeat in model.repeats)
    return tuple(kept), (
        f"{count} left out: {some(unfinished)}. nnUNetv2_sam3d crossval --repeats {most} does what is missing."
    )


def unfinished_folds(dataset: Dataset, model: RepeatedModel, repeat: int, folds: Sequence[int]) -> list[int]:
    """The folds of a model's repeat that lack predictions."""
    return [fold for fold in folds if _missing(dataset, model, repeat, fold)]


def collect_unseen(dataset: Dataset, models: Sequence[RepeatedModel], folders: Mapping[str, Path]) -> list[Item]:
    """Predictions of the cases in ``labelsTs``, which are in no fold.

    Args:
        dataset: the raw one holds the annotations.
        models: whose first repeat predicted.
        folders: with predictions, by class names of trainers.

    Raises:
        FileNotFoundError: for missing predictions.
    """
    items = [
        Item(
            model.name,
            UNSEEN,
            label.name[: -len(dataset.ending)],
            folders[model.trainer] / label.name,
            label,
            reader=reader_of(model.folder),
        )
        for model in models
        if model.trainer in folders
        for label in sorted((dataset.raw / "labelsTs").glob(f"*{dataset.ending}"))
        if not label.name.startswith(".")
    ]
    if missing := [str(item.prediction) for item in items if not item.prediction.is_file()]:
        raise FileNotFoundError(f"{some(missing)}: predictions of annotated cases in {dataset.raw / 'imagesTs'} lack")
    return items


def collect(dataset: Dataset, models: Sequence[RepeatedModel], folds: Sequence[int]) -> list[Item]:
    """Every validation case of every model, repeat and fold, exactly once.

    Raises:
        FileNotFoundError: for missing predictions or annotations, all of them in one message.
        ValueError: for predictions that the split does not have.
    """
    items: list[Item] = []
    readers: dict[tuple[str, int], str] = {}
    lacking, missing_count = [], 0
    for model, repeat, fold in ((m, r, f) for m in models for r in m.repeats for f in folds):
        folder = model.fold_folder(fold, repeat) / "validation"
        cases = sorted(dataset.splits[fold]["val"])
        reader = readers.get((model.name, repeat)) or reader_of(model.folder_of(repeat))
        readers[model.name, repeat] = reader
        if missing := _missing(dataset, model, repeat, fold):
            trained = (folder.parent / FINAL).is_file()
            what = some(missing) if trained or len(missing) < len(cases) else "not trained"
            if is_outdated(folder.parent):
                what = "trained again after its validation"
            lacking.append(f"{folder.parent.relative_to(dataset.results)} ({what})")
            missing_count += len(missing)
        if foreign := sorted(_predicted(dataset, folder) - set(cases)):
            raise ValueError(
                f"{folder} holds {some(foreign)} not in fold {fold} of {dataset.folder / 'splits_final.json'}: "
                f"the split was changed after this training, or the folder holds other predictions. Validate the "
                f"fold again (nnUNetv2_train ... --val) in an empty folder"
            )
        items += [
            Item(model.name, fold, case, folder / f"{case}{dataset.ending}", dataset.reference(case), repeat, reader)
            for case in cases
        ]
    if lacking:
        raise FileNotFoundError(
            f"{missing_count} of {len(items)} predictions are missing in {dataset.results}, in {len(lacking)} folds: "
            f"{some(lacking)}. nnUNetv2_sam3d crossval does what is missing, nnUNetv2_train ... --val validates a "
            f"trained fold, --folds reports finished folds only"
        )
    without = sorted({item.reference.name for item in items if not item.reference.is_file()})
    if without:
        raise FileNotFoundError(
            f"{dataset.folder / 'gt_segmentations'} lacks {some(without)}; preprocess the data set again: "
            f"nnUNetv2_preprocess -d {dataset.name}"
        )
    return items


def taken_over(models: Sequence[RepeatedModel], folds: Sequence[int]) -> list[str]:
    """Sentences about validations that are copies of another model's."""
    sentences = []
    for model in models:
        found = {
            fold: source.parent.name
            for repeat in model.repeats
            for fold in folds
            if (source := taken_over_from(model.fold_folder(fold, repeat))) is not None
        }
        if found:
            sentences.append(
                f"{model.name} was not validated again in fold {' '.join(map(str, found))}: its masks are those of "
                f"{some(sorted(set(found.values())))}, whose weights, plans, settings and versions are the same."
            )
    return sentences


def reader_of(model: Path) -> str:
    """Name of the reader in the plans of a model's folder; nnU-Net's usual one where they do not say."""
    plans = _plans_without_repeat(model / "plans.json") or {}
    return str(plans.get("image_reader_writer", READER))


def _missing(dataset: Dataset, model: RepeatedModel, repeat: int, fold: int) -> list[str]:
    """Validation cases of a fold without a prediction of its final checkpoint."""
    folder = model.fold_folder(fold, repeat)
    there = set() if is_outdated(folder) else _predicted(dataset, folder / "validation")
    return sorted(set(dataset.splits[fold]["val"]) - there)


def _predicted(dataset: Dataset, folder: Path) -> set[str]:
    return {path.name[: -len(dataset.ending)] for path in folder.glob(f"[!.]*{dataset.ending}")}
