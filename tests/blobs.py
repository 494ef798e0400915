"""Images with a bright blob in each channel, on disk, and nnU-Net's way of reading and preprocessing them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

BODY, PEAK = 100.0, 1000.0
SIZE = (26, 22, 18)  # x, y, z
BLOBS = ((7.0, 8.0, 6.0), (17.0, 9.0, 11.0), (10.0, 15.0, 9.0))  # x, y, z voxels of the file, one per channel
BORDER = ((2, 4), (3, 1), (1, 2))  # voxels of zeros before and behind the body, along x, y, z


def _oblique() -> np.ndarray:
    a, b, c = np.radians([25.0, -15.0, 35.0])
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    about_z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


SAGITTAL = np.array([[0.0, 0, 1], [1, 0, 0], [0, -1, 0]])  # slices from left to right, rows downwards
# Name: direction, spacing (x, y, z) in mm.
GEOMETRIES = {
    "straight": (np.eye(3), (1.0, 1.0, 1.0)),
    "flipped": (np.diag([-1.0, -1.0, 1.0]), (0.8, 0.9, 1.1)),
    "anisotropic": (np.diag([1.0, -1.0, -1.0]), (0.7, 0.7, 5.0)),
    "sagittal": (SAGITTAL, (0.9, 1.2, 3.0)),
    "oblique": (_oblique(), (0.75, 1.3, 2.5)),
    "oblique sagittal": (_oblique() @ SAGITTAL, (1.4, 0.6, 1.0)),
}
ORIGIN = (-113.5, 61.25, -420.0)


@dataclass(frozen=True)
class Blobs:
    """An image on disk.

    Attributes:
        files: one per channel.
        lps: (N, 3), the blobs' centres in mm, as ITK has them.
        ijk: (N, 3), the same in voxels of the file.
    """

    files: list[str]
    lps: np.ndarray
    ijk: np.ndarray


def write_blobs(folder: Path, geometry: str, ending: str = ".nii.gz", case: str = "case") -> Blobs:
    """Writes the three channels ``CASE_0000`` to ``CASE_0002``."""
    direction, spacing = GEOMETRIES[geometry]
    z, y, x = np.mgrid[: SIZE[2], : SIZE[1], : SIZE[0]]
    body = np.zeros(SIZE[::-1], np.float32)
    body[tuple(slice(before, -behind) for before, behind in reversed(BORDER))] = BODY
    files, lps = [], []
    for channel, (bx, by, bz) in enumerate(BLOBS):
        distance = (x - bx) ** 2 + (y - by) ** 2 + (z - bz) ** 2
        values = body + np.where(body > 0, PEAK * np.exp(-distance / 2 / 1.2**2), 0)
        image = sitk.GetImageFromArray(values.astype(np.float32))
        image.SetDirection(direction.ravel().tolist())
        image.SetSpacing(spacing)
        image.SetOrigin(ORIGIN)
        lps.append(image.TransformContinuousIndexToPhysicalPoint((bx, by, bz)))
        files.append(str(folder / f"{case}_{channel:04d}{ending}"))
        sitk.WriteImage(image, files[-1])
    return Blobs(files, np.array(lps), np.array(BLOBS))


def read(files: list[str], reader: str) -> tuple[np.ndarray, dict[str, Any]]:
    """With nnU-Net's reader of that name."""
    return recursive_find_reader_writer_by_name(reader)().read_images(files)


def preprocess(
    data: np.ndarray,
    properties: dict[str, Any],
    transpose_forward: Sequence[int],
    spacing: Sequence[float],
    resampling: str = "resample_data_or_seg_to_shape",
) -> tuple[np.ndarray, dict[str, Any]]:
    """With nnU-Net's preprocessor; ``spacing`` is the grid's, in its axes."""
    kwargs: dict[str, Any] = {"is_seg": False, "force_separate_z": None}
    if resampling == "resample_data_or_seg_to_shape":  # as nnU-Net's planner has it
        kwargs |= {"order": 3, "order_z": 0}
    plans = PlansManager(
        {
            "transpose_forward": list(transpose_forward),
            "transpose_backward": np.argsort(transpose_forward).tolist(),
            "foreground_intensity_properties_per_channel": {str(channel): {} for channel in range(len(data))},
            "configurations": {
                "3d_fullres": {
                    "architecture": {},
                    "spacing": list(spacing),
                    "normalization_schemes": ["NoNormalization"] * len(data),
                    "use_mask_for_norm": [False] * len(data),
                    "resampling_fn_data": resampling,
                    "resampling_fn_data_kwargs": kwargs,
                    "resampling_fn_seg": resampling,
                    "resampling_fn_seg_kwargs": kwargs | {"is_seg": True},
                }
            },
        }
    )
    configuration = plans.get_configuration("3d_fullres")
    result, _, properties = DefaultPreprocessor(verbose=False).run_case_npy(
        data, None, properties, plans, configuration, {}
    )
    return result, properties


def centres(data: np.ndarray) -> np.ndarray:
    """Where the blob of each channel is: the centre of mass of what is brighter than 40 % of the peak, (N, 3)."""
    found = []
    for channel in data:
        weights = np.clip(channel - BODY - 0.4 * (channel.max() - BODY), 0, None)
        found.append([(weights * axis).sum() / weights.sum() for axis in np.indices(channel.shape)])
    return np.array(found)
