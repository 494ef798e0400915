"""The labels of a data set: their values, what is called a tumour, and the structure that clicks are about."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import Tensor

BACKGROUND, IGNORE = "background", "ignore"  # nnU-Net's names
_TUMOUR = r"tumou?r|lesion|cancer|carcinoma|sarcoma|metasta"
_TUMOURS = re.compile(_TUMOUR, re.IGNORECASE)
_LESIONS = re.compile(
    rf"{_TUMOUR}|mass|cyst|nodule|polyp|neoplasm|glioma|stroke|infarct|edema|enhancing|necro", re.IGNORECASE
)


def values_of(label: int | Sequence[int]) -> tuple[int, ...]:
    """The values of an entry of ``labels`` in ``dataset.json``: one, or those of a region."""
    return tuple(int(value) for value in label) if isinstance(label, Sequence) else (int(label),)


def foreground(labels: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and values of the labels or regions, without background and what does not count.

    Args:
        labels: of a ``dataset.json``.
    """
    values = {str(name): values_of(value) for name, value in labels.items() if name not in (BACKGROUND, IGNORE)}
    return {name: value for name, value in values.items() if set(value) != {0}}


def all_values(labels: Mapping[str, Any]) -> list[int]:
    """Every value that a segmentation may hold, background and what does not count included."""
    return sorted({0}.union(*(values_of(value) for value in labels.values())))


def sounds_like_tumour(name: str) -> bool:
    """Whether a label is called tumour, cancer or the like."""
    return bool(_TUMOURS.search(name))


def sounds_like_lesion(name: str) -> bool:
    """Whether a label is called like something that is counted; "kidney and masses" is an organ with what is in it."""
    return bool(_LESIONS.search(name)) and " and " not in name.replace("_", " ")


@dataclass(frozen=True)
class Target:
    """A set of labels.

    Attributes:
        name: for people.
        labels: values in the segmentation.
    """

    name: str
    labels: tuple[int, ...]

    def mask(self, segmentation: np.ndarray) -> np.ndarray:
        """Where a segmentation shows the target, as bool."""
        if len(self.labels) == 1:  # many times faster
            return segmentation == self.labels[0]
        return np.isin(segmentation, self.labels)

    def check(self, labels: LabelManager) -> None:
        """Raises ValueError if a network of these labels has no probability of this target."""
        self._channels(labels)

    def probability(self, logits: Tensor, labels: LabelManager) -> Tensor:
        """The target's probability: a region's sigmoid, or the sum of its labels' softmax.

        Args:
            logits: (classes, D, H, W).
            labels: what the classes mean.

        Returns:
            (D, H, W)
        """
        channels = self._channels(labels)
        if labels.has_regions:
            return torch.sigmoid(logits[channels[0]])
        return torch.softmax(logits, 0)[channels].sum(0)

    def _channels(self, labels: LabelManager) -> list[int]:
        if not labels.has_regions:
            unknown = sorted(set(self.labels) - set(labels.foreground_labels))
            if unknown:
                raise ValueError(f"the model has no label {unknown}, only {labels.foreground_labels}")
            return [labels.all_labels.index(label) for label in self.labels]
        regions = [values_of(region) for region in labels.foreground_regions]
        for channel, region in enumerate(regions):
            if set(region) == set(self.labels):
                return [channel]
        raise ValueError(
            f"the model was trained with regions, and none of them is {self.name} (labels {list(self.labels)}); "
            f"its regions have the labels {[list(region) for region in regions]}. Choose one of them as target."
        )


def find_target(labels: Mapping[str, Any], wanted: str | None = None) -> Target:
    """The target by name or number, or the one that a data set is most likely about.

    Args:
        labels: ``labels`` of a ``dataset.json``.
        wanted: a name in it, or numbers like ``2`` or ``2,3``. By default the only foreground entry; or else the only
            one called tumour, lesion or the like; or else, if none is, the whole foreground.

    Raises:
        ValueError: for an unknown name or number, and if several entries are called like a tumour.
    """
    entries = foreground(labels)
    known = ", ".join(f"{name} = {','.join(map(str, values))}" for name, values in entries.items())
    everything = tuple(sorted({label for values in entries.values() for label in values}))
    if wanted is not None:
        for name, values in entries.items():
            if name.casefold() == wanted.strip().casefold():
                return Target(name, values)
        if re.fullmatch(r"\d+(\s*,\s*\d+)*", wanted.strip()):
            numbers = tuple(sorted({int(number) for number in wanted.split(",")}))
            if set(numbers) <= set(everything):
                return Target(next((name for name, values in entries.items() if set(values) == set(numbers)),
                                   "label " + "+".join(map(str, numbers))), numbers)  # fmt: skip
        raise ValueError(f"there is no target {wanted!r} in dataset.json. It has: {known}. Give a name or numbers.")
    if len(entries) == 1:
        return Target(*next(iter(entries.items())))
    tumours = [name for name in entries if sounds_like_tumour(name)]
    if len(tumours) > 1:
        raise ValueError(f"several entries of dataset.json could be the target: {', '.join(tumours)}. Choose one.")
    return Target(tumours[0], entries[tumours[0]]) if tumours else Target("whole foreground", everything)


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
    names = list(wanted or (name for name in labels if sounds_like_tumour(name)))
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
