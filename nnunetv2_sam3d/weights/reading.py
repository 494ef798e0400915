"""What a weights file is, told from its content."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnunetv2_sam3d.network_architecture import SAM3DConfig
from nnunetv2_sam3d.weights.adapter_file import is_adapter_file
from nnunetv2_sam3d.weights.errors import WeightsError
from nnunetv2_sam3d.weights.files import read_checkpoint, sha256
from nnunetv2_sam3d.weights.reference import config_from_shapes, convert_reference, is_reference_checkpoint
from nnunetv2_sam3d.weights.sam import convert_sam, is_sam_checkpoint

# Beside nnU-Net's own entries in a checkpoint of ours, and beside "network_weights" in a converted file.
METADATA_KEY = "sam3d"
FORMAT_VERSION = 1

KINDS = {
    "sam": "a SAM checkpoint",
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
        stride_known: whether the file says its token stride; 3DSAM-adapter checkpoints do not.
    """

    path: Path
    kind: str
    state: dict[str, Tensor]
    config: SAM3DConfig | None
    metadata: dict[str, Any] = field(default_factory=dict)
    stride_known: bool = False

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
        path: SAM ``.pth``, 3DSAM-adapter ``.pth.tar``, a converted file or a checkpoint of the SAM3D trainers.
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
    odd = [key for key, tensor in weights.state.items() if not torch.is_tensor(tensor)]
    if odd:
        raise WeightsError(f"{weights.describe()} is damaged: the weight {odd[0]!r} is no tensor")
    bad = [key for key, tensor in weights.state.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if bad:
        raise WeightsError(
            f"{weights.describe()} holds NaN or infinite values in {len(bad)} weights, the first is "
            f"{bad[0]!r}. A training that diverged wrote it; use an earlier checkpoint."
        )
    return weights


def _interpret(path: Path, content: Any, automatic: bool) -> Weights:
    if is_reference_checkpoint(content):
        state, config = convert_reference(content, automatic=automatic)
        return Weights(path, "3dsam-adapter", state, config)
    if is_sam_checkpoint(content):
        return Weights(path, "sam", convert_sam(content), None)
    if isinstance(content, Mapping) and "network_weights" in content:
        metadata = content.get(METADATA_KEY)
        if not isinstance(metadata, Mapping) or "network" not in metadata:
            raise WeightsError(
                "this is an nnU-Net checkpoint of another network "
                f"(trainer {content.get('trainer_name', 'unknown')!r}), not of a SAM3D trainer. Expected "
                f"{', '.join(KINDS.values())}."
            )
        if metadata.get("format", FORMAT_VERSION) > FORMAT_VERSION:
            raise WeightsError(
                f"the file has format {metadata['format']}, this version of nnunetv2_sam3d reads up to "
                f"{FORMAT_VERSION}. Update it: pip install --upgrade nnunetv2_sam3d"
            )
        try:
            config = SAM3DConfig.from_dict(metadata["network"])
        except (ValueError, TypeError) as error:
            raise WeightsError(f"the description of the network is damaged: {error}") from error
        if not isinstance(content["network_weights"], Mapping):
            raise WeightsError("'network_weights' is no table of weights; the file is damaged")
        state = dict(content["network_weights"])
        if automatic and config.prompt_encoder:
            state = {key: value for key, value in state.items() if not key.startswith("prompt_encoder.")}
            config = replace(config, prompt_encoder=False)
        kind = "trained" if "trainer_name" in content else "converted"
        return Weights(path, kind, state, config, dict(metadata), stride_known=True)
    raise WeightsError(f"the content is of no known kind ({_summary(content)}). Expected {', '.join(KINDS.values())}.")


def _summary(content: Any) -> str:
    if isinstance(content, Mapping):
        keys = [str(key) for key in list(content)[:4]]
        return f"a table of {len(content)} entries: {', '.join(keys)}{', ...' if len(content) > 4 else ''}"
    return f"a {type(content).__name__}" + (f" of shape {tuple(content.shape)}" if torch.is_tensor(content) else "")


__all__ = ["FORMAT_VERSION", "KINDS", "METADATA_KEY", "Weights", "config_from_shapes", "read_weights"]
