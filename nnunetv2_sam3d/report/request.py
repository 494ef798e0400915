"""What is asked of a report, and what its tables and figures are made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunetv2_sam3d.evaluation.clicked import ClickedResults
from nnunetv2_sam3d.nnunet.labels import all_values
from nnunetv2_sam3d.report.gates import Gates
from nnunetv2_sam3d.report.training_record import Training
from nnunetv2_sam3d.results.collect import Item
from nnunetv2_sam3d.results.measure import Row
from nnunetv2_sam3d.results.statistics import Difference, Summary
from nnunetv2_sam3d.results.structures import Structure
from nnunetv2_sam3d.results.trained_models import Dataset, RepeatedModel


@dataclass(frozen=True)
class Request:
    """What is reported.

    Attributes:
        dataset: folder in ``nnUNet_preprocessed``.
        trainers: short names, class names or ``TRAINER__PLANS``; the arms of the studies come beside them.
        names: short names and their classes.
        plans: name of the plans.
        configuration: such as ``3d_fullres``.
        folds: by default all of the split.
        tolerances_mm: of the surface Dice, one or one for each structure.
        kits: measure KiTS's regions of plain kidney, tumour, cyst labels.
        lesions: structures whose lesions are counted.
        focus: structure of the overlays and sub-groups.
        volume_groups_ml: borders of the sub-groups.
        view_cases: cases of the 3D viewer; by default those of the overlays.
        controls: classes of trainers and of their declared controls; where no control of a trainer that is reported is
            there, all pairs are compared.
        study: names of studies, whose arms that have results are reported.
        unseen: folders with predictions of the annotated cases in ``imagesTs``, by class names of trainers.
        processes: that measure.
        command: how the report was asked for.
    """

    dataset: Path
    trainers: Sequence[str]
    names: dict[str, str]
    plans: str
    configuration: str = "3d_fullres"
    folds: Sequence[int] | None = None
    tolerances_mm: Sequence[float] | None = None
    kits: bool = False
    lesions: Sequence[str] | None = None
    focus: str | None = None
    volume_groups_ml: Sequence[float] | None = None
    view_cases: Sequence[str] | None = None
    controls: Mapping[str, str] = field(default_factory=dict)
    study: Sequence[str] = ()
    unseen: Mapping[str, Path] = field(default_factory=dict)
    processes: int = 1
    command: Sequence[str] = ()


@dataclass(frozen=True)
class Results:
    """Everything that tables and figures are made from.

    Attributes:
        controls: model and its declared control, by names, for those whose control is reported.
        wanted_controls: the same with the short names of controls that are not reported.
        absent: arms of the studies that are not reported, and why.
        notes: what was left out, in sentences.
        gates: of the trainings whose adapters have two paths.
        unseen: rows of cases that are in no fold.
    """

    dataset: Dataset
    models: Sequence[RepeatedModel]
    folds: Sequence[int]
    structures: Sequence[Structure]
    focus: Structure
    items: Sequence[Item]
    rows: Sequence[Row]
    summaries: Sequence[Summary]
    differences: Sequence[Difference]
    groups: dict[str, str]
    trainings: Sequence[Training]
    clicked: Sequence[ClickedResults]
    provenance: dict[str, Any]
    controls: Mapping[str, str] = field(default_factory=dict)
    wanted_controls: Mapping[str, str] = field(default_factory=dict)
    study: Sequence[str] = ()
    absent: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    gates: Sequence[Gates] = ()
    unseen: Sequence[Row] = ()

    @property
    def names(self) -> list[str]:
        """Of the models."""
        return [model.name for model in self.models]

    @property
    def cases(self) -> int:
        """How many were measured, each counted once."""
        return len({item.case for item in self.items})

    @property
    def labels(self) -> list[int]:
        """Values that a mask may hold."""
        return all_values(self.dataset.json["labels"])
