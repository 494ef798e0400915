"""NIfTI files as users have them, in several orientations, and a model that needs no training."""

from __future__ import annotations

import gzip
from collections.abc import Sequence

import nibabel
import numpy as np
from scipy.spatial.transform import Rotation

from nnunetv2_sam3d.clicks.click import Click
from nnunetv2_sam3d.nnunet.labels import Target

SHAPE = (9, 7, 5)  # i, j, k
# Name: which way i, j and k run in the patient, mm.
AFFINES = {
    "LPS": np.diag([-1.5, -2.0, 3.0, 1.0]),
    "RAS": np.diag([1.5, 2.0, 3.0, 1.0]),
    "sagittal": np.array([[0, 0, 3.0, -20], [1.5, 0, 0, 7], [0, -2.0, 0, 11], [0, 0, 0, 1]]),
    "oblique": np.eye(4),
}
AFFINES["oblique"][:3, :3] = Rotation.from_euler("xyz", (10, -15, 20), degrees=True).as_matrix() * (1.5, 2.0, 3.0)
LESION = (6, 2, 1)  # a voxel (i, j, k) of the brighter lesion
OTHER = (2, 4, 3)


def volume() -> np.ndarray:
    """Noise with two bright lesions, (i, j, k)."""
    values = np.random.default_rng(0).normal(0, 5, SHAPE).astype(np.float32)
    values[5:8, 1:4, 0:3] += 100
    values[2, 4, 3] += 80
    return values


def nifti(array: np.ndarray, orientation: str = "LPS", packed: bool = True) -> bytes:
    """The content of a file."""
    content = nibabel.Nifti1Image(array, AFFINES[orientation]).to_bytes()
    return gzip.compress(content, 1) if packed else content


class BrightStructures:
    """A model of bright voxels: the automatic mask has them all, a click takes or leaves the voxels around it.

    Voxels above 50 are label 2, what a click adds beside them too.
    """

    channels, label, target = 1, "lesion", Target("lesion", (2,))

    def set_image(self, image: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
        self._bright = image[0] > 50
        return self.mask(())

    def check(self, clicks: Sequence[Click]) -> None:
        if len(clicks) > 3:
            raise ValueError("the model takes three clicks")

    def mask(self, clicks: Sequence[Click]) -> np.ndarray:
        mask = self._bright.copy()
        for click in clicks:
            z, y, x = (round(place) for place in click.zyx)
            mask[max(z - 1, 0) : z + 2, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2] = click.sign > 0
        return mask

    def segmentation(self, clicks: Sequence[Click]) -> np.ndarray:
        return self.mask(clicks).astype(np.uint8) * 2
