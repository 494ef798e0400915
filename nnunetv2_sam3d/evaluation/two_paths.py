"""What the adapters' two paths do in a trained fold: gates, shares, and the labels that change without a path."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from nnunetv2_sam3d.evaluation.click_test import fold_provenance
from nnunetv2_sam3d.evaluation.gate_maps import ZONES, MapView, look_at
from nnunetv2_sam3d.files import sha256
from nnunetv2_sam3d.inference.window_predictor import WindowPredictor
from nnunetv2_sam3d.network_architecture.adapter_paths import (
    LOG_KEY,
    PATHS,
    PathRecord,
    recorded_paths,
    two_path_adapters,
    without,
)
from nnunetv2_sam3d.network_architecture.adapters import ADAPTERS, DualPathAdapter3d
from nnunetv2_sam3d.network_architecture.sam3d import SAM3D
from nnunetv2_sam3d.nnunet.labels import Target
from nnunetv2_sam3d.nnunet.trained_fold import TrainedFold, Volume
from nnunetv2_sam3d.text_table import markdown_table
from nnunetv2_sam3d.weights.reading import read_trained

FILE, FOLDER = "adapters.json", "adapters"  # in the fold's folder
FORMAT = 1


class AdapterStudy:
    """Looks at the paths of a fold's network on its validation cases, and sums up.

    Args:
        fold: the fold.
        network: its network, in evaluation mode on ``device``.
        device: where it is.
        target: the structure inside, at the border of and outside of which the gate is looked at.

    Attributes:
        views: a slice of each case, to be drawn.

    Raises:
        ValueError: if the network's adapters do not have two paths.
    """

    def __init__(self, fold: TrainedFold, network: SAM3D, device: torch.device, target: Target) -> None:
        adapters = two_path_adapters(network)
        if not adapters:
            having = [name for name, kind in ADAPTERS.items() if issubclass(kind, DualPathAdapter3d)]
            raise ValueError(
                f"the adapters of {fold.checkpoint} ({network.config.adapter}) do not have two paths, so there is no "
                f"gate to look at. Choose a model whose adapters are one of: {', '.join(having)}."
            )
        self.fold, self.network, self.device, self.target = fold, network, device, target
        self.views: list[MapView] = []
        self._predictor = WindowPredictor([network], fold.configuration.patch_size, device=device)
        self._records = {index: PathRecord() for index in adapters}
        self._zones = {(index, zone): PathRecord() for index in adapters for zone in ZONES}
        self._changed, self._foreground = dict.fromkeys(PATHS, 0), dict.fromkeys(PATHS, 0)
        self._voxels = 0

    def run(self, cases: Sequence[str]) -> dict[str, Any]:
        """Predicts cases three times each: as trained, without the local path, without the global one.

        Returns:
            the content of ``adapters.json``.
        """
        with tqdm(
            total=len(cases) * (1 + len(PATHS)), desc=f"paths, fold {self.fold.fold}", unit="prediction",
            file=sys.stdout,
        ) as bar:  # fmt: skip
            for volume in self.fold.volumes(list(cases)):
                self._add(volume, bar)
        return {
            "format": FORMAT,
            "checkpoint_sha256": sha256(self.fold.checkpoint),
            "adapter": self.network.config.adapter,
            "blocks": [{"block": index, **record.metrics._asdict()} for index, record in self._records.items()],
            "cases": list(cases),
            "changed": _shares(self._changed, self._foreground) | {"of": "foreground"},
            "changed_voxels": _shares(self._changed, dict.fromkeys(PATHS, self._voxels)) | {"of": "all"},
            "target": self.target.name,
            "zones": [
                {"block": index} | {zone: _described(self._zones[index, zone]) for zone in ZONES}
                for index in self._records
            ],
            "logged": logged_epochs(self.fold),
            "provenance": fold_provenance(self.fold, self.device),
        }

    def _add(self, volume: Volume, bar: tqdm[Any]) -> None:
        image = torch.from_numpy(np.array(volume.image[:], np.float32))
        with recorded_paths(self.network, self._records):
            whole = self._labels(image)
        bar.update()
        changed = {}
        for path in PATHS:
            with without(self.network, path):
                other = self._labels(image)
            changed[path] = other != whole
            self._changed[path] += int(changed[path].sum())
            self._foreground[path] += int(((whole != 0) | (other != 0)).sum())
            bar.update()
        self._voxels += whole.size
        maps = look_at(self.network, self.fold.configuration.patch_size, volume, self.target, whole, changed)
        self.views.append(maps.view)
        for zone, tokens in (maps.zones or {}).items():
            for index, record in maps.records.items():
                self._zones[index, zone].include(record, tokens)

    def _labels(self, image: Tensor) -> np.ndarray:
        """nnU-Net's sliding window without mirroring: labels (D, H, W) on the grid of the preprocessed data."""
        self._predictor.set_image(image)
        return np.asarray(self.fold.labels.convert_logits_to_segmentation(self._predictor.automatic()))


def logged_epochs(fold: TrainedFold) -> dict[str, Any] | None:
    """The first and the last epoch of the training's log of the paths, or ``None`` if it has none."""
    epochs = read_trained(fold.checkpoint, says_trained=False).get("logging", {}).get(LOG_KEY, [])
    numbers = [number for number, blocks in enumerate(epochs) if blocks]
    if not numbers:
        return None
    return {
        name: {"epoch": number, "blocks": epochs[number]}
        for name, number in (("first", numbers[0]), ("last", numbers[-1]))
    }


def choose_cases(fold: TrainedFold, wanted: Sequence[str] | None, most: int) -> list[str]:
    """The wanted ones of the fold's validation cases, or the first ones."""
    cases = fold.validation_cases()
    return cases[:most] if wanted is None else [case for case in cases if case in wanted]


def as_text(result: Mapping[str, Any]) -> str:
    """The tables, for the terminal and for documents."""
    blocks, logged = result["blocks"], result["logged"] or {}
    columns = [
        *((f"epoch {entry['epoch']}", entry["blocks"]) for entry in logged.values()),
        (f"{_cases(result)}", blocks),
    ]
    header = ["block", *(f"{kind}, {name}" for name, _ in columns for kind in ("gate", "local share"))]
    rows = [
        [str(block["block"]), *(cell for _, there in columns for cell in _cells(there[place]))]
        for place, block in enumerate(blocks)
    ]
    lines = [
        f"Paths of the {result['adapter']} adapters, fold {result['provenance']['fold']} of "
        f"{result['provenance']['model']}; gate: mean (SD) over tokens and channels; local share: norm of the gated "
        f"local path over that of the sum.",
        "",
        markdown_table(header, rows),
        "",
        *(
            f"Without the {path} path {_percent(result['changed'][path])} of the foreground voxels "
            f"({_percent(result['changed_voxels'][path])} of all) get another label."
            for path in PATHS
        ),
    ]
    if not logged:
        lines += ["", "The training's log has no metrics of the paths: it was made before they were noted."]
    if any(entry[zone] for entry in result["zones"] for zone in ZONES):
        header = ["block", *(f"{kind}, {zone}" for kind in ("gate", "local share") for zone in ZONES)]
        rows = []
        for entry in result["zones"]:
            cells = [_cells(entry[zone]) for zone in ZONES]
            rows.append([str(entry["block"]), *(cell for kind in zip(*cells, strict=True) for cell in kind)])
        counts = ", ".join(f"{(result['zones'][0][zone] or {'tokens': 0})['tokens']} {zone}" for zone in ZONES)
        lines += ["", f"Around {result['target']}, one window a case; tokens: {counts}.", ""]
        lines.append(markdown_table(header, rows))
    return "\n".join(lines) + "\n"


def _cases(result: Mapping[str, Any]) -> str:
    count = len(result["cases"])
    return f"{count} case{'' if count == 1 else 's'}"


def _cells(metrics: Mapping[str, float] | None) -> tuple[str, str]:
    if metrics is None:
        return "-", "-"
    return f"{metrics['gate_mean']:.3f} ({metrics['gate_sd']:.3f})", f"{metrics['local_share']:.3f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.3g} %"


def _shares(parts: Mapping[str, int], wholes: Mapping[str, int]) -> dict[str, Any]:
    """By path; ``None`` of nothing."""
    return {path: part / wholes[path] if wholes[path] else None for path, part in parts.items()}


def _described(record: PathRecord) -> dict[str, float] | None:
    """The metrics of a zone, ``None`` without tokens."""
    return record.metrics._asdict() | {"tokens": record.tokens} if record.count else None
