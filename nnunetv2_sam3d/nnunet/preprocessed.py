"""Preprocessed cases of nnU-Net's: read with the names of their files in every error, and held against annotations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from batchgenerators.utilities.file_and_folder_operations import load_pickle
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

from nnunetv2_sam3d.messages import some

_KEYS = ("spacing", "shape_before_cropping", "bbox_used_for_cropping", "shape_after_cropping_and_before_resampling")


class DamagedCase(ValueError):
    """A preprocessed case cannot be read.

    Args:
        folder: of the preprocessed data.
        case: its name.
        reason: with the name of the file, as far as it is known.
    """

    def __init__(self, folder: Path, case: str, reason: str) -> None:
        super().__init__(
            f"the preprocessed case {folder / case} is damaged: {reason}. Delete its files and preprocess the data "
            f"again: nnUNetv2_preprocess"
        )
        self.in_short = f"{case} ({reason})"


class PreprocessedCase(NamedTuple):
    """A case as nnU-Net's data loaders read it.

    Attributes:
        image: (C, D, H, W), an array or anything that is sliced like one.
        segmentation: (1, D, H, W), likewise.
        properties: nnU-Net's notes on the original image.
    """

    image: Any
    segmentation: Any
    properties: Mapping[str, Any]


def read_case(folder: Path, case: str, *, wholly: bool = False) -> PreprocessedCase:
    """A case of a folder of preprocessed data.

    Args:
        folder: of the data.
        case: its name.
        wholly: whether all of its arrays is read, or only the planes at both ends and in the middle. The compressed
            files have no check sums: a changed voxel shows nowhere, a stream that cannot be unpacked shows when read.

    Raises:
        DamagedCase: if a file is absent, cut off, damaged, or does not fit the others.
    """
    try:
        _check_properties(folder / f"{case}.pkl")
        image, segmentation, _, properties = infer_dataset_class(str(folder))(str(folder), [case]).load_case(case)  # type: ignore[abstract]
        if not isinstance(properties, Mapping) or any(key not in properties for key in _KEYS):
            raise ValueError(f"{case}.pkl is no table with {', '.join(_KEYS)}")
        if len(image.shape) != 4 or tuple(segmentation.shape) != (1, *image.shape[1:]):
            raise ValueError(f"its image has the shape {image.shape}, its segmentation {segmentation.shape}")
        depth = image.shape[1]
        for plane in range(depth) if wholly else sorted({0, depth // 2, depth - 1}):
            if not np.isfinite(_plane("image", image, plane)).all():
                raise ValueError(f"plane {plane} of its image holds voxels that are no finite numbers")
            _plane("segmentation", segmentation, plane)
    except Exception as error:  # the libraries raise almost anything, from RuntimeError to UnpicklingError
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1].replace(f"{folder}/", "")
        raise DamagedCase(folder, case, f"{reason:.200}") from error
    return PreprocessedCase(image, segmentation, properties)


def _plane(what: str, array: Any, plane: int) -> np.ndarray:
    try:
        return np.asarray(array[:, plane])
    except Exception as error:  # of the libraries' own kinds, without a name
        raise ValueError(f"plane {plane} of its {what} cannot be unpacked ({error})") from error


def _check_properties(file: Path) -> None:
    """Raises ValueError for notes that are no pickle; nnU-Net reads them last, and its error names no file."""
    try:
        load_pickle(str(file))
    except OSError:
        raise
    except Exception as error:
        raise ValueError(f"{file.name} is cut off or damaged ({error})") from error


def check_cases(folder: Path, cases: Sequence[str], command: str) -> dict[str, Mapping[str, Any]]:
    """The properties of cases that can be read; all that are damaged are in one error.

    Args:
        folder: of the preprocessed data.
        cases: their names.
        command: that makes them anew.

    Raises:
        ValueError: naming the damaged cases.
    """
    found, damaged = dict[str, Mapping[str, Any]](), list[str]()
    for case in cases:
        try:
            found[case] = read_case(folder, case).properties
        except DamagedCase as error:
            damaged.append(error.in_short)
    if damaged:
        raise ValueError(
            f"{len(damaged)} preprocessed cases in {folder} are damaged, as a full disk or a cut-off copy leaves them: "
            f"{some(damaged)}. Delete their files and preprocess the data again:\n  {command}"
        )
    return found
