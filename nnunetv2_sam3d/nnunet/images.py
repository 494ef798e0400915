"""Images and label maps: found by nnU-Net's names, read by its readers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunetv2_sam3d.messages import some
from nnunetv2_sam3d.nnunet.descriptions import channel_names
from nnunetv2_sam3d.nnunet.image_files import check_header, check_size


class ImageError(ValueError):
    """An image cannot be read; names its files, the reason, and what helps."""


@dataclass(frozen=True)
class Case:
    """An image.

    Attributes:
        name: without channel number and file ending.
        files: one for each channel, in their order.
    """

    name: str
    files: tuple[Path, ...]


def case_name(file: Path, ending: str) -> str:
    """The name of an image file without the number of its channel and its ending."""
    return re.sub(r"_[0-9]{4}\Z", "", file.name.removesuffix(ending))


def find_cases(paths: Sequence[Path], dataset_json: Mapping[str, Any]) -> list[Case]:
    """The images in folders, or that files belong to.

    Args:
        paths: folders of images called ``CASE_0000.nii.gz``, ``CASE_0001.nii.gz``, ... (nnU-Net's ``imagesTs``), or
            such files, of which one names all channels; for models of one channel also files of any name.
        dataset_json: of the model.

    Raises:
        ValueError: if there is none, two are called the same, or some channels are absent, naming them.
    """
    ending = dataset_json["file_ending"]
    channels = len(channel_names(dataset_json))
    numbered = re.compile(r"([^.].*)_[0-9]{4}" + re.escape(ending), re.DOTALL)  # ._CASE is left behind by macOS
    found: dict[str, tuple[Path, ...]] = {}
    for path in paths:
        if path.is_dir():
            matches = (numbered.fullmatch(file.name) for file in sorted(path.iterdir()))
            names = sorted({match[1] for match in matches if match})
            if not names:
                raise ValueError(
                    f"{path} has no image that is called as nnU-Net wants it: CASE_0000{ending}, the number being that "
                    f"of the channel (of {channels})"
                )
        elif not path.is_file():
            raise ValueError(f"{path} does not exist; give an image, or a folder of images")
        elif match := numbered.fullmatch(path.name):
            names, path = [match[1]], path.parent
        elif channels == 1 and path.name.endswith(ending):
            _add(found, path.name.removesuffix(ending), (path,))
            continue
        else:
            raise ValueError(
                f"{path} is called as no image of this model: expected CASE_0000{ending} with the number of the channel"
                f"{f', or any name with the ending {ending}' if channels == 1 else f' (of {channels})'}"
            )
        for name in names:
            _add(found, name, tuple(path / f"{name}_{channel:04d}{ending}" for channel in range(channels)))
    absent = [str(file) for files in found.values() for file in files if not file.is_file()]
    if absent:
        raise ValueError(f"the model takes {channels} channels, and {len(absent)} are absent: {some(absent)}")
    return [Case(name, files) for name, files in found.items()]


def _add(found: dict[str, tuple[Path, ...]], name: str, files: tuple[Path, ...]) -> None:
    if found.setdefault(name, files) != files:
        raise ValueError(
            f"{found[name][0]} and {files[0]} are both called {name}: predict them into folders of their own"
        )


def read_image(files: Sequence[Path], reader: Any) -> tuple[np.ndarray, dict[str, Any]]:
    """What nnU-Net's reader returns: the image (C, z, y, x) and its properties.

    Raises:
        ImageError: for files that are absent, damaged, cut off, of no image, or hold voxels that are no numbers.
    """
    with _damage_named(files):
        for file in files:
            check_size(file)
        image, properties = reader.read_images([str(file) for file in files])
    for file, channel in zip(files, image, strict=False):
        _check_finite(file, channel)
    return image, properties


def read_segmentation(file: Path, reader: Any) -> tuple[np.ndarray, dict[str, Any]]:
    """What nnU-Net's reader returns for a label map: its values (z, y, x), and its properties.

    nnU-Net's usual reader makes single precision of every mask; for this one the values stay as they are in the file,
    a quarter of the memory.

    Raises:
        ImageError: as :func:`read_image`, and for images that are no volume or have several values in a voxel.
    """
    with _damage_named([file]):
        check_size(file)
        values, properties = _read_as_stored(file) if type(reader) is SimpleITKIO else reader.read_seg(str(file))
    if values.ndim != 4 or len(values) != 1:
        raise ImageError(f"{file} has the shape {values.shape}; expected a label map with one value in a voxel")
    _check_finite(file, values[0])
    return values[0], properties


def _read_as_stored(file: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """What ``SimpleITKIO`` returns, in the type of the file."""
    image = sitk.ReadImage(str(file))
    if image.GetDimension() not in (2, 3) or image.GetNumberOfComponentsPerPixel() != 1:
        raise ValueError(
            f"it has {image.GetDimension()} axes and {image.GetNumberOfComponentsPerPixel()} values a voxel"
        )
    spacing = [abs(length) for length in image.GetSpacing()[::-1]]
    if len(spacing) == 2:  # as nnU-Net has it
        spacing = [999 * max(spacing), *spacing]
    stuff = {"spacing": image.GetSpacing(), "origin": image.GetOrigin(), "direction": image.GetDirection()}
    values = sitk.GetArrayFromImage(image)
    return values.reshape(1, *(1,) * (3 - values.ndim), *values.shape), {"sitk_stuff": stuff, "spacing": spacing}


@lru_cache
def reader_called(name: str) -> Any:
    """nnU-Net's reader of a name, as plans have it under ``image_reader_writer``.

    Raises:
        ValueError: if nnU-Net has none of that name.
    """
    try:
        return recursive_find_reader_writer_by_name(name)()
    except RuntimeError as error:
        raise ValueError(f"nnU-Net has no reader {name!r:.60}, which the plans name (image_reader_writer)") from error


def _check_finite(file: Path, values: np.ndarray) -> None:
    if values.dtype.kind not in "fc":
        return
    # plane by plane: a whole volume of places would be larger than the image
    counts = [int(plane.size - np.count_nonzero(np.isfinite(plane))) for plane in values]
    if not any(counts):
        return
    k = next(index for index, count in enumerate(counts) if count)
    j, i = np.argwhere(~np.isfinite(values[k]))[0].tolist()
    raise ImageError(
        f"{file} holds {sum(counts)} voxels that are no finite numbers (NaN or infinite), the first at ({i}, {j}, {k}) "
        f"(i, j, k). nnU-Net would predict background there and around, often everywhere. Replace them with the value "
        f"of the background, for instance with numpy.nan_to_num"
    )


def read_header(case: Case, reader: Any) -> tuple[dict[str, Any], tuple[int, ...]]:
    """What nnU-Net's reader returns beside an image, and the image's shape (z, y, x).

    Only the header is read where nnU-Net's reader is ``SimpleITKIO``; with the others the image.

    Raises:
        ImageError: as :func:`read_image`, as far as it is read.
    """
    if type(reader) is not SimpleITKIO:
        image, properties = read_image(case.files, reader)
        return properties, image.shape[1:]
    header = sitk.ImageFileReader()
    header.SetFileName(str(case.files[0]))
    with _damage_named(case.files[:1]):
        check_header(case.files[0])
        header.ReadImageInformation()
    geometry = {"spacing": header.GetSpacing(), "origin": header.GetOrigin(), "direction": header.GetDirection()}
    size = header.GetSize()  # of the file; nnU-Net's array has three axes even for a slice
    shape = (*(1,) * (3 - len(size)), *size[2::-1])
    return {"sitk_stuff": geometry, "spacing": [float(length) for length in header.GetSpacing()[2::-1]]}, shape


@contextmanager
def _damage_named(files: Sequence[Path]) -> Iterator[None]:
    for file in files:
        if not file.is_file():
            raise ImageError(f"{file} does not exist; give an image")
    try:
        yield
    except Exception as error:  # the readers let through what their libraries raise, which have no class in common
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1].removeprefix("sitk::ERROR: ")
        raise ImageError(
            f"{some(files)} cannot be read ({reason}): it is damaged, or no image of the kind that its "
            "ending says. Copy or export it again, or leave it out"
        ) from error
