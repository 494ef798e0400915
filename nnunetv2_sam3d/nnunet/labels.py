"""The structure that clicks are about: one label, or several that count as one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import Tensor

TUMOUR_NAMES = re.compile(r"tumou?r|lesion|cancer|carcinoma|sarcoma|metasta", re.IGNORECASE)


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
        regions = [_as_labels(region) for region in labels.foreground_regions]
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
    entries = {
        name: _as_labels(value)
        for name, value in labels.items()
        if name not in ("background", "ignore") and _as_labels(value) != (0,)
    }
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
    tumours = [name for name in entries if TUMOUR_NAMES.search(name)]
    if len(tumours) > 1:
        raise ValueError(f"several entries of dataset.json could be the target: {', '.join(tumours)}. Choose one.")
    return Target(tumours[0], entries[tumours[0]]) if tumours else Target("whole foreground", everything)


def _as_labels(value: int | Sequence[int]) -> tuple[int, ...]:
    return tuple(int(label) for label in value) if isinstance(value, Sequence) else (int(value),)
