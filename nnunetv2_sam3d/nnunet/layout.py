"""What nnU-Net calls its folders and files, and what this package calls repeats. Imports nothing.

Repeats of a training have the same plans under another name, with other random numbers. Repeat 1 is the plans as they
are. Repeat 2 is a copy of the file with ``plans_name`` ``<PLANS>_repeat2`` and the setting ``repeat`` 2. So all repeats
share the preprocessed data, every stock command works on each (``-p <PLANS>_repeat2``), and a training starts from the
finished model of its own repeat.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

WORKERS = ("nnUNet_n_proc_DA", "nnUNet_def_n_proc")  # variables
PATHS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")  # variables
PLANS_NAME = "nnUNetSAM3DPlans"  # of the SAM3D trainers by default
CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_best.pth")  # as --c looks for them
FINAL = CHECKPOINTS[0]
_NAME = re.compile(r"(?P<plans>.+)_repeat(?P<repeat>[2-9]|[1-9]\d+)")


def repeat_plans(plans: str, repeat: int) -> str:
    """Name of the plans of a repeat: ``("P", 1)`` -> ``"P"``, ``("P", 2)`` -> ``"P_repeat2"``.

    Raises:
        ValueError: for repeats below 1, and for further repeats of what is one already.
    """
    if repeat < 1:
        raise ValueError(f"repeats are counted from 1, got {repeat}")
    if repeat == 1:
        return plans
    if repeat_of(plans)[1] != 1:
        raise ValueError(f"{plans} are a repeat themselves; name the plans that they repeat: {repeat_of(plans)[0]}")
    return f"{plans}_repeat{repeat}"


def repeat_of(plans: str) -> tuple[str, int]:
    """The plans that are repeated and the repeat's number: ``"P_repeat2"`` -> ``("P", 2)``, ``"P"`` -> ``("P", 1)``."""
    match = _NAME.fullmatch(plans)
    return (match["plans"], int(match["repeat"])) if match else (plans, 1)


class ModelName(NamedTuple):
    """Name of a model's folder, ``TRAINER__PLANS__CONFIGURATION``.

    Attributes:
        trainer: class name.
        plans: name of the plans, of a repeat with its number.
        configuration: such as ``3d_fullres``.
    """

    trainer: str
    plans: str
    configuration: str

    @classmethod
    def of(cls, folder: str | Path) -> ModelName:
        """The name of a folder.

        Raises:
            ValueError: for a folder that is called otherwise.
        """
        parts = Path(folder).name.split("__")
        if len(parts) != 3:
            raise ValueError(f"{folder} is not called TRAINER__PLANS__CONFIGURATION")
        return cls(*parts)

    @property
    def first_plans(self) -> str:
        """Name of the plans without the number of the repeat."""
        return repeat_of(self.plans)[0]

    @property
    def repeat(self) -> int:
        """Number of the repeat, from 1."""
        return repeat_of(self.plans)[1]

    def of_repeat(self, repeat: int) -> ModelName:
        """The name of another repeat."""
        return self._replace(plans=repeat_plans(self.first_plans, repeat))

    def __str__(self) -> str:
        return "__".join(self)


def training_title(trainer: str) -> str:
    """What this package calls a training: title of its step, and key of its costs in ``steps.json``."""
    return f"train {trainer}"


def dataset_number(name: str) -> int:
    """``Dataset220_KiTS`` -> 220, ``Dataset1234_Blobs`` -> 1234; for those commands of nnU-Net that take no names.

    Raises:
        ValueError: for a name without a number.
    """
    match = re.match(r"Dataset([0-9]+)", name)
    if match is None:
        raise ValueError(f"{name} is no data set's name; nnU-Net's are called Dataset220_KiTS")
    return int(match[1])


def fold_folder(model: Path, fold: int | str) -> Path:
    """A fold's folder in a model's."""
    return model / f"fold_{fold}"


def validation_summary(fold: Path) -> Path:
    """What the validation of a fold leaves last."""
    return fold / "validation" / "summary.json"


def check_workers() -> None:
    """Raises ValueError for numbers of workers that are none; nnU-Net reads them when it is imported."""
    for name in WORKERS:
        if not (value := os.environ.get(name, "0")).strip().isdecimal():
            raise ValueError(f"the variable {name} is {value!r:.60}; give a whole number of processes, or unset it")


def check_paths() -> None:
    """Raises ValueError if nnU-Net's path variables are not set."""
    missing = [name for name in PATHS if not os.environ.get(name)]
    if missing:
        raise ValueError(
            "nnU-Net's path variables are not set; set them first:\n"
            + "\n".join(f"  export {name}=/path/to/{name.lower()}" for name in missing)
        )
