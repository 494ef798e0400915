"""Where a click lies: patient coordinates, voxels of the image, voxels of nnU-Net's preprocessed image.

The conversions of the whole package are here and nowhere else. ``(x, y, z)`` is the order of a file's axes,
``(z, y, x)`` that of nnU-Net's arrays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import SimpleITK as sitk

from nnunetv2_sam3d.clicks.click import SPACES, ClickError

_MIRROR_XY = np.diag([-1.0, -1.0, 1.0, 1.0])
_OPPOSITE = dict(zip("LRPASI", "RLAPIS", strict=True))
_ROUNDING = 1e-3  # voxels: numbers in files may put a click on the surface of the volume a little beyond it


@dataclass(frozen=True)
class Geometry:
    """How the voxels of an image array lie in its file and in the patient.

    Attributes:
        shape: voxels of the array, (z, y, x).
        array_from_file: 4 x 4, voxel (x, y, z) of the file -> voxel (x, y, z) of the array; the identity unless the
            reader reorients images.
        lps_from_array: 4 x 4, voxel (x, y, z) of the array -> millimetres; ``None`` for files without geometry.
    """

    shape: tuple[int, int, int]
    array_from_file: np.ndarray
    lps_from_array: np.ndarray | None

    @classmethod
    def from_properties(cls, properties: Mapping[str, Any], shape: Sequence[int]) -> Geometry:
        """Geometry of an image that one of nnU-Net's readers has read.

        Args:
            properties: what the reader returned beside the image.
            shape: (z, y, x) of the image it returned (without its channels).

        Raises:
            ClickError: for a header that is none of a volume.
        """
        depth, height, width = (int(length) for length in shape)
        array_from_file, lps = np.eye(4), None
        if "nibabel_stuff" in properties:
            stuff = properties["nibabel_stuff"]
            ras = np.asarray(stuff["original_affine"], float)
            if "reoriented_affine" in stuff:
                array_from_file = np.linalg.inv(stuff["reoriented_affine"]) @ ras
                ras = np.asarray(stuff["reoriented_affine"], float)
            lps = _MIRROR_XY @ ras
        elif "sitk_stuff" in properties and len(properties["sitk_stuff"]["spacing"]) == 3:
            stuff = properties["sitk_stuff"]
            lps = np.eye(4)
            lps[:3, :3] = np.reshape(stuff["direction"], (3, 3)) * np.asarray(stuff["spacing"])
            lps[:3, 3] = stuff["origin"]
            if "original_orientation" in stuff:
                now = sitk.DICOMOrientImageFilter_GetOrientationFromDirectionCosines(stuff["direction"])
                array_from_file = _reorientation(stuff["original_orientation"], now, (width, height, depth))
        if lps is not None and not abs(np.linalg.det(lps)) > 0:
            raise ClickError(
                "the image's header maps all its voxels onto a plane, no position can be found in it: repair it"
            )
        return cls((depth, height, width), array_from_file, lps)

    def spaces(self) -> tuple[str, ...]:
        """The spaces in which positions in this image can be given."""
        return SPACES if self.lps_from_array is not None else ("ijk", "zyx")

    def to_zyx(self, positions: Sequence[Sequence[float]] | np.ndarray, space: str) -> np.ndarray:
        """Positions in one of :data:`SPACES` -> voxels of the array.

        Shape:
            positions: (N, 3); result: (N, 3), (z, y, x).

        Raises:
            ClickError: for millimetres where the image has no geometry.
        """
        return _transform(np.linalg.inv(self._space_from_array(space)), positions, space == "zyx", True)

    def from_zyx(self, zyx: Sequence[Sequence[float]] | np.ndarray, space: str) -> np.ndarray:
        """Inverse of :meth:`to_zyx`."""
        return _transform(self._space_from_array(space), zyx, True, space == "zyx")

    def inside(self, zyx: np.ndarray) -> np.ndarray:
        """Which voxels of (N, 3) are in the array, as bool (N,)."""
        return _inside(zyx, self.shape, _ROUNDING)

    def description(self) -> dict[str, list[float]]:
        """The file's ``image_size``, ``spacing``, ``origin`` and ``direction`` as ITK has them, as far as it has."""
        turn = np.linalg.inv(self.array_from_file[:3, :3])
        size = np.abs(turn) @ np.asarray(self.shape[::-1])
        described: dict[str, list[float]] = {"image_size": [int(length) for length in np.rint(size)]}
        if self.lps_from_array is not None:
            affine = self.lps_from_array @ self.array_from_file
            spacing = np.linalg.norm(affine[:3, :3], axis=0)
            described["spacing"] = spacing.tolist()
            described["origin"] = affine[:3, 3].tolist()
            described["direction"] = (affine[:3, :3] / spacing).ravel().tolist()
        return described

    def _space_from_array(self, space: str) -> np.ndarray:
        if space not in SPACES:
            raise ValueError(f"unknown space {space!r}; choose one of {', '.join(SPACES)}")
        if space == "zyx":
            return np.eye(4)
        if space == "ijk":
            return np.linalg.inv(self.array_from_file)
        if self.lps_from_array is None:
            raise ClickError(
                f"the image's format has no patient coordinates, so {space} positions in millimetres mean nothing in "
                "it: give voxels, with the space ijk or zyx"
            )
        return self.lps_from_array if space == "LPS" else _MIRROR_XY @ self.lps_from_array


@dataclass(frozen=True)
class PreprocessedGrid:
    """Between voxels of an image and voxels of what nnU-Net's preprocessor makes of it: transposed, cropped, resampled.

    Resampling keeps the outer surface of the image, so that the centre ``v`` of a voxel goes to
    ``(v + 0.5) * new / old - 0.5`` (skimage's resize, and torch's interpolate with ``align_corners=False``).

    Attributes:
        transpose_forward: of the plans: axis of the image for each axis of the grid.
        crop_start: first voxel of the transposed image that the cropping kept.
        cropped_shape: voxels after cropping, before resampling.
        shape: voxels after resampling.
    """

    transpose_forward: tuple[int, int, int]
    crop_start: tuple[int, int, int]
    cropped_shape: tuple[int, int, int]
    shape: tuple[int, int, int]

    @classmethod
    def from_properties(
        cls, properties: Mapping[str, Any], transpose_forward: Sequence[int], shape: Sequence[int]
    ) -> PreprocessedGrid:
        """The grid of a preprocessed image.

        Args:
            properties: what nnU-Net's preprocessor returned beside the image.
            transpose_forward: of the plans (``PlansManager.transpose_forward``).
            shape: of the image that the preprocessor returned, without its channels.
        """
        start = [int(first) for first, _ in properties["bbox_used_for_cropping"]]
        cropped = [int(length) for length in properties["shape_after_cropping_and_before_resampling"]]
        axes, size = [int(axis) for axis in transpose_forward], [int(length) for length in shape]
        if not len(axes) == len(start) == len(cropped) == len(size) == 3:
            raise ValueError(f"expected a preprocessed image with three axes, got {tuple(shape)}")
        return cls((*axes,), (*start,), (*cropped,), (*size,))  # type: ignore[arg-type]

    def from_image(self, zyx: Sequence[Sequence[float]] | np.ndarray) -> np.ndarray:
        """Voxels (N, 3) of the image -> voxels (N, 3) of the grid; outside its shape where the cropping took them."""
        transposed = _points(zyx)[:, list(self.transpose_forward)]
        return (transposed - self.crop_start + 0.5) * self._scale() - 0.5

    def to_image(self, points: Sequence[Sequence[float]] | np.ndarray) -> np.ndarray:
        """Inverse of :meth:`from_image`."""
        transposed = (_points(points) + 0.5) / self._scale() - 0.5 + self.crop_start
        return transposed[:, np.argsort(self.transpose_forward)]

    def inside(self, points: np.ndarray) -> np.ndarray:
        """Which of the voxels (N, 3) of the grid the cropping left, as bool (N,)."""
        return _inside(points, self.shape, _ROUNDING * self._scale())

    def _scale(self) -> np.ndarray:
        return np.divide(self.shape, self.cropped_shape)


def _points(values: Sequence[Sequence[float]] | np.ndarray) -> np.ndarray:
    return np.asarray(values, float).reshape(-1, 3)


def _inside(points: np.ndarray, shape: Sequence[int], margin: float | np.ndarray) -> np.ndarray:
    """Voxels are as wide as the distance of their centres: the volume begins half a voxel before the first one."""
    return np.all((points >= -0.5 - margin) & (points <= np.asarray(shape) - 0.5 + margin), axis=1)


def _transform(
    matrix: np.ndarray, positions: Sequence[Sequence[float]] | np.ndarray, reversed_in: bool, reversed_out: bool
) -> np.ndarray:
    xyz = _points(positions)[:, ::-1] if reversed_in else _points(positions)
    result = xyz @ matrix[:3, :3].T + matrix[:3, 3]
    return result[:, ::-1] if reversed_out else result


def _reorientation(before: str, after: str, size: Sequence[int]) -> np.ndarray:
    """Voxel (x, y, z) before DICOMOrient -> after it, for orientations like ``LPS`` and the size after it."""
    matrix = np.zeros((4, 4))
    matrix[3, 3] = 1
    for new_axis, letter in enumerate(after):
        if letter in before:
            matrix[new_axis, before.index(letter)] = 1
        else:
            matrix[new_axis, before.index(_OPPOSITE[letter])] = -1
            matrix[new_axis, 3] = size[new_axis] - 1
    return matrix
