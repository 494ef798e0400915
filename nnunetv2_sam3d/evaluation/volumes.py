"""One case as the protocols see it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Volume:
    """A preprocessed case.

    Attributes:
        case: its name.
        image: (C, D, H, W), an array or anything that is sliced like one (nnU-Net's compressed files are).
        segmentation: ground truth (D, H, W); negative where nnU-Net has seen nothing but zeros in the image.
        spacing_mm: of the voxels, along D, H, W.
        properties: nnU-Net's notes on the original image, which lead back to its grid.
    """

    case: str
    image: Any
    segmentation: np.ndarray
    spacing_mm: Sequence[float]
    properties: Mapping[str, Any] = field(default_factory=dict)
