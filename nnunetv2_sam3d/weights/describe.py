"""What a weights file holds, for people."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch

from nnunetv2_sam3d.network_architecture.config import SAM3DConfig, variant_of
from nnunetv2_sam3d.network_architecture.sam3d import SAM3D
from nnunetv2_sam3d.weights.adapter_file import is_adapter_file, read_adapter
from nnunetv2_sam3d.weights.errors import WeightsError
from nnunetv2_sam3d.weights.reading import KINDS, METADATA_KEY, Weights, network_from, read_weights
from nnunetv2_sam3d.weights.state_dict import PARTS, encoder_sizes, part_of


def describe(path: str | os.PathLike[str]) -> str:
    """Kind, network, parameter counts by part (trained and frozen where known) and provenance of a file.

    Raises:
        WeightsError: if the file cannot be read.
    """
    if is_adapter_file(path):
        return _describe_adapter(path)
    weights = read_weights(path)
    lines = [f"{weights.path}: {KINDS[weights.kind]}"]
    if weights.config is None:
        sizes = encoder_sizes(weights.state)
        lines += _table(f"image encoder ({variant_of(sizes) or 'no published size'})", sizes)
    else:
        network_from(weights)  # checks that the file holds what it describes
        # the bottleneck as it is, not as it may be left to the width
        lines += _table("network", weights.config.to_dict() | {"adapter_dim": weights.config.bottleneck})
        if "repeat" in weights.metadata:
            lines += [f"trained as repeat {weights.metadata['repeat']} with seed {weights.metadata.get('seed')}"]
    if weights.outputs is not None and weights.outputs.names:
        lines += [f"channels: {', '.join(weights.outputs.names)}"]
    for name, channel in (weights.metadata.get("map_class") or {}).items():
        lines += [f"for a data set with {name!r}: channel {channel}"]
    lines += ["parameters:", *_counts(weights)]
    lines += ["where the weights came from:", *_provenance(weights.metadata.get("provenance", {}), "  ")]
    if "provenance" not in weights.metadata:
        lines.append("  the file does not say")
    return "\n".join(lines)


def _describe_adapter(path: str | os.PathLike[str]) -> str:
    tensors, metadata = read_adapter(path)
    base = metadata.base
    counts = Counter[str]()
    for name, tensor in tensors.items():
        counts[part_of(name)] += tensor.numel()
    classes = ", ".join(f"{name} ({value})" for name, value in metadata.classes.items())
    lines = [
        f"{path}: an adapter file, to be put on its base: nnUNetv2_sam3d weights merge BASE {path} -o CHECKPOINT",
        f"base: {base.get('file')} ({base.get('kind')}, SHA-256 {base.get('sha256')})",
        *_provenance(base.get("made_from", {}), "  "),
        f"size: {metadata.variant}, {metadata.adapter} adapters, trained with {metadata.trainer}",
        f"channels: {', '.join(str(name) for name in metadata.channels.values())}",
        f"classes: {classes}",
        f"SHA-256 of the plans: {metadata.plans_sha256}",
        f"licence: {metadata.licence}",
        *_table("network", metadata.checkpoint[METADATA_KEY]["network"]),
        "trained parameters:",
    ]
    counts["all"] = sum(counts.values())
    return "\n".join(lines + [f"  {part:<24} {counts[part]:>12,}" for part, _ in [*PARTS, ("all", 0)] if counts[part]])


def _table(title: str, values: Mapping[str, Any]) -> list[str]:
    return [f"{title}:", *(f"  {key}: {value}" for key, value in values.items())]


def _counts(weights: Weights) -> list[str]:
    buffers = buffer_names(weights.config) if weights.config else set()
    total, trained = Counter[str](), Counter[str]()
    names = set(weights.metadata.get("trained", ()))
    if unknown := [name for name in weights.state if not any(pattern.fullmatch(name) for _, pattern in PARTS)]:
        raise WeightsError(f"{weights.describe()} holds the unknown weight {unknown[0]!r}")
    for name, tensor in weights.state.items():
        if name not in buffers:
            total[part_of(name)] += tensor.numel()
            trained[part_of(name)] += tensor.numel() if name in names else 0
    known = weights.kind == "trained"
    rows = [(part, total[part], trained[part]) for part, _ in PARTS if total[part]]
    rows.append(("all", sum(total.values()), sum(trained.values())))
    return [
        f"  {part:<24} {count:>12,}" + (f"   {given:>12,} trained  {count - given:>12,} frozen" if known else "")
        for part, count, given in rows
    ]


def buffer_names(config: SAM3DConfig) -> set[str]:
    """Names in a state dict that are no parameters."""
    with torch.device("meta"):
        return {name for name, _ in SAM3D(config).named_buffers()}


def _provenance(parts: Mapping[str, Any], indent: str) -> list[str]:
    """One line a source; parts of the same source share it, and its own sources follow indented."""
    lines, sources = [], dict[str, tuple[list[str], Mapping[str, Any]]]()
    for part, record in parts.items():
        sources.setdefault(str(record.get("sha256", "random")), ([], record))[0].append(part)
    for names, record in sources.values():
        where = (
            f"{record['file']} ({record['kind']}, SHA-256 {record['sha256']})"
            if "file" in record
            else "random initialisation"
        )
        lines.append(f"{indent}{', '.join(names)}: {where}")
        if "made_from" in record:
            lines += _provenance(record["made_from"], indent + "  ")
    return lines


def training_seconds(checkpoint: dict) -> float:
    """Time of all epochs of a training, from nnU-Net's log in its checkpoint."""
    log = checkpoint["logging"]
    return float(
        sum(end - start for start, end in zip(log["epoch_start_timestamps"], log["epoch_end_timestamps"], strict=False))
    )


def parameters(checkpoint: dict) -> tuple[int, int]:
    """Trained and all parameters; tensors that appear under two names (nnU-Net's decoder) count once."""
    weights = checkpoint["network_weights"]
    if METADATA_KEY in checkpoint:
        buffers = buffer_names(SAM3DConfig.from_dict(checkpoint[METADATA_KEY]["network"]))
        total = sum(tensor.numel() for name, tensor in weights.items() if name not in buffers)
        return sum(weights[name].numel() for name in checkpoint[METADATA_KEY]["trained"]), total
    # a stock trainer trains everything; nnU-Net's networks have no buffers
    total = sum({tensor.data_ptr(): tensor.numel() for tensor in weights.values()}.values())
    return total, total
