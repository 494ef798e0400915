"""The 3DSAM-adapter authors' ``split.pkl`` as nnU-Net's ``splits_final.json``."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from nnunetv2_sam3d.files import write_json

SPLITS_FILE = "splits_final.json"
PARTS = ("train", "val", "test")
FOLDS_NOTE = (
    "fold 0 validates on the authors' validation set, which they choose their checkpoint by; fold 1 validates on their "
    "test set, which their published figures are of. Both train on their training set alone, so that one model serves "
    "both."
)
MAX_BYTES = 64 << 20
# Types that no file can change, and whose construction runs no code of the file's.
_CONTAINERS = {"set": set, "frozenset": frozenset, "list": list, "dict": dict, "tuple": tuple}
_PATHS = {"PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath"}


class _PlainUnpickler(pickle.Unpickler):
    """Knows strings, numbers, containers and paths (as strings), nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("builtins", "__builtin__") and name in _CONTAINERS:
            return _CONTAINERS[name]
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module in ("pathlib", "pathlib._local") and name in _PATHS:
            return lambda *parts: "/".join(parts)  # not the class, which a file could change
        raise pickle.UnpicklingError(f"it holds an object of {module}.{name}, which could run code")


def read_folds(file: Path) -> list[dict[str, list[str]]]:
    """The folds of a ``splits_final.json``.

    Raises:
        ValueError: if it is none, or a fold has a case twice, above all one that is trained and validated with.
    """
    try:
        folds = json.loads(file.read_text(encoding="utf-8"))
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


def read_split(file: Path) -> dict[str, list[str]]:
    """Image paths of the authors' training, validation and test set.

    Args:
        file: a pickle of ``{"train": ..., "val": ..., "test": ...}``, each part a table from image to label file or a
            list of image files.

    Returns:
        paths as they stand in the file, by part; parts that it lacks are absent.

    Raises:
        ValueError: if the file is absent, damaged, would run code, or holds something else.
    """
    if not file.is_file():
        raise ValueError(f"{file} does not exist; give the authors' split.pkl")
    if file.stat().st_size > MAX_BYTES:
        raise ValueError(f"{file} is too large for a split ({file.stat().st_size} bytes); give the authors' split.pkl")
    try:
        content = _PlainUnpickler(io.BytesIO(file.read_bytes())).load()
    except Exception as error:  # damaged pickles raise almost anything
        why = str(error) if isinstance(error, pickle.UnpicklingError) else "it is damaged, or no pickle"
        raise ValueError(
            f"{file} cannot be read as a split, and nothing in it was run: {why}. Give the authors' split.pkl"
        ) from error
    if not isinstance(content, Mapping) or "train" not in content or not set(PARTS[1:]) & set(content):
        found = f"a table of {list(content)[:5]}" if isinstance(content, Mapping) else f"a {type(content).__name__}"
        raise ValueError(f"{file} is {found}; expected a table with 'train' and 'val' or 'test'")
    return {part: _paths(file, part, content[part]) for part in PARTS if part in content}


def make_folds(
    split: Mapping[str, Iterable[str]], cases: Iterable[str], *, by_number: bool = False, partial: bool = False
) -> list[dict[str, list[str]]]:
    """nnU-Net's folds of a split: fold 0 validates on ``val``, the next one on ``test``; both train on ``train``.

    Args:
        split: paths by part, see :func:`read_split`.
        cases: names of the data set's cases.
        by_number: match a path and a case by the last number in their names instead of by name.
        partial: allow cases that the split does not name; they are in no fold.

    Raises:
        ValueError: for paths of no case, cases in no part, and cases in two, naming them.
    """
    cases = list(cases)
    found = {part: [_case_of(path, cases, by_number) for path in paths] for part, paths in split.items()}
    unknown = [
        path for part, paths in split.items() for path, case in zip(paths, found[part], strict=True) if case is None
    ]
    if unknown:
        raise ValueError(
            f"{len(unknown)} of the split's files belong to no case of the data set: {_some(unknown)}. Its cases are "
            f"called {_some(sorted(cases))}. If only the numbers are the same, match by them (--by-number)."
        )
    names = {part: sorted(str(case) for case in matched) for part, matched in found.items()}
    counted = Counter(case for part in names.values() for case in part)
    if twice := sorted(case for case, times in counted.items() if times > 1):
        raise ValueError(f"{len(twice)} cases are named twice in the split: {_some(twice)}")
    if (missing := sorted(set(cases) - set(counted))) and not partial:
        raise ValueError(
            f"{len(missing)} cases of the data set are in no part of the split: {_some(missing)}. Add --partial to "
            f"leave them out of all folds."
        )
    if empty := [part for part in names if not names[part]]:
        raise ValueError(f"the split's part {empty[0]!r} is empty")
    return [{"train": names["train"], "val": names[part]} for part in PARTS[1:] if part in names]


def import_split(
    file: Path, dataset: str, *, by_number: bool = False, partial: bool = False, force: bool = False
) -> tuple[Path, list[dict[str, list[str]]], bool]:
    """Writes ``nnUNet_preprocessed/DATASET/splits_final.json``.

    Args:
        file: the authors' ``split.pkl``.
        dataset: name or number.
        by_number: see :func:`make_folds`.
        partial: see :func:`make_folds`.
        force: replace another split; it is kept as ``splits_final.json.bak``.

    Returns:
        the file, the folds, and whether it was written (``False``: it was there and is the same).

    Raises:
        ValueError: if the split does not fit the data set, or another one is there already.
    """
    name = maybe_convert_to_dataset_name(int(dataset) if str(dataset).isdigit() else str(dataset))
    folds = make_folds(read_split(file), case_names(name), by_number=by_number, partial=partial)
    target = Path(str(nnUNet_preprocessed.require())) / name / SPLITS_FILE
    if target.is_file():
        if _read(target) == folds:
            return target, folds, False
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
    return target, folds, True


def case_names(dataset: str) -> list[str]:
    """Cases of a raw data set.

    Raises:
        ValueError: if there is none of that name.
    """
    folder = Path(str(nnUNet_raw.require())) / dataset
    if not (folder / "dataset.json").is_file():
        raise ValueError(f"{folder / 'dataset.json'} does not exist; the names of the data set's cases are taken there")
    return sorted(get_filenames_of_train_images_and_targets(str(folder)))


def _paths(file: Path, part: str, content: Any) -> list[str]:
    entries = list(content) if isinstance(content, Mapping | list | tuple | set | frozenset) else None
    if entries is None or not all(isinstance(entry, str) for entry in entries):
        raise ValueError(f"{file}: the part {part!r} is no table or list of file names")
    return entries


def _case_of(path: str, cases: list[str], by_number: bool) -> str | None:
    """The case that a path belongs to: by a name in it, from its end (``case_00012/imaging.nii.gz`` counts)."""
    parts = [_stem(part) for part in reversed(re.split(r"[/\\]", path))]
    if not by_number:
        return next((part for part in parts if part in cases), None)
    wanted = next((number for part in parts if (number := _number(part)) is not None), None)
    matches = [case for case in cases if wanted is not None and _number(case) == wanted]
    return matches[0] if len(matches) == 1 else None


def _stem(name: str) -> str:
    """Without endings, and without nnU-Net's channel number."""
    return re.sub(r"_0000$", "", re.sub(r"(\.(nii|gz|nrrd|mha|npy|npz|b2nd))+$", "", name))


def _number(name: str) -> int | None:
    digits = re.findall(r"\d+", name)
    return int(digits[-1]) if digits else None


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text())
    except ValueError:
        return None
