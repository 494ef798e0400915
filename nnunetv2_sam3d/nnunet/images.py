"""Which images there are to predict, by nnU-Net's names."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

_CHUNK = 1 << 20


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
    return re.sub(r"_\d{4}$", "", file.name.removesuffix(ending))


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
    channels = len(dataset_json.get("channel_names", dataset_json.get("modality", ())))
    numbered = re.compile(r"(.+)_\d{4}" + re.escape(ending))
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
        raise ValueError(f"the model takes {channels} channels, and these are absent: {', '.join(absent[:5])}")
    return [Case(name, files) for name, files in found.items()]


def _add(found: dict[str, tuple[Path, ...]], name: str, files: tuple[Path, ...]) -> None:
    if found.setdefault(name, files) != files:
        raise ValueError(
            f"{found[name][0]} and {files[0]} are both called {name}: predict them into folders of their own"
        )


def read_image(files: Sequence[Path], reader: Any) -> tuple[np.ndarray, dict[str, Any]]:
    """What nnU-Net's reader returns: the image (C, z, y, x) and its properties.

    Raises:
        ImageError: for files that are absent, damaged, cut off, or of no image.
    """
    with _damage_named(files):
        for file in files:
            if file.name.endswith(".gz"):
                with gzip.open(file) as content:  # of a file that is cut off, ITK reads the rest as if it were there
                    while content.read(_CHUNK):
                        pass
        return reader.read_images([str(file) for file in files])


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
        header.ReadImageInformation()
    geometry = {"spacing": header.GetSpacing(), "origin": header.GetOrigin(), "direction": header.GetDirection()}
    size = header.GetSize()  # of the file; nnU-Net's array has three axes even for a slice
    return {"sitk_stuff": geometry}, (*(1,) * (3 - len(size)), *size[2::-1])


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
            f"{', '.join(map(str, files))} cannot be read ({reason}): it is damaged, or no image of the kind that its "
            "ending says. Copy or export it again, or leave it out"
        ) from error
