"""Whole models: load one for use, write a converted one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from nnunetv2_sam3d.network_architecture import SAM3D
from nnunetv2_sam3d.weights.errors import WeightsError
from nnunetv2_sam3d.weights.files import write_checkpoint
from nnunetv2_sam3d.weights.reading import FORMAT_VERSION, METADATA_KEY, Weights, read_weights


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


def network_from(weights: Weights) -> SAM3D:
    """A network of the file's sizes with the file's weights.

    Raises:
        WeightsError: if the file has only a part of the network, or weights that do not belong to it.
    """
    if weights.config is None:
        raise WeightsError(
            f"{weights.describe()} holds the image encoder only, not a whole model. Train with it: "
            f"export nnUNet_sam_checkpoint={weights.path}"
        )
    network = SAM3D(weights.config)
    try:
        network.load_state_dict(weights.state)
    except RuntimeError as error:
        raise WeightsError(f"{weights.describe()} does not hold the network it describes: {error}") from error
    return network


def convert(
    source: str | os.PathLike[str], target: str | os.PathLike[str], *, automatic: bool = False
) -> dict[str, Any]:
    """Writes a whole model as a file that ``-pretrained_weights`` and :func:`load_model` take.

    Args:
        source: a 3DSAM-adapter checkpoint or a file of ours.
        target: the file to write; an existing one is replaced only when the new one is complete.
        automatic: leave the prompt encoder out.

    Returns:
        the metadata written beside the weights.

    Raises:
        WeightsError: if the source is no whole model.
        OSError: if the target cannot be written.
    """
    if Path(source).resolve() == Path(target).resolve():
        raise WeightsError(f"source and target are the same file, {source}")
    weights = read_weights(source, automatic=automatic)
    network = network_from(weights)  # checks that it is complete
    metadata = {
        "format": FORMAT_VERSION,
        "network": network.config.to_dict(),
        "provenance": {"all parts": weights.provenance()},
    }
    write_checkpoint({"network_weights": network.state_dict(), METADATA_KEY: metadata}, target)
    return metadata
