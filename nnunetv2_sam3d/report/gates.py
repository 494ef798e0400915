"""What the two paths of the adapters do: from ``fold_k/adapters.json``, else from the last epoch in the checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from nnunetv2_sam3d.evaluation.two_paths import FILE
from nnunetv2_sam3d.files import sha256
from nnunetv2_sam3d.json_files import read_table
from nnunetv2_sam3d.network_architecture.adapters import ADAPTERS
from nnunetv2_sam3d.nnunet.layout import FINAL
from nnunetv2_sam3d.report.page import Picture
from nnunetv2_sam3d.report.tables import Table, interval
from nnunetv2_sam3d.report.training_record import Training
from nnunetv2_sam3d.results.trained_models import RepeatedModel

COMMAND = "nnUNetv2_sam3d adapters"
TITLES = {"gate_mean": "mean of the gate", "gate_sd": "SD of the gate", "local_share": "share of the local path"}
MAPS = 2  # pictures of gate maps that the page shows of one arm


@dataclass(frozen=True)
class Gates:
    """The two paths of one training.

    Attributes:
        model: name of the arm.
        repeat: of the training.
        fold: of the training.
        blocks: ``gate_mean``, ``gate_sd``, ``local_share`` of each block; empty if nothing tells.
        measured: whether :data:`FILE` tells of this checkpoint.
        outdated: whether :data:`FILE` tells of another one.
        changed: share of the foreground's voxels that change label without the ``local`` or ``global`` path; empty
            unless measured.
        maps: pictures of the gate.
    """

    model: str
    repeat: int
    fold: int
    blocks: Sequence[Mapping[str, float]]
    measured: bool = False
    outdated: bool = False
    changed: Mapping[str, float] = field(default_factory=dict)
    maps: Sequence[Path] = ()


def read_gates(models: Sequence[RepeatedModel], trainings: Sequence[Training]) -> list[Gates]:
    """Of every training whose adapters have two paths.

    Raises:
        ValueError: for a damaged :data:`FILE`.
    """
    by_name = {model.name: model for model in models}
    found = []
    for run in trainings:
        if hasattr(ADAPTERS.get(run.adapter), "local_path"):
            folder = by_name[run.model].fold_folder(run.fold, run.repeat)
            found.append(_read(folder, run))
    return found


def gate_table(gates: Sequence[Gates]) -> Table | None:
    """Gate and share of the local path by arm and block; nothing if no training tells."""
    blocks = [
        {**values, "arm": entry.model, "block": index, "measured": entry.measured}
        for entry in gates
        for index, values in enumerate(entry.blocks)
    ]
    cells = pd.DataFrame(blocks, columns=["arm", "block", "measured", *TITLES])
    lines = []
    for (arm, block), group in cells.groupby(["arm", "block"], sort=False):
        line = {"arm": arm, "block": str(block), "trainings": str(len(group)), "measured": str(group["measured"].sum())}
        lines.append(line | {title: _spread(group[name]) for name, title in TITLES.items()})
    if not lines:
        return None
    caption = (
        "Gate and local path of each block: mean over the trainings [smallest, largest]. The share is |a * x01| / "
        "|g + a * x01|, of the local path in the sum of both. Measured: on validation cases after training; the others "
        "are from the last epoch's log."
    )
    return Table("gates", caption, pd.DataFrame(lines), ("arm",))


def changed_table(gates: Sequence[Gates]) -> Table | None:
    """How many voxels change label without each path, by arm; nothing if it was measured nowhere."""
    measured = [{**entry.changed, "arm": entry.model} for entry in gates if entry.measured]
    lines = []
    for arm, group in pd.DataFrame(measured, columns=["arm", "local", "global"]).groupby("arm", sort=False):
        shares = {f"without the {path} path [%]": _spread(100 * group[path], 2) for path in ("local", "global")}
        lines.append({"arm": arm, "trainings": str(len(group)), **shares})
    if not lines:
        return None
    caption = (
        "Voxels of the foreground that change their label when one path is left out: mean over the trainings "
        "[smallest, largest]."
    )
    return Table("paths", caption, pd.DataFrame(lines), ("arm",))


def gate_pictures(gates: Sequence[Gates]) -> list[Picture]:
    """The first gate maps of each arm's first training that has some."""
    pictures = []
    for model in dict.fromkeys(entry.model for entry in gates):
        entry = next((entry for entry in gates if entry.model == model and entry.maps), None)
        for file in entry.maps[:MAPS] if entry else ():
            caption = f"Gate of {model}, fold {entry.fold}: {file.stem}" if entry else ""
            pictures.append(Picture(file.read_bytes(), "png", caption))
    return pictures


def unmeasured(gates: Sequence[Gates]) -> str | None:
    """What was not measured, and the command that does; nothing if all was."""
    lacking = [entry for entry in gates if not entry.measured]
    if not lacking:
        return None
    models = ", ".join(dict.fromkeys(entry.model for entry in lacking))
    outdated = sum(entry.outdated for entry in lacking)
    of_others = f" ({outdated} of them only for an earlier checkpoint)" if outdated else ""
    return (
        f"What the paths of {models} do on validation cases was not measured for {len(lacking)} of {len(gates)} "
        f"trainings{of_others}: {COMMAND} MODEL does it, with MODEL their result folder."
    )


def _read(folder: Path, run: Training) -> Gates:
    file, checkpoint = folder / FILE, folder / FINAL
    logged = run.paths[-1] if len(run.paths) else ()
    if not file.is_file():
        return Gates(run.model, run.repeat, run.fold, logged)
    remedy = f"Write it again: {COMMAND} {folder.parent.name}"
    content: Mapping[str, Any] = read_table(file, remedy)
    if checkpoint.is_file() and content.get("checkpoint_sha256") != sha256(checkpoint):
        return Gates(run.model, run.repeat, run.fold, logged, outdated=True)
    if lacking := [key for key in ("blocks", "changed") if key not in content]:
        raise ValueError(f"{file} has no {lacking[0]!r}. {remedy}")
    shares = {path: float(share) for path, share in content["changed"].items() if isinstance(share, int | float)}
    maps = sorted((folder / "adapters").glob("*.png"))
    return Gates(run.model, run.repeat, run.fold, content["blocks"], measured=True, changed=shares, maps=maps)


def _spread(values: pd.Series, digits: int = 3) -> str:
    """``0.512 [0.490, 0.530]``, or the figure alone; a dash where no training has one."""
    low, high = (values.min(), values.max()) if values.count() > 1 else (math.nan, math.nan)
    return interval(values.mean(), low, high, digits)
