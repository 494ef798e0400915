"""From logits to a segmentation slab by slab: what all classes take at full size is never there at once.

nnU-Net resamples the logits of all classes to the voxels of the image before it takes the largest. For a large image
with several classes this is the peak of the whole prediction. Linear resampling is local, so that some slices at a time
give the same labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import Tensor

from nnunetv2_sam3d.clicks.geometry import PreprocessedGrid
from nnunetv2_sam3d.inference.local_resampling import Axis, labels_of

SLAB_BYTES = 64 << 20  # of the slices of all classes that are resampled at once, in double precision


def segmentation_by_slabs(
    logits: Tensor, axes: Sequence[Axis], grid: PreprocessedGrid, shape: Sequence[int], labels: LabelManager
) -> np.ndarray:
    """The labels of an image, as nnU-Net exports them before it reverts the order of the axes.

    Args:
        logits: (classes, D, H, W) of the grid.
        axes: how they are resampled, see :func:`~nnunetv2_sam3d.inference.local_resampling.resampling_of`.
        grid: of the preprocessed image.
        shape: of the transposed image before cropping.
        labels: nnU-Net's.
    """
    result = np.zeros(shape, np.uint8 if len(labels.foreground_labels) < 255 else np.uint16)
    inside = tuple(slice(start, start + axis.new) for start, axis in zip(grid.crop_start, axes, strict=True))
    cropped = result[inside]
    planes = [axis.part(0, axis.new) for axis in axes[1:]]
    slice_bytes = 8 * logits.shape[0] * axes[1].new * axes[2].new
    step = max(1, SLAB_BYTES // slice_bytes)
    for start in range(0, axes[0].new, step):
        slab = axes[0].part(start, min(start + step, axes[0].new))
        cropped[slab.start : slab.stop] = labels_of(logits[:, slab.first : slab.last], [slab, *planes], grid, labels)
    return result
