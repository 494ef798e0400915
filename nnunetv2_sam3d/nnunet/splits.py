"""The ``split.pkl`` of 3DSAM-adapter and 3DMedSAM-FDA as nnU-Net's ``splits_final.json``."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from nnunetv2_sam3d.files import write_json
from nnunetv2_sam3d.json_files import json_or_none, read_json
from nnunetv2_sam3d.messages import some
from nnunetv2_sam3d.nnunet.descriptions import read_dataset
from nnunetv2_sam3d.pickles import load_plain

SPLITS_FILE = "splits_final.json"
PARTS = ("train", "val", "test")
ALL_FOLDS = "all"
FOLDS_NOTE = (
    "fold 0 validates on the authors' validation set, which they choose their checkpoint by; fold 1 validates on their "
    "test set, which their published figures are of. Both train on their training set alone, so that one model serves "
    "both."
)
MAX_BYTES = 4 << 20  # the authors' have some 100 kB
FORMS = (
    "a list of folds or a single one, each a table with 'train' and 'val' or 'test', and each of these a table from "
    "case to [image, label], from image to label or from number to file, or a list of files"
)

# What a split says of a case, in the order in which it is asked for the case's name: its key, its image, its label.
Entry = tuple[str, ...]
Split = Mapping[str, Sequence[Entry]]


@dataclass(frozen=True)
class ImportedSplit:
    """What :func:`import_split` has done.

    Attributes:
        file: ``splits_final.json``.
        folds: nnU-Net's, as they stand in it.
        written: ``False`` if they were there already.
        offered: how many folds the authors' file has.
    """

    file: Path
    folds: list[dict[str, list[str]]]
    written: bool
    offered: int


def read_folds(file: Path) -> list[dict[str, list[str]]]:
    """The folds of a ``splits_final.json``.

    Raises:
        ValueError: if it is none, or a fold has a case twice, above all one that is trained and validated with.
    """
    try:
        folds = read_json(file)
        cases = [fold[part] for fold in folds for part in ("train", "val")]
        sound = bool(cases) and all(isinstance(names, list) and names for names in cases)
        sound = sound and all(isinstance(name, str) for names in cases for name in names)
    except (ValueError, TypeError, KeyError):
        sound = False
    if not sound:
        raise ValueError(
            f"{file} is no list of folds with the cases of 'train' and 'val' each. Correct it, or delete it "
            f"before anything is trained: it is then made anew."
        )
    for number, fold in enumerate(folds):
        counts = Counter([*fold["train"], *fold["val"]])
        if double := [case for case, count in counts.items() if count > 1]:
            both = set(fold["train"]) & set(fold["val"])
            what = "a training and a validation case" if double[0] in both else "twice among the cases"
            raise ValueError(
                f"{file}: {double[0]} is {what} of fold {number}. Correct the file before anything is trained; figures "
                f"of models that were trained with it cannot be trusted."
            )
    return folds


def read_splits(file: Path) -> list[Split]:
    """The folds of the authors' ``split.pkl``, each with what it says of the cases of their sets.

    3DSAM-adapter ships a list of five folds, each a table of ``train``, ``val`` and ``test``, and each of these a table
    from case to ``[image, label]``. ``make_split_pkl`` of 3DMedSAM-FDA writes a table from the fold's number to such
    sets, which are tables from a number to a file. Sets of their own form are read as well: tables from image to
    label, lists of files, and a single fold without a list around it.

    Raises:
        ValueError: if the file is absent, damaged, would run code, or holds something else.
    """
    if not file.is_file():
        raise ValueError(f"{file} does not exist; give the authors' split.pkl")
    if (size := file.stat().st_size) > MAX_BYTES:
        raise ValueError(f"{file} is too large for a split ({size} bytes); give the authors' split.pkl")
    try:
        content = load_plain(file.read_bytes())
    except ValueError as error:
        raise ValueError(
            f"{file} cannot be read as a split, and nothing in it was run: {error}. Give the authors' split.pkl"
        ) from error
    if isinstance(content, Mapping) and content and all(type(key) is int for key in content):
        content = [content[number] for number in sorted(content)]
    folds = list(content) if isinstance(content, list | tuple) else [content]
    for number, fold in enumerate(folds):
        if not isinstance(fold, Mapping) or "train" not in fold or not set(PARTS[1:]) & set(fold):
            keys = some([key for key in fold if isinstance(key, str | int)]) if isinstance(fold, Mapping) else ""
            found = f"a table of {keys or 'nothing'}" if isinstance(fold, Mapping) else f"a {type(fold).__name__}"
            where = f"fold {number} of {file}" if len(folds) > 1 else str(file)
            raise ValueError(f"{where} is {found}; expected {FORMS}")
    if not folds:
        raise ValueError(f"{file} is an empty list; expected {FORMS}")
    return [{part: _entries(file, part, fold[part]) for part in PARTS if part in fold} for fold in folds]


def _entries(file: Path, part: str, content: Any) -> list[Entry]:
    """What a part says of each case; ValueError if it is none."""
    rows: list[list[Any]] = []
    if isinstance(content, Mapping):
        for key, value in content.items():
            files = list(value) if isinstance(value, list | tuple) else [value] if value is not None else []
            rows.append(files if type(key) is int else [key, *files])  # make_split_pkl counts its files
    elif isinstance(content, list | tuple | set | frozenset):
        rows = [list(entry) if isinstance(entry, list | tuple) else [entry] for entry in content]
    else:
        rows = [[]]
    if not all(row and all(isinstance(text, str) for text in row) for row in rows):
        raise ValueError(f"{file}: the part {part!r} is no table or list of file names; expected {FORMS}")
    return [tuple(row) for row in rows]


def make_folds(
    split: Split, cases: Iterable[str], *, by_number: bool = False, partial: bool = False
) -> list[dict[str, list[str]]]:
    """nnU-Net's folds of a split: fold 0 validates on ``val``, the next one on ``test``; both train on ``train``.

    Args:
        split: one fold of :func:`read_splits`.
        cases: names of the data set's cases.
        by_number: match a path and a case by the last number in their names instead of by name.
        partial: allow cases that the split does not name; they are in no fold.

    Raises:
        ValueError: for paths of no case, cases in no part, and cases in two, naming them.
    """
    cases = list(cases)
    find = _by_number(cases) if by_number else _by_name(cases)
    found = {part: [find(entry) for entry in entries] for part, entries in split.items()}
    unknown = [
        entry[-2:][0]  # its image rather than its key or its label
        for part, entries in split.items()
        for entry, case in zip(entries, found[part], strict=True)
        if case is None
    ]
    if unknown:
        raise ValueError(
            f"{len(unknown)} of the split's files belong to no case of the data set: {some(unknown)}. Its cases are "
            f"called {some(sorted(cases))}. If only the numbers are the same, match by them (--by-number)."
        )
    names = {part: sorted(str(case) for case in matched) for part, matched in found.items()}
    counted = Counter(case for part in names.values() for case in part)
    if twice := sorted(case for case, times in counted.items() if times > 1):
        raise ValueError(f"{len(twice)} cases are named twice in the split: {some(twice)}")
    if (missing := sorted(set(cases) - set(counted))) and not partial:
        raise ValueError(
            f"{len(missing)} cases of the data set are in no part of the split: {some(missing)}. Add --partial to "
            f"leave them out of all folds."
        )
    if empty := [part for part in names if not names[part]]:
        raise ValueError(f"the split's part {empty[0]!r} is empty")
    return [{"train": names["train"], "val": names[part]} for part in PARTS[1:] if part in names]


def make_all_folds(splits: Sequence[Split], cases: Iterable[str], **matching: bool) -> list[dict[str, list[str]]]:
    """One fold of nnU-Net's for each of the authors', which validates on the set that differs between them.

    That is the test set if no case is in two of them, else the validation set. So every case counts once.

    Raises:
        ValueError: as :func:`make_folds`, and if neither can be had.
    """
    cases = list(cases)
    made = [make_folds(split, cases, **matching) for split in splits]
    for part in reversed(PARTS[1:]):
        if all(part in split for split in splits):
            folds = [one[-1 if part == "test" else 0] for one in made]
            counted = Counter(case for fold in folds for case in fold["val"])
            if max(counted.values()) == 1:
                return folds
    raise ValueError(
        f"the {len(splits)} folds cannot be taken together: in their test sets and in their validation sets some cases "
        f"stand more than once. Take one of them: --fold 0"
    )


def import_split(
    file: Path,
    dataset: str,
    *,
    fold: int | str = 0,
    by_number: bool = False,
    partial: bool = False,
    force: bool = False,
) -> ImportedSplit:
    """Writes ``nnUNet_preprocessed/DATASET/splits_final.json``.

    Args:
        file: the authors' ``split.pkl``.
        dataset: name or number.
        fold: of the authors' file, whose own loader takes 0; or ``all``, see :func:`make_all_folds`.
        by_number: see :func:`make_folds`.
        partial: see :func:`make_folds`.
        force: replace another split; it is kept as ``splits_final.json.bak``.

    Raises:
        ValueError: if the split does not fit the data set, or another one is there already.
    """
    name = maybe_convert_to_dataset_name(int(dataset) if str(dataset).isdigit() else str(dataset))
    splits, cases = read_splits(file), case_names(name)
    if fold != ALL_FOLDS and fold not in range(len(splits)):
        raise ValueError(f"{file} has no fold {fold}: it has {len(splits)}, the first is 0. Choose one, or --fold all")
    if fold == ALL_FOLDS:
        folds = make_all_folds(splits, cases, by_number=by_number, partial=partial)
    else:
        folds = make_folds(splits[int(fold)], cases, by_number=by_number, partial=partial)
    target = Path(str(nnUNet_preprocessed.require())) / name / SPLITS_FILE
    if target.is_file():
        if json_or_none(target) == folds:
            return ImportedSplit(target, folds, False, len(splits))
        backup = target.with_name(f"{SPLITS_FILE}.bak")
        if not force:
            raise ValueError(
                f"{target} holds another split. Models trained with it have seen other cases than their folds would "
                f"say then. --force replaces it and keeps the old one as {backup.name}."
            )
        if backup.exists():
            raise ValueError(f"{backup} exists already; move it away, so that no split is lost")
        os.replace(target, backup)
    write_json(target, folds, indent=4)
    return ImportedSplit(target, folds, True, len(splits))


def case_names(dataset: str) -> list[str]:
    """Cases of a raw data set.

    Raises:
        ValueError: if there is none of that name.
    """
    folder = Path(str(nnUNet_raw.require())) / dataset
    if not (folder / "dataset.json").is_file():
        raise ValueError(f"{folder / 'dataset.json'} does not exist; the names of the data set's cases are taken there")
    content = read_dataset(folder / "dataset.json", "Copy it from where the data set came from", channels=False)
    return sorted(get_filenames_of_train_images_and_targets(str(folder), content))


def _by_name(cases: Sequence[str]) -> Any:
    """A function from an entry to its case: by a name in it, from the end of each path (``x/case_1/ct.nii.gz``)."""
    known = set(cases)

    def find(entry: Entry) -> str | None:
        parts = (_stem(part) for text in entry for part in reversed(re.split(r"[/\\]", text)))
        return next((part for part in parts if part in known), None)

    return find


def _by_number(cases: Sequence[str]) -> Any:
    """The same by the last number in a name, where a single case has it."""
    known: dict[int, list[str]] = {}
    for case in cases:
        if (number := _number(case)) is not None:
            known.setdefault(number, []).append(case)

    def find(entry: Entry) -> str | None:
        parts = (_stem(part) for text in entry for part in reversed(re.split(r"[/\\]", text)))
        wanted = next((number for part in parts if (number := _number(part)) is not None), None)
        matches = known.get(-1 if wanted is None else wanted, [])
        return matches[0] if len(matches) == 1 else None

    return find


_ENDINGS = (".nii", ".gz", ".nrrd", ".mha", ".npy", ".npz", ".b2nd")


def _stem(name: str) -> str:
    """Without endings, and without nnU-Net's channel number."""
    while name.endswith(_ENDINGS):
        name = name[: name.rindex(".")]
    return name.removesuffix("_0000")


def _number(name: str) -> int | None:
    digits = re.findall(r"[0-9]+", name)
    return int(digits[-1]) if digits and len(digits[-1]) < 19 else None
