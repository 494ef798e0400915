"""Which predictions there are, checked for completeness before anything is measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nnunetv2_sam3d.messages import some
from nnunetv2_sam3d.nnunet.layout import FINAL
from nnunetv2_sam3d.nnunet.validation import is_outdated, taken_over_from
from nnunetv2_sam3d.results.trained_models import READER, Dataset, RepeatedModel, reader_of

UNSEEN = -1  # the fold of cases that are in none


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


def _missing(dataset: Dataset, model: RepeatedModel, repeat: int, fold: int) -> list[str]:
    """Validation cases of a fold without a prediction of its final checkpoint."""
    folder = model.fold_folder(fold, repeat)
    there = set() if is_outdated(folder) else _predicted(dataset, folder / "validation")
    return sorted(set(dataset.splits[fold]["val"]) - there)


def _predicted(dataset: Dataset, folder: Path) -> set[str]:
    return {path.name[: -len(dataset.ending)] for path in folder.glob(f"[!.]*{dataset.ending}")}
