"""What a report was made from: versions, hashes, commands."""

from __future__ import annotations

import hashlib
import platform
import shlex
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from nnunetv2_sam3d import __version__
from nnunetv2_sam3d.files import sha256
from nnunetv2_sam3d.nnunet.layout import ModelName
from nnunetv2_sam3d.report.training_record import Training
from nnunetv2_sam3d.results.collect import Item
from nnunetv2_sam3d.results.trained_models import Dataset, RepeatedModel

PACKAGES = (
    "nnunetv2", "torch", "numpy", "scipy", "surface-distance", "SimpleITK", "scikit-image", "matplotlib", "Jinja2",
)  # fmt: skip


def provenance(
    dataset: Dataset,
    models: Sequence[RepeatedModel],
    trainings: Sequence[Training],
    items: Sequence[Item],
    configuration: str,
    command: Sequence[str],
) -> dict[str, Any]:
    """Versions, SHA-256 of plans, split, data set description and masks, and the commands; no paths, no dates."""
    return {
        "versions": {"nnunetv2_sam3d": __version__, "python": platform.python_version()}
        | {package: _version(package) for package in PACKAGES},
        "dataset": {
            "name": dataset.name,
            "dataset.json": sha256(dataset.folder / "dataset.json"),
            "splits_final.json": sha256(dataset.folder / "splits_final.json"),
            "annotations": _digest([item.reference for item in items]),
        },
        "models": [
            {
                "name": model.name,
                "folder": model.folder.name,
                "plans.json": sha256(model.folder / "plans.json") if (model.folder / "plans.json").is_file() else None,
                "predictions": _digest([item.prediction for item in items if item.model == model.name]),
                "trained with torch": sorted({run.torch for run in trainings if run.model == model.name and run.torch}),
                "training commands": [
                    shlex.join(
                        ["nnUNetv2_train", dataset.name, configuration, str(run.fold), "-tr", model.trainer]
                        + ["-p", ModelName.of(model.folder_of(run.repeat)).plans]
                        + (["-device", run.device] if run.device in ("cpu", "mps") else [])
                    )
                    for run in trainings
                    if run.model == model.name
                ],
            }
            for model in models
        ],
        "report command": shlex.join(command),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _digest(files: Sequence[Any]) -> str:
    """Of names and contents, each file once."""
    digest = hashlib.sha256()
    for file in sorted(set(files)):
        digest.update(f"{file.name}\0{sha256(file)}\n".encode())
    return digest.hexdigest()
