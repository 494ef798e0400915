"""What the channels of the logits mean, and the last convolution of other classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from nnunetv2_sam3d.messages import shown
from nnunetv2_sam3d.weights.errors import WeightsError


@dataclass(frozen=True)
class OutputChannels:
    """Channels of the logits.

    Attributes:
        names: label or region of each channel; empty if a file does not say.
        regions: whether channels are independent (sigmoid), without background; otherwise they exclude each other
            (softmax) and channel 0 is the background.
    """

    names: tuple[str, ...]
    regions: bool

    def to_dict(self) -> dict[str, Any]:
        """For a checkpoint's metadata."""
        return {"names": list(self.names), "regions": self.regions}

    @classmethod
    def from_dict(cls, values: Any) -> OutputChannels:
        """Inverse of :meth:`to_dict`; WeightsError for anything else."""
        if (
            not isinstance(values, Mapping)
            or set(values) != {"names", "regions"}
            or not isinstance(values["names"], list | tuple)
            or not all(isinstance(name, str) for name in values["names"])
            or not isinstance(values["regions"], bool)
        ):
            raise WeightsError(f"the description of the classes is damaged: {shown(values, 100)}")
        return cls(tuple(values["names"]), values["regions"])


def map_channels(
    given: Tensor, fresh: Tensor, source: OutputChannels, target: OutputChannels, chosen: Mapping[str, int]
) -> tuple[Tensor, list[str]]:
    """The last convolution for other classes, with the chosen channels of a file.

    Between softmax and sigmoid the kernels are taken relative to the background's, which keeps the probability of a
    binary model: ``softmax([b, t])[1] = sigmoid(t - b) = softmax([0, t - b])[1]``. Of more than two classes, that is
    the probability against the background alone.

    Args:
        given: the file's kernels.
        fresh: the data set's, whose other channels stay.
        source: meaning of the file's channels.
        target: meaning of the data set's.
        chosen: channel of the file for each name.

    Returns:
        the kernels, and the names whose channels are still fresh.

    Shape:
        given: (channels of the file, C, 3, 3, 3); fresh and result: (channels of the data set, C, 3, 3, 3)

    Raises:
        WeightsError: for names and channels that do not exist.
    """
    foreground = target.names if target.regions else target.names[1:]
    first = 0 if source.regions else 1
    for name, channel in chosen.items():
        if name not in foreground:
            raise WeightsError(f"--map-class names {name!r}, but the data set has {', '.join(foreground)}")
        if not first <= channel < len(given):
            raise WeightsError(
                f"--map-class takes channel {channel} for {name!r}, but the file's foreground channels are "
                f"{first} to {len(given) - 1}"
            )
    mapped = fresh.clone()
    if not target.regions:
        mapped[0] = 0 if source.regions else given[0]
    for name, channel in chosen.items():
        relative = target.regions and not source.regions
        mapped[target.names.index(name)] = given[channel] - given[0] if relative else given[channel]
    return mapped, [name for name in foreground if name not in chosen]
