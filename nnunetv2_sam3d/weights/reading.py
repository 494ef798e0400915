"""What a weights file is, told from its content."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnunetv2_sam3d.files import sha256
from nnunetv2_sam3d.json_files import Form, complaint_of, entries, is_table, is_text, list_of, table_of
from nnunetv2_sam3d.messages import shown
from nnunetv2_sam3d.network_architecture.adapters import CONVEX_GATE, check_adapter, has_convex_gate
from nnunetv2_sam3d.network_architecture.config import SAM3DConfig
from nnunetv2_sam3d.network_architecture.sam3d import SAM3D
from nnunetv2_sam3d.weights.adapter_file import is_adapter_file
from nnunetv2_sam3d.weights.channels import OutputChannels
from nnunetv2_sam3d.weights.checkpoint_file import read_checkpoint, write_checkpoint
from nnunetv2_sam3d.weights.class_map import check_class_map
from nnunetv2_sam3d.weights.errors import WeightsError
from nnunetv2_sam3d.weights.sam import IN_SAM, convert_sam, find_sam
from nnunetv2_sam3d.weights.sam3d_adapter import convert_reference, is_reference_checkpoint
from nnunetv2_sam3d.weights.state_dict import as_state, check_encoder, depth_of, in_short, misfits

# Beside nnU-Net's own entries in a checkpoint of ours, and beside "network_weights" in a converted file.
METADATA_KEY = "sam3d"
FORMAT_VERSION = 1
KINDS = {
    "sam": "a SAM checkpoint",
    "converted-sam": "a converted SAM encoder",
    "3dsam-adapter": "a 3DSAM-adapter checkpoint",
    "converted": "a converted 3DSAM-adapter checkpoint",
    "trained": "a checkpoint of a SAM3D trainer",
}


@dataclass
class Weights:
    """The weights of a file under our names.

    Attributes:
        path: the file.
        kind: a key of ``KINDS``.
        state: tensors by name.
        config: sizes of the network; ``None`` if the file has the SAM encoder only.
        metadata: what the file says of itself (trainer, provenance), for files of ours.
        outputs: meaning of the logits' channels; ``None`` if the file does not say.
        stride_known: whether the file says its token stride; 3DSAM-adapter checkpoints do not.
        mirror_axes: axes (0, 1, 2 for D, H, W) that nnU-Net mirrors in prediction, in a trainer's checkpoint.
    """

    path: Path
    kind: str
    state: dict[str, Tensor]
    config: SAM3DConfig | None
    metadata: dict[str, Any] = field(default_factory=dict)
    outputs: OutputChannels | None = None
    stride_known: bool = False
    mirror_axes: tuple[int, ...] = ()

    def describe(self) -> str:
        """File and kind, the beginning of a sentence."""
        return f"{self.path} ({KINDS[self.kind]})"

    def provenance(self) -> dict[str, Any]:
        """Where these weights came from, for a checkpoint's record; hashes the file."""
        record = {"file": str(self.path.absolute()), "sha256": sha256(self.path), "kind": self.kind}
        if "provenance" in self.metadata:
            record["made_from"] = self.metadata["provenance"]
        return record


def read_weights(path: str | os.PathLike[str], *, automatic: bool = False) -> Weights:
    """Reads a weights file of any supported kind.

    Args:
        path: SAM or MedSAM ``.pth``, the same from Hugging Face (``model.safetensors``, ``pytorch_model.bin``),
            3DSAM-adapter or 3DMedSAM-FDA ``.pth.tar``, a converted file or a checkpoint of the SAM3D trainers.
        automatic: leave a 3DSAM-adapter checkpoint's prompt encoder out.

    Raises:
        WeightsError: if the file cannot be read safely, is of no known kind, or has weights that are not numbers.
    """
    path = Path(path)
    if is_adapter_file(path):
        raise WeightsError(
            f"{path} is an adapter file: it holds only what was trained. Put it on its base first: "
            f"nnUNetv2_sam3d weights merge BASE {path} -o CHECKPOINT (nnUNetv2_sam3d weights inspect names the base)"
        )
    content = read_checkpoint(path)
    try:
        weights = _interpret(path, content, automatic)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    if bad := [key for key, tensor in weights.state.items() if not tensor.isfinite().all()]:
        raise WeightsError(
            f"{weights.describe()} holds NaN or infinite values in {len(bad)} weights, the first is "
            f"{bad[0]!r}. A training that diverged wrote it; use an earlier checkpoint."
        )
    return weights


def read_trained(
    path: str | os.PathLike[str], *, wanted: Mapping[str, Form] | None = None, says_trained: bool = True
) -> dict[str, Any]:
    """The content of a checkpoint that a training wrote, nnU-Net's own trainers included, after a look at its entries.

    Args:
        path: of nnU-Net's ``checkpoint_final.pth`` or the like.
        wanted: entries that it must have beside its weights, such as :data:`EXPORTED`.
        says_trained: whether a checkpoint of ours must say which of its weights were trained.

    Raises:
        WeightsError: as :func:`read_weights`, and if an entry is not what trainings write.
    """
    path = Path(path)
    content = read_checkpoint(path)
    complaint = complaint_of(content, {"network_weights": table_of(_is_tensor), **(wanted or {})}, TRAINED)
    if not complaint and METADATA_KEY in content:
        try:
            weights = _interpret(path, content, automatic=False)
        except WeightsError as error:
            raise WeightsError(f"{path}: {error}") from error
        trained = weights.metadata.get("trained", None if says_trained else ())
        if trained is None or not set(trained) <= set(content["network_weights"]):
            complaint = "it does not say which of its weights were trained"
    if complaint:
        raise WeightsError(f"{path} is damaged, or no checkpoint of a training: {complaint}. Use another copy of it")
    return content


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def _is_figure(value: Any) -> bool:
    return isinstance(value, int | float | np.number)


_PATHS = list_of(list_of(entries(gate_mean=_is_figure, gate_sd=_is_figure, local_share=_is_figure)))
_LOGGING = {
    "train_losses": list_of(_is_figure),
    "epoch_start_timestamps": list_of(_is_figure),
    "epoch_end_timestamps": list_of(_is_figure),
    "adapter_paths": _PATHS,
}
_DESCRIBED = entries(plans=entries(configurations=table_of(is_table)), configuration=is_text)
# entries of checkpoints that are looked at, as far as they are there
TRAINED: Mapping[str, Form] = {
    "logging": lambda value: not complaint_of(value, {}, _LOGGING),
    "init_args": lambda value: is_table(value) and ("plans" not in value or _DESCRIBED(value)),
}
# what an adapter file is made of
EXPORTED: Mapping[str, Form] = {
    "trainer_name": is_text,
    "optimizer_state": entries(param_groups=list_of(is_table)),
    "init_args": lambda value: _DESCRIBED(value) and entries(dataset_json=entries(labels=is_table))(value),
}


def _interpret(path: Path, content: Any, automatic: bool) -> Weights:
    if is_reference_checkpoint(content):
        state, config = convert_reference(content, automatic=automatic)
        return Weights(path, "3dsam-adapter", state, config, outputs=OutputChannels((), regions=False))
    if (sam := find_sam(content)) is not None:
        state = convert_sam(sam)
        check_encoder(state)
        return Weights(path, "sam", state, None)
    if isinstance(content, Mapping) and "network_weights" in content:
        return _ours(path, content, automatic)
    raise WeightsError(f"the content is of no known kind ({_summary(content)}). Expected {', '.join(KINDS.values())}.")


def _ours(path: Path, content: Mapping[str, Any], automatic: bool) -> Weights:
    """A checkpoint of nnU-Net's form: a SAM3D trainer's or a converted file."""
    metadata = content.get(METADATA_KEY)
    if not isinstance(metadata, Mapping) or "network" not in metadata:
        raise WeightsError(
            "this is an nnU-Net checkpoint of another network "
            f"(trainer {shown(content.get('trainer_name', 'unknown'))}), not of a SAM3D trainer; nnUNetv2_predict "
            f"predicts with it. Expected {', '.join(KINDS.values())}."
        )
    _check_metadata(metadata)
    outputs = OutputChannels.from_dict(metadata["outputs"]) if metadata.get("outputs") is not None else None
    state = as_state(content["network_weights"], "'network_weights'")
    if metadata["network"] is None:
        if odd := [key for key in state if not IN_SAM.fullmatch(key)]:
            raise WeightsError(f"the file describes SAM's encoder and holds {odd[0]!r}, too; it is damaged")
        check_encoder(state)
        return Weights(path, "converted-sam", state, None, dict(metadata))
    if has_convex_gate(state):
        raise WeightsError(CONVEX_GATE)
    try:
        config = SAM3DConfig.from_dict(metadata["network"])
        check_adapter(config.adapter)
    except (ValueError, TypeError) as error:
        raise WeightsError(f"the description of the network is damaged: {str(error):.300}") from error
    if config.depth != depth_of(state):  # a network that is built from it must not be of any size
        raise WeightsError(f"the file describes {config.depth} blocks and holds {depth_of(state)}; it is damaged")
    if automatic and config.prompt_encoder:
        state = {key: value for key, value in state.items() if not key.startswith("prompt_encoder.")}
        config = replace(config, prompt_encoder=False)
    kind = "trained" if "trainer_name" in content else "converted"
    mirror_axes = _mirror_axes(content.get("inference_allowed_mirroring_axes"))
    return Weights(path, kind, state, config, dict(metadata), outputs, stride_known=True, mirror_axes=mirror_axes)


def _mirror_axes(axes: Any) -> tuple[int, ...]:
    """Axes as nnU-Net notes them, ``None`` for none; WeightsError for anything else."""
    if axes is None:
        return ()
    if not isinstance(axes, list | tuple) or not all(type(axis) is int and axis in (0, 1, 2) for axis in axes):
        raise WeightsError(f"its axes for mirroring are {shown(axes)}, expected some of 0, 1, 2; it is damaged")
    return tuple(axes)


def _check_metadata(metadata: Mapping[str, Any]) -> None:
    """Raises WeightsError for metadata of a newer version, or that nobody wrote like this."""
    version = metadata.get("format", FORMAT_VERSION)
    if type(version) is int and version > FORMAT_VERSION:
        raise WeightsError(
            f"the file has format {version}, this version of nnunetv2_sam3d reads up to "
            f"{FORMAT_VERSION}. Update it: pip install --upgrade nnunetv2_sam3d"
        )
    trained = metadata.get("trained", [])
    if (
        type(version) is not int
        or not _is_provenance(metadata.get("provenance", {}))
        or not isinstance(trained, list)
        or not all(isinstance(name, str) for name in trained)
    ):
        raise WeightsError("what the file says of itself is damaged; use a copy that is not")
    try:
        check_class_map(metadata.get("map_class") or {})
    except ValueError as error:
        raise WeightsError(f"what the file says of itself is damaged: {error}") from error


def _is_provenance(parts: Any) -> bool:
    """Whether it is a table of records, each with the file it names and that file's own provenance."""
    level = {id(parts): parts}
    for _ in range(20):  # files that were made from files; a damaged record may hold itself
        records: list[Any] = []
        for table in level.values():
            if not isinstance(table, Mapping) or not all(isinstance(part, str) for part in table):
                return False
            records += table.values()
        if not all(
            isinstance(record, Mapping) and ("file" not in record or {"kind", "sha256"} <= set(record))
            for record in records
        ):
            return False
        level = {id(record["made_from"]): record["made_from"] for record in records if "made_from" in record}
        if not level:
            return True
    return False


def _summary(content: Any, levels: int = 3) -> str:
    """What a file holds; of tables within it, too, as nearly all files have their weights in one."""
    if isinstance(content, Mapping):
        entries = [f"{shown_key(key)}{_inside(value, levels)}" for key, value in islice(content.items(), 4)]
        return f"a table of {len(content)} entries: {', '.join(entries)}{', ...' if len(content) > 4 else ''}"
    return f"a {type(content).__name__}" + (f" of shape {tuple(content.shape)}" if isinstance(content, Tensor) else "")


def _inside(value: Any, levels: int) -> str:
    return f" ({_summary(value, levels - 1)})" if levels > 1 and isinstance(value, Mapping) and value else ""


def shown_key(key: Any) -> str:
    """A name as it is, up to 60 letters; of anything else a short form."""
    return f"{key:.60}" if isinstance(key, str) else shown(key)


def load_model(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> SAM3D:
    """The network of a converted file, a 3DSAM-adapter checkpoint or a checkpoint of the SAM3D trainers.

    Args:
        path: the file.
        device: where the network goes.

    Returns:
        the network in evaluation mode; ``network(image, points=None)`` gives logits, see :class:`SAM3D`.

    Raises:
        WeightsError: if the file is no whole model, or damaged.

    Example:
        >>> network = load_model("original.pth")
        >>> logits = network(torch.zeros(1, 1, 128, 128, 128), points=torch.tensor([[[64.0, 60.0, 71.0]]]))
    """
    weights = read_weights(path)
    network = network_from(weights)
    return network.to(device).eval()


def network_from(weights: Weights, precision: str = "float32") -> SAM3D:
    """A network of the file's sizes with the file's weights.

    Args:
        weights: of a whole model.
        precision: of its products on CPUs, see :class:`SAM3D`.

    Raises:
        WeightsError: if the file has only a part of the network, or weights that do not belong to it.
    """
    if weights.config is None:
        raise WeightsError(
            f"{weights.describe()} holds the image encoder only, not a whole model. Train with it: "
            f"export nnUNet_sam_checkpoint={weights.path}"
        )
    with torch.device("meta"):  # shapes only: a damaged description costs no memory
        try:
            network = SAM3D(weights.config, precision)
        except (RuntimeError, OverflowError, TypeError, ValueError) as error:
            raise WeightsError(f"{weights.describe()} describes an impossible network: {error}") from error
    target = network.state_dict()
    missing = [f"{key} (missing)" for key in target if key not in weights.state]
    if different := missing + misfits(weights.state, target):
        raise WeightsError(f"{weights.describe()} does not hold the network it describes: {in_short(different)}")
    network.load_state_dict(weights.state, assign=True)
    return network


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    automatic: bool = False,
    class_map: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Writes a file's weights as one that ``-pretrained_weights`` takes, and :func:`load_model` if it is a whole model.

    Args:
        source: a SAM file, a 3DSAM-adapter checkpoint or a file of ours.
        target: the file to write; an existing one is replaced only when the new one is complete.
        automatic: leave the prompt encoder out.
        class_map: noted in the file, for data sets of other classes, see :func:`load_into`.

    Returns:
        the metadata written beside the weights; ``"network"`` is ``None`` for SAM's encoder.

    Raises:
        WeightsError: if the source cannot be used.
        OSError: if the target cannot be written.
    """
    if Path(source).resolve() == Path(target).resolve():
        raise WeightsError(f"source and target are the same file, {source}")
    weights = read_weights(source, automatic=automatic)
    if weights.config is None and (automatic or class_map):
        raise WeightsError(f"{weights.describe()} holds the image encoder only: no prompt encoder, no classes")
    if weights.config is not None and class_map and max(class_map.values()) >= weights.config.num_classes:
        raise WeightsError(
            f"{weights.describe()} has the output channels 0 to {weights.config.num_classes - 1}; not all of "
            f"{class_map} can be taken from it"
        )
    metadata = {
        "format": FORMAT_VERSION,
        "network": None if weights.config is None else weights.config.to_dict(),
        "provenance": {"all parts": weights.provenance()},
    }
    if weights.outputs is not None:
        metadata["outputs"] = weights.outputs.to_dict()
    if class_map := class_map or weights.metadata.get("map_class"):
        metadata["map_class"] = dict(class_map)
    state = weights.state if weights.config is None else network_from(weights).state_dict()  # checked to be complete
    write_checkpoint({"network_weights": state, METADATA_KEY: metadata}, target)
    return metadata
