"""Whole models: load one for use, write a converted one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from nnunetv2_sam3d.network_architecture import SAM3D
from nnunetv2_sam3d.weights.errors import WeightsError
from nnunetv2_sam3d.weights.files import write_checkpoint
from nnunetv2_sam3d.weights.reading import FORMAT_VERSION, METADATA_KEY, Weights, read_weights
from nnunetv2_sam3d.weights.transfer import in_short, misfits


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
