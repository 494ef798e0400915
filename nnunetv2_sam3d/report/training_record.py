"""What a training cost and how it went, from nnU-Net's logs and the checkpoints beside them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunetv2_sam3d.json_files import entries, is_number, read_table
from nnunetv2_sam3d.network_architecture.adapters import ADAPTERS
from nnunetv2_sam3d.network_architecture.config import SAM3DConfig
from nnunetv2_sam3d.nnunet.layout import FINAL, ModelName
from nnunetv2_sam3d.results.trained_models import RepeatedModel
from nnunetv2_sam3d.settings import PLANS_KEY, Settings
from nnunetv2_sam3d.weights.describe import buffer_names, parameters
from nnunetv2_sam3d.weights.lineage import start_of
from nnunetv2_sam3d.weights.reading import METADATA_KEY, read_trained
from nnunetv2_sam3d.weights.state_dict import PARTS, part_of

NUMBER = r"(-?\d+(?:\.\d+)?(?:e-?\d+)?|nan)"
LINE = re.compile(
    rf": (?:(Epoch) (\d+)|(train_loss|val_loss) {NUMBER}|(Epoch time): {NUMBER} s|(Pseudo dice) \[(.*)\])"
)
UNNEEDED = "Delete it; the report has a dash for"
VALUE = re.compile(rf"{NUMBER}\)?(?:,|$)")


@dataclass(frozen=True)
class Training:
    """One fold of one repeat of a model.

    Attributes:
        model: name.
        fold: number.
        hours: of all epochs; NaN without a log.
        trained: parameters that the optimizer changed; ``None`` without a checkpoint.
        parameters: all parameters; likewise.
        device: the GPU's name, or ``cpu``; empty if unknown.
        torch: version of PyTorch that trained; empty if unknown.
        peak_bytes: resident memory of the training process; ``None`` if nothing recorded it.
        start: model whose same fold it started from; empty for others.
        start_replaced: whether that one has been trained again since.
        curves: ``train_loss``, ``val_loss``, ``pseudo_dice`` (mean over classes) and ``epoch``, equally long.
        repeat: number.
        adapter: name of the adapter class; empty for networks of others.
        adapter_details: their local path's plane and how they began, as far as they have and the checkpoint says so.
        parts: of the network that were trained, ``(in part)`` after those of which some weights were not.
        origin: where the encoder came from: a model, a file's name, or its kind such as ``random``; empty if unknown.
        steps: of the optimizer; ``None`` if the checkpoint does not tell.
        paths: by epoch and block, ``gate_mean``, ``gate_sd`` and ``local_share``, as far as they were logged.
    """

    model: str
    fold: int
    hours: float
    trained: int | None
    parameters: int | None
    device: str
    torch: str
    peak_bytes: int | None
    start: str = ""
    start_replaced: bool = False
    curves: Mapping[str, list[float]] = field(default_factory=dict)
    repeat: int = 1
    adapter: str = ""
    parts: tuple[str, ...] = ()
    origin: str = ""
    steps: int | None = None
    paths: Sequence[Sequence[Mapping[str, float]]] = ()
    adapter_details: tuple[str, ...] = ()


def read_training(model: RepeatedModel, fold: int, repeat: int | None = None) -> Training:
    """Reads one fold's folder, by default of the first repeat."""
    repeat = model.repeats[0] if repeat is None else repeat
    folder = model.fold_folder(fold, repeat)
    logs = sorted(folder.glob("training_log_*.txt"))
    epochs = read_epochs("".join(log.read_text(encoding="utf-8", errors="replace") for log in logs))
    names = ("train_loss", "val_loss", "pseudo_dice")
    curves = {name: [epochs[number].get(name, math.nan) for number in sorted(epochs)] for name in names}
    checkpoint = folder / FINAL
    content = read_trained(checkpoint) if checkpoint.is_file() else {}
    trained, total = parameters(content) if content else (None, None)
    metadata = content.get(METADATA_KEY, {})
    start = start_of(checkpoint)
    debug = folder / "debug.json"  # nnU-Net's, written at the start
    about = read_table(debug, f"{UNNEEDED} the device then") if debug.is_file() else {}
    return Training(
        model.name,
        fold,
        math.fsum(epoch.get("seconds", 0.0) for epoch in epochs.values()) / 3600 if logs else math.nan,
        trained,
        total,
        str(about.get("gpu_name", about.get("device", ""))),
        str(about.get("torch_version", "")),
        _peak(model, fold, repeat),
        "" if start is None else start.model,
        start is not None and start.replaced,
        {"epoch": [float(number) for number in sorted(epochs)], **curves},
        repeat,
        str(metadata.get("network", {}).get("adapter", "")),
        trained_parts(content) if metadata else (),
        _origin(metadata.get("provenance", {}).get("SAM encoder", {})) if start is None else start.model,
        _steps(content),
        content.get("logging", {}).get("adapter_paths", ()),
        _adapter_details(metadata),
    )


def trained_parts(checkpoint: Mapping[str, Any]) -> tuple[str, ...]:
    """Parts of the network that a trainer of this package trained, in the network's order of :data:`PARTS`."""
    trained = set(checkpoint[METADATA_KEY]["trained"])
    fixed = buffer_names(SAM3DConfig.from_dict(checkpoint[METADATA_KEY]["network"])) | trained
    whole = {part_of(name) for name in trained} - {
        part_of(name) for name in checkpoint["network_weights"] if name not in fixed
    }
    some = {part_of(name) for name in trained}
    return tuple(part if part in whole else f"{part} (in part)" for part, _ in PARTS if part in some)


def _adapter_details(metadata: Mapping[str, Any]) -> tuple[str, ...]:
    network, record = metadata.get("network", {}), metadata.get("provenance", {}).get("adapters", {})
    details = []
    if hasattr(ADAPTERS.get(network.get("adapter")), "local_path"):
        details.append(f"{network['adapter_plane']} plane" if "adapter_plane" in network else "")
    if start := record.get("adapter_start", "cold" if record.get("kind") == "random" else ""):
        details.append(f"{start} start")
    return tuple(filter(None, details))


def _origin(record: Mapping[str, Any]) -> str:
    return Path(str(record["file"])).name if "file" in record else str(record.get("kind", ""))


def _steps(checkpoint: Mapping[str, Any]) -> int | None:
    """Epochs times steps an epoch; of other trainers it is not known."""
    if METADATA_KEY not in checkpoint:
        return None
    try:
        arguments = checkpoint["init_args"]
        settings = arguments["plans"]["configurations"][arguments["configuration"]].get(PLANS_KEY, {})
        epochs = len(checkpoint["logging"]["train_losses"])
    except KeyError:
        return None
    return epochs * int(settings.get("iterations_per_epoch", Settings.iterations_per_epoch))


def read_epochs(log: str) -> dict[int, dict[str, float]]:
    """The finished epochs in the text of nnU-Net's logs; of an epoch that was repeated after an interruption, the last.

    Returns:
        by epoch: ``train_loss``, ``val_loss``, ``pseudo_dice``, ``seconds``, as far as they were logged.
    """
    epochs: dict[int, dict[str, float]] = {}
    current: dict[str, float] = {}
    number = -1
    for line in log.splitlines():
        match = LINE.search(line)
        if match is None:
            continue
        epoch, epoch_number, loss, loss_value, time, seconds, dice, values = match.groups()
        if epoch:
            number, current = int(epoch_number), {}
        elif loss:
            current[loss] = float(loss_value)
        elif dice:
            numbers = [float(value) for value in VALUE.findall(values) if value != "nan"]
            current["pseudo_dice"] = math.fsum(numbers) / len(numbers) if numbers else math.nan
        elif time and number >= 0:
            epochs[number] = current | {"seconds": float(seconds)}
    return epochs


def _peak(model: RepeatedModel, fold: int, repeat: int) -> int | None:
    """From the records that this package's commands leave beside the results."""
    plans = ModelName.of(model.folder_of(repeat)).plans
    title, remedy = f"train {model.trainer}", f"{UNNEEDED} the peak memory then"
    peaks = [
        int(steps[title]["peak_rss_bytes"])
        for file in model.folder.parent.glob(f"*__{plans}__*fold_{fold}/steps.json")
        if title in (steps := read_table(file, remedy, {}, {title: entries(peak_rss_bytes=is_number)}))
    ]
    return max(peaks, default=0) or None
