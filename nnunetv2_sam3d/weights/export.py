"""What a training changed, out of a checkpoint into a small file, and back onto its base."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from nnunetv2_sam3d.files import sha256, write_whole
from nnunetv2_sam3d.json_files import read_json
from nnunetv2_sam3d.network_architecture.config import SAM3DConfig, variant_of
from nnunetv2_sam3d.network_architecture.sam3d import SAM3D
from nnunetv2_sam3d.nnunet.descriptions import channel_names
from nnunetv2_sam3d.nnunet.layout import FINAL
from nnunetv2_sam3d.weights.adapter_file import (
    AdapterMetadata,
    plans_sha256,
    read_adapter,
    tensors_sha256,
    write_adapter,
)
from nnunetv2_sam3d.weights.checkpoint_file import write_checkpoint
from nnunetv2_sam3d.weights.errors import WeightsError
from nnunetv2_sam3d.weights.reading import EXPORTED, KINDS, METADATA_KEY, Weights, read_trained, read_weights
from nnunetv2_sam3d.weights.sources import SAM_FILES
from nnunetv2_sam3d.weights.state_dict import part_of
from nnunetv2_sam3d.weights.transfer import load_into

LICENCE = (
    "Not stated by whoever exported this file. It is used together with its base, under the base's terms: SAM's "
    "published weights are Apache-2.0, other files have their authors' terms. The training data may add its own."
)


def export_adapter(
    model: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    fold: str | None = None,
    licence: str | None = None,
) -> AdapterMetadata:
    """Writes what a training changed, without what stayed as its base file gave it.

    Args:
        model: a checkpoint of a SAM3D trainer, its fold's folder, or nnU-Net's folder of a trained model.
        target: the safetensors file to write.
        fold: which fold of a model's folder, needed if it has several.
        licence: the terms of the exported weights, for whoever gets the file.

    Returns:
        the description in the file.

    Raises:
        WeightsError: if the file is no checkpoint of a training, or there is no base that gave its other weights.
        OSError: if the target cannot be written.
    """
    path = checkpoint_of(model, fold)
    if Path(target).resolve() == path.resolve():
        raise WeightsError(f"{path} is both the source and the target; choose another name for the adapter file")
    weights = read_weights(path)
    if weights.kind != "trained" or weights.config is None or "trained" not in weights.metadata:
        raise WeightsError(
            f"{weights.describe()} does not say what was trained. Expected a checkpoint of a SAM3D trainer, for "
            f"instance fold_0/{FINAL}, or the folder of a trained model."
        )
    trained = set(weights.metadata["trained"])
    if unknown := sorted(trained - set(weights.state)):
        raise WeightsError(f"{weights.describe()} is damaged: it lacks the trained weight {unknown[0]!r}")
    base = _base_record(weights, trained)
    entries = _entries(path)
    plans, dataset = entries["init_args"]["plans"], entries["init_args"]["dataset_json"]
    metadata = AdapterMetadata(
        variant=variant_of(weights.config) or "other",
        adapter=weights.config.adapter,
        trainer=entries["trainer_name"],
        classes=dataset["labels"],
        channels=channel_names(dataset),
        plans_sha256=plans_sha256(plans),
        base=base,
        frozen_sha256=tensors_sha256(weights.state, set(weights.state) - trained),
        licence=licence or LICENCE,
        checkpoint=entries,
    )
    write_adapter(target, {name: weights.state[name] for name in sorted(trained)}, metadata)
    return metadata


def merge(
    base: str | os.PathLike[str], adapter: str | os.PathLike[str], target: str | os.PathLike[str]
) -> AdapterMetadata:
    """Writes the checkpoint that an adapter file was exported from, without the optimizer's moments.

    Its weights are those of the checkpoint bit for bit: both what the adapter file holds and what the base gives are
    compared with the SHA-256 of the export. The comparison is of weights, not of files: a base that gives the same
    values from another file, such as one that was itself merged, is the same base.

    Args:
        base: the file that gave what stayed frozen, see :attr:`AdapterMetadata.base`.
        adapter: the file of :func:`export_adapter`.
        target: the checkpoint to write. In a ``fold_k`` folder, the model's ``plans.json`` and ``dataset.json`` are put
            beside that folder if they are not there, so that nnU-Net can predict with it.

    Raises:
        WeightsError: for another base, a damaged file, or a target folder of another model; nothing is then written.
        OSError: if the target cannot be written.
    """
    base, adapter, target = Path(base), Path(adapter), Path(target)
    if target.resolve() in (base.resolve(), adapter.resolve()):
        raise WeightsError(f"{target} is both a source and the target; choose another name for the checkpoint")
    tensors, metadata = read_adapter(adapter)
    entries = _restored(adapter, metadata)
    beside = _model_files(target, entries["init_args"], metadata)
    config = _network_of(adapter, entries[METADATA_KEY]["network"], tensors)
    weights = read_weights(base)
    network = SAM3D(config)
    try:
        load_into(network, weights)
    except WeightsError as error:
        raise WeightsError(f"{base} is not the base of {adapter}: {error} {_wanted(metadata)}") from error
    state = network.state_dict()
    if tensors_sha256(state, set(state) - set(tensors)) != metadata.frozen_sha256:
        raise WeightsError(
            f"{weights.describe()} is not the base of {adapter}: what it gives is not what the adapter stands on "
            f"(SHA-256 of the file {sha256(base)}). {_wanted(metadata)}"
        )
    state.update(tensors)
    write_checkpoint(entries | {"network_weights": state}, target)
    for path, content in beside.items():
        write_whole(path, partial(_write_json, content))
    return metadata


def checkpoint_of(model: str | os.PathLike[str], fold: str | None = None) -> Path:
    """The checkpoint of a trained model: the file itself, or the final one in a fold's or a model's folder.

    Raises:
        WeightsError: if there is none, or more than one to choose from.
    """
    path = Path(model)
    if not path.is_dir():
        return path  # reading says what is wrong with it
    found = [path / FINAL] if (path / FINAL).is_file() else sorted(path.glob(f"fold_{fold or '*'}/{FINAL}"))
    if len(found) == 1:
        return found[0]
    if not found:
        raise WeightsError(
            f"{path} holds no {FINAL}" + (f" of fold {fold}" if fold else "") + ". Expected nnU-Net's folder of a "
            "finished model (TRAINER__PLANS__CONFIGURATION), or a checkpoint of it."
        )
    folds = ", ".join(file.parent.name.removeprefix("fold_") for file in found)
    raise WeightsError(f"{path} holds the folds {folds}; each has weights of its own. Choose one with --fold.")


def _base_record(weights: Weights, trained: set[str]) -> dict[str, Any]:
    """Where everything that was not trained came from."""
    assert weights.config is not None
    with torch.device("meta"):
        frozen = [name for name, _ in SAM3D(weights.config).named_parameters() if name not in trained]
    provenance = weights.metadata.get("provenance", {})
    records = {record["sha256"]: record for name in frozen if "sha256" in (record := provenance.get(part_of(name), {}))}
    if not frozen:
        raise WeightsError(
            f"{weights.describe()} has no base: every weight was trained, so an adapter file would be the whole model. "
            f"Write the model without the optimizer's state instead: "
            f"nnUNetv2_sam3d weights convert {weights.path} -o model.pth"
        )
    sources = ", ".join(str(record["file"]) for record in records.values())
    if not trained:
        raise WeightsError(
            f"{weights.describe()} trained nothing: all its weights are those of {sources or 'its start'}. Export "
            f"or share that file."
        )
    if len(records) != 1:
        raise WeightsError(
            f"{weights.describe()} has frozen weights from {sources or 'an unknown file'}; an adapter file stands on "
            f"exactly one base. Share the whole model: nnUNetv2_sam3d weights convert {weights.path} -o model.pth"
        )
    return _without_folders(next(iter(records.values())))


def _entries(path: Path) -> dict[str, Any]:
    """The checkpoint's entries beside weights and the optimizer's moments, as plain JSON."""
    content = read_trained(path, wanted=EXPORTED)
    entries = {key: value for key, value in content.items() if key != "network_weights"}
    entries["optimizer_state"] = {"state": {}, "param_groups": content["optimizer_state"]["param_groups"]}
    entries[METADATA_KEY] = _without_folders(content[METADATA_KEY])
    try:
        return json.loads(json.dumps(entries, default=_plain))
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{path} holds an entry that is neither weights nor plain values: {error}") from error


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, torch.device):
        return str(value)
    raise TypeError(f"{type(value).__name__} {value!r}")


def _restored(adapter: Path, metadata: AdapterMetadata) -> dict[str, Any]:
    """The checkpoint's entries with the types that JSON does not have."""
    try:
        entries = dict(metadata.checkpoint)
        entries["init_args"] = entries["init_args"] | {"device": torch.device(entries["init_args"]["device"])}
        if entries["inference_allowed_mirroring_axes"] is not None:
            entries["inference_allowed_mirroring_axes"] = tuple(entries["inference_allowed_mirroring_axes"])
        if not isinstance(entries[METADATA_KEY]["network"], Mapping):
            raise ValueError("it does not describe the network")
        if plans_sha256(entries["init_args"]["plans"]) != metadata.plans_sha256:
            raise ValueError("the plans are not those whose SHA-256 it gives")
        return entries
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise WeightsError(f"{adapter} is damaged: its description of the checkpoint is wrong ({error})") from error


def _network_of(adapter: Path, sizes: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> SAM3DConfig:
    """The network that an adapter file describes, found to be one that its tensors fit."""
    try:
        config = SAM3DConfig.from_dict(sizes)
        with torch.device("meta"):  # a wrong size must not cost memory
            shapes = {name: (value.shape, value.dtype) for name, value in SAM3D(config).state_dict().items()}
    except (ValueError, TypeError, RuntimeError) as error:
        raise WeightsError(f"{adapter} is damaged: its description of the network is wrong ({error})") from error
    for name, tensor in tensors.items():
        if shapes.get(name) != (tensor.shape, tensor.dtype):
            raise WeightsError(f"{adapter} is damaged: {name!r} does not fit the network that it describes")
    return config


def _model_files(target: Path, init_args: Mapping[str, Any], metadata: AdapterMetadata) -> dict[Path, Any]:
    """nnU-Net's files of the model's folder that are missing there, if the target is in one of its folds."""
    if not target.absolute().parent.name.startswith("fold_"):
        return {}
    folder = target.absolute().parent.parent
    plans = folder / "plans.json"
    if plans.is_file():
        try:
            same = plans_sha256(read_json(plans)) == metadata.plans_sha256
        except ValueError:
            same = False
        if not same:
            raise WeightsError(
                f"{plans} are the plans of another model (SHA-256 of the right ones: {metadata.plans_sha256}); "
                f"nnU-Net would predict wrongly with them. Write the checkpoint into a folder of its own."
            )
    wanted = {plans: init_args["plans"], folder / "dataset.json": init_args["dataset_json"]}
    return {path: content for path, content in wanted.items() if not path.exists()}


def _write_json(content: Any, file: BinaryIO) -> None:
    file.write(json.dumps(content, indent=4).encode())


def _wanted(metadata: AdapterMetadata) -> str:
    """Which file the base is, and how to get it where that is known."""
    base = metadata.base
    text = (
        f"The base is {base.get('file')} ({KINDS.get(str(base.get('kind')), 'of an unknown kind')}, "
        f"SHA-256 {base.get('sha256')})"
    )
    for variant, published in SAM_FILES.items():
        if published.sha256 == base.get("sha256"):
            return f"{text}: nnUNetv2_sam3d weights fetch {variant}"
    return f"{text}, or a file that gives the same weights."


def _without_folders(value: Any) -> Any:
    """Records of files by their names alone: folders of this machine mean nothing on another."""
    if not isinstance(value, Mapping):
        return value
    return {
        key: Path(item).name if key == "file" and isinstance(item, str) else _without_folders(item)
        for key, item in value.items()
    }
