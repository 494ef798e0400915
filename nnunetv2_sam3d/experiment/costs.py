"""What the missing trainings of a cross-validation will cost, by what the finished ones have cost here."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from nnunetv2_sam3d.experiment.crossval import CrossValidation
from nnunetv2_sam3d.experiment.models import Model
from nnunetv2_sam3d.experiment.steps import StepCosts
from nnunetv2_sam3d.nnunet.layout import CHECKPOINTS, ModelName, repeat_of, training_title, validation_summary
from nnunetv2_sam3d.trainers.names import short_name

KEPT_CHECKPOINTS = 2  # the final one and the best
EPOCH_TIME = re.compile(r"Epoch time: (\d+(?:\.\d+)?) s")  # in nnU-Net's log


@dataclass(frozen=True)
class Costs:
    """Costs of a run.

    Attributes:
        trainings: of the run, each fold and repeat of a trainer being one.
        finished: how many of them need not be run; begun ones count as missing.
        seconds: of the missing ones whose trainer has finished any fold or repeat with these plans.
        unmeasured: short names of the other trainers that are missing.
        disk_bytes: that the folders of the missing trainings will have.
    """

    trainings: int
    finished: int
    seconds: float
    unmeasured: tuple[str, ...]
    disk_bytes: float

    def lines(self, devices: int | None) -> list[str]:
        """The costs for people.

        Args:
            devices: how many trainings run at a time; ``None`` where a cluster decides.
        """
        missing = self.trainings - self.finished
        lines = [f"trainings: {self.trainings}, of which {self.finished} are finished and {missing} missing"]
        if not missing:
            return lines
        time = []
        if self.seconds:
            time.append(f"about {_hours(self.seconds)} by the finished trainings")
            if devices is not None and devices > 1:
                time[0] += f", at best {_hours(self.seconds / devices)} on {devices} devices"
        if self.unmeasured:
            time.append(
                f"not measured yet for {', '.join(self.unmeasured)} (known once one fold of each is finished here)"
            )
        return [*lines, f"time: {'; '.join(time)}", f"disk: about {_bytes(self.disk_bytes)}"]


def costs_of(run: CrossValidation, checkpoint_bytes: Mapping[Model, float]) -> Costs:
    """Measures the finished trainings and extrapolates.

    Args:
        run: the cross-validation.
        checkpoint_bytes: size of a checkpoint of each model with missing folds, for those without any finished one.
    """
    missing = {model: sum(not run.training(model, fold).finished for fold in run.folds) for model in run.models}
    trainings = len(run.models) * len(run.folds)
    seconds = disk = 0.0
    unmeasured: list[str] = []
    measured: dict[tuple[str, str], tuple[float, float]] = {}
    for model, count in missing.items():
        if not count:
            continue
        family = model.trainer, repeat_of(model.plans)[0]
        if family not in measured:
            folders = _finished_folds(model)
            measured[family] = _mean(filter(None, map(fold_seconds, folders))), _mean(map(_size, folders))
        duration, size = measured[family]
        if math.isnan(duration):
            unmeasured.append(short_name(model.trainer))
        else:
            seconds += count * duration
        disk += count * (KEPT_CHECKPOINTS * checkpoint_bytes[model] if math.isnan(size) else size)
    finished = trainings - sum(missing.values())
    return Costs(trainings, finished, seconds, tuple(dict.fromkeys(unmeasured)), disk)


def fold_seconds(fold: Path) -> float:
    """Time of a fold's training, and of its validation where ``crossval`` ran it; 0 if unknown.

    Args:
        fold: nnU-Net's folder of the fold.
    """
    name = ModelName.of(fold.parent)
    record = StepCosts(fold.parents[1] / f"crossval__{name.plans}__{name.configuration}__{fold.name}")
    recorded = record.steps.get(training_title(name.trainer), {}).get("seconds", 0.0)
    logs = [log.read_text(encoding="utf-8", errors="replace") for log in fold.glob("training_log_*.txt")]
    # crossval may have run the validation of a training that was run without it
    return max(recorded, math.fsum(float(seconds) for log in logs for seconds in EPOCH_TIME.findall(log)))


def _finished_folds(model: Model) -> list[Path]:
    """Folders of the finished folds of a model and of its repeats."""
    plans = repeat_of(model.plans)[0]
    return [
        fold
        for folder in model.folder.parent.glob(f"{model.trainer}__{plans}*__{model.configuration}")
        if ModelName.of(folder).first_plans == plans
        for fold in folder.glob("fold_[0-9]*")
        if (fold / CHECKPOINTS[0]).is_file() and validation_summary(fold).is_file()
    ]


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _mean(numbers: Iterable[float]) -> float:
    values = list(numbers)
    return math.fsum(values) / len(values) if values else math.nan


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 360 else f"{seconds / 60:.1f} min"


def _bytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
