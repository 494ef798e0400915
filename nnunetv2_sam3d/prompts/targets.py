"""What is clicked on, in nnU-Net's training targets and in logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import Tensor

from nnunetv2_sam3d.nnunet.labels import TUMOUR_NAMES, find_target


@dataclass(frozen=True)
class ClickTarget:
    """The structures that clicks are on, as one.

    Attributes:
        name: for people.
        labels: values in the segmentation.
        channels: of the logits, and of the training target if that has regions.
        manager: what the channels mean, and which voxels count.
    """

    name: str
    labels: tuple[int, ...]
    channels: tuple[int, ...]
    manager: LabelManager

    def masks(self, target: np.ndarray) -> np.ndarray:
        """Where a training target, (B, 1, D, H, W) or (B, regions, D, H, W), shows it: bool, (B, D, H, W)."""
        if self.manager.has_regions:
            return target[:, list(self.channels)].astype(bool).max(1)
        return np.isin(target[:, 0], self.labels)

    def ignored(self, target: np.ndarray) -> np.ndarray:
        """Which voxels of a training target say nothing: bool, (B, D, H, W)."""
        if not self.manager.has_ignore_label:
            return np.zeros((len(target), *target.shape[2:]), bool)
        # nnU-Net appends the ignored voxels to the regions
        return target[:, -1].astype(bool) if self.manager.has_regions else target[:, 0] == self.manager.ignore_label

    def predicted(self, logits: Tensor) -> np.ndarray:
        """Where logits (B, classes, D, H, W) show it: bool, (B, D, H, W)."""
        if self.manager.has_regions:
            mask = (logits[:, list(self.channels)] > 0).any(1)
        else:
            mask = torch.isin(logits.argmax(1), torch.tensor(self.channels, device=logits.device))
        return mask.cpu().numpy()


def click_target(labels: Mapping[str, Any], manager: LabelManager, wanted: Sequence[str] | None = None) -> ClickTarget:
    """What is clicked on: all that is named together, or what the data set is most likely about.

    Args:
        labels: ``labels`` of a ``dataset.json``.
        manager: nnU-Net's label manager of the same data set.
        wanted: names in it, or numbers. By default every entry called tumour, lesion or the like; or else, if there is
            none, the whole foreground.

    Raises:
        ValueError: for an unknown name, and for labels that the network, trained with regions, cannot tell apart.
    """
    names = list(wanted or (name for name in labels if TUMOUR_NAMES.search(name)))
    found = [find_target(labels, name) for name in names] or [find_target(labels)]
    name = " and ".join(target.name for target in found)
    values = tuple(sorted({label for target in found for label in target.labels}))
    if not manager.has_regions:
        return ClickTarget(name, values, tuple(manager.all_labels.index(label) for label in values), manager)
    regions = [set(np.atleast_1d(region).tolist()) for region in manager.foreground_regions]
    channels = tuple(channel for channel, region in enumerate(regions) if region <= set(values))
    if set(values) != set().union(*(regions[channel] for channel in channels)):
        raise ValueError(
            f"clicks cannot be simulated on {name} (labels {list(values)}): the model is trained with regions, and no "
            f"regions are made of these labels; they are {[sorted(region) for region in regions]}. Choose some of "
            f"them: nnUNetv2_sam3d plan --click-targets NAME"
        )
    return ClickTarget(name, values, channels, manager)
