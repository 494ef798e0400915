"""Adapter files: what a training changed, as safetensors, with what is needed to put it on its base again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from nnunetv2_sam3d.files import write_whole
from nnunetv2_sam3d.weights.errors import WeightsError

KIND = "nnunetv2_sam3d adapter"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class AdapterMetadata:
    """What an adapter file says of itself.

    Attributes:
        variant: SAM's size (``vit_b``, ...), or ``"other"``.
        adapter: ``"original"`` or ``"dualpath"``.
        trainer: class name of the trainer.
        classes: nnU-Net's ``labels`` of the data set.
        channels: nnU-Net's ``channel_names`` of the data set.
        plans_sha256: of the plans, see :func:`plans_sha256`.
        base: record of the file that gave what is frozen: its name, SHA-256 and kind, and where it came from.
        frozen_sha256: of everything in the network that is not in this file, see :func:`tensors_sha256`.
        licence: what is known of the terms.
        checkpoint: the other entries of the checkpoint, without the optimizer's moments.
    """

    variant: str
    adapter: str
    trainer: str
    classes: Mapping[str, Any]
    channels: Mapping[str, Any]
    plans_sha256: str
    base: Mapping[str, Any]
    frozen_sha256: str
    licence: str
    checkpoint: Mapping[str, Any]


# In the file every value is text: these as they are, the others as JSON.
TEXTS = ("variant", "adapter", "trainer", "plans_sha256", "frozen_sha256", "licence")


def is_adapter_file(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a whole safetensors file that says it is of this kind."""
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("kind") == KIND
    except (OSError, SafetensorError):
        return False


def write_adapter(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: AdapterMetadata) -> None:
    """Writes the file whole or not at all.

    Raises:
        OSError: if it cannot be written.
    """
    values = {key: value if key in TEXTS else json.dumps(value) for key, value in asdict(metadata).items()}
    header = {"kind": KIND, "format": str(FORMAT_VERSION)} | values
    content = {name: tensor.contiguous() for name, tensor in tensors.items()}
    header["sha256"] = _content_sha256(content, header)
    write_whole(path, lambda file: file.write(save(content, metadata=header)))


def read_adapter(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], AdapterMetadata]:
    """The tensors of an adapter file and what it says of them.

    Raises:
        WeightsError: if the file is absent, damaged, or of another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"there is no adapter file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()} if header.get("kind") == KIND else None
    except (OSError, SafetensorError) as error:
        raise WeightsError(
            f"{path} ({path.stat().st_size:,} bytes) is no adapter file, or is cut off or damaged ({error}). Adapter "
            f"files are written by: nnUNetv2_sam3d weights export-adapter MODEL -o FILE.safetensors"
        ) from error
    if tensors is None:
        raise WeightsError(
            f"{path} is a safetensors file, but no adapter file. Those are written by: nnUNetv2_sam3d weights "
            f"export-adapter MODEL -o FILE.safetensors"
        )
    if header.get("format") != str(FORMAT_VERSION):
        raise WeightsError(
            f"{path} is an adapter file of format {header.get('format')!r}, this version of nnunetv2_sam3d reads "
            f"{FORMAT_VERSION}. Update it: pip install --upgrade nnunetv2_sam3d"
        )
    if _content_sha256(tensors, header) != header.get("sha256"):
        raise WeightsError(
            f"{path} is damaged: its content is not what was written (the SHA-256 differs). Copy it again."
        )
    return tensors, _metadata(path, header)


def _metadata(path: Path, header: Mapping[str, str]) -> AdapterMetadata:
    fields = AdapterMetadata.__dataclass_fields__
    try:
        values: dict[str, Any] = {name: header[name] if name in TEXTS else json.loads(header[name]) for name in fields}
    except (KeyError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path} is damaged: its description cannot be read ({error})") from error
    for name in fields:
        if name not in TEXTS and not isinstance(values[name], dict):
            raise WeightsError(f"{path} is damaged: {name!r} of its description is no table")
    return AdapterMetadata(**values)


def _content_sha256(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> str:
    """SHA-256 of all that an adapter file holds; safetensors itself notices only wrong sizes."""
    said = json.dumps({key: value for key, value in header.items() if key != "sha256"}, sort_keys=True)
    return hashlib.sha256((tensors_sha256(tensors) + said).encode()).hexdigest()


def tensors_sha256(tensors: Mapping[str, Tensor], names: Iterable[str] | None = None) -> str:
    """SHA-256 of tensors: of each, by name in order, its name, type, shape and bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors if names is None else names):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def plans_sha256(plans: Mapping[str, Any]) -> str:
    """SHA-256 of nnU-Net plans as JSON with sorted keys and without spaces."""
    text = json.dumps(plans, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
