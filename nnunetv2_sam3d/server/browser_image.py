"""An image that a browser sent: unpacked and checked, and its masks and clicks as the files that ``predict`` writes."""

from __future__ import annotations

import gzip
import io
import math
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import nibabel
import numpy as np

from nnunetv2_sam3d.clicks.click import Click
from nnunetv2_sam3d.clicks.click_files import RECORD_SUFFIX, write_clicks
from nnunetv2_sam3d.clicks.geometry import Geometry
from nnunetv2_sam3d.nnunet.image_files import image_written_whole
from nnunetv2_sam3d.nnunet.images import ImageError, case_name, read_image

ENDING = ".nii.gz"
_GZIP = b"\x1f\x8b"
_CHUNK = 1 << 20
_MEMORY_BYTES = 4  # of a voxel in memory, float32
_in_use: set[Path] = set()


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="nnunetv2_sam3d_") as name:
        _in_use.add(folder := Path(name))
        try:
            yield folder
        finally:
            _in_use.discard(folder)


def delete_temporary_folders() -> None:
    """Those of threads that will not come to it, before a process ends without them."""
    for folder in list(_in_use):
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class Upload:
    """A file as it was sent.

    Attributes:
        name: that it has on the user's disk, without folders.
        content: its bytes.
    """

    name: str
    content: bytes

    @classmethod
    def named(cls, name: str, content: bytes) -> Upload:
        """With a name that is fit for any file system; ImageError for one that is no NIfTI's."""
        own = re.sub(r"[^\w.\- ]", "_", PurePath(name.replace("\\", "/")).name)[-120:]
        if not own.lower().endswith((".nii", ENDING)):
            raise ImageError(f"{own or 'the file'} is no NIfTI image by its name: expected .nii or .nii.gz")
        return cls(own, content)

    @property
    def case(self) -> str:
        """The name without the channel's number and the ending, as nnU-Net calls the case."""
        ending = ENDING if self.name.lower().endswith(ENDING) else ".nii"
        return case_name(Path(self.name[: -len(ending)] + ENDING), ENDING) or "image"


def unpacked(upload: Upload, most_bytes: int) -> bytes:
    """The content of a NIfTI file, decompressed if it is compressed.

    Raises:
        ImageError: if it is damaged, cut off, or would have more bytes.
    """
    if not upload.content.startswith(_GZIP):
        return upload.content
    parts, length = list[bytes](), 0
    try:
        with gzip.open(io.BytesIO(upload.content)) as stream:
            while part := stream.read(_CHUNK):
                parts.append(part)
                length += len(part)
                if length > most_bytes:
                    raise ImageError(f"{upload.name} has more than {_size(most_bytes)} when it is unpacked: crop it")
    except (OSError, EOFError, zlib.error) as error:
        raise ImageError(
            f"{upload.name} cannot be unpacked ({error}): it is cut off or damaged, copy it again"
        ) from error
    return b"".join(parts)


def check_header(name: str, content: bytes, most_bytes: int) -> None:
    """ImageError for what is no volume of numbers that fits, before anything reads its voxels."""
    second = 540 in (int.from_bytes(content[:4], "little"), int.from_bytes(content[:4], "big"))  # length of the header
    try:
        header = (nibabel.Nifti2Header if second else nibabel.Nifti1Header).from_fileobj(io.BytesIO(content[:1024]))
        shape, dtype, start = header.get_data_shape(), header.get_data_dtype(), int(header["vox_offset"])
        if header["magic"].item()[:3] not in (b"n+1", b"n+2"):
            raise ValueError("it is none, or its voxels are in another file")
    except Exception as error:  # nibabel lets through what NumPy raises, which has no class in common
        raise ImageError(f"{name} is no NIfTI image, or its header is damaged ({error})") from error
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3 or min(shape) < 1:
        raise ImageError(f"{name} has the shape {list(shape)}; expected one volume of three axes")
    if dtype.kind not in "iuf":
        raise ImageError(f"{name} has voxels of {dtype}; expected real numbers, not colours or complex numbers")
    voxels = math.prod(int(length) for length in shape)
    if voxels * max(_MEMORY_BYTES, dtype.itemsize) > most_bytes:
        raise ImageError(f"{name} has {list(shape)} voxels, more than the server takes ({_size(most_bytes)}): crop it")
    if not 0 <= start <= len(content) - voxels * dtype.itemsize:
        raise ImageError(f"{name} is cut off: its header promises {list(shape)} voxels. Copy it again")


def _size(length: int) -> str:
    return f"{length / 1e9:.3g} GB"


@dataclass(frozen=True)
class BrowserImage:
    """Where the voxels of an image are: in its file, and in the array that the model's reader makes of it.

    Attributes:
        name: of the file, of the first channel if there are several.
        case: what nnU-Net calls it.
        shape: of the array, (z, y, x).
        properties: what the reader returned beside it.
        reader: nnU-Net's, of the plans.
    """

    name: str
    case: str
    shape: tuple[int, ...]
    properties: Mapping[str, Any]
    reader: Any

    @classmethod
    def read(cls, uploads: Sequence[Upload], reader: Any, most_bytes: int) -> tuple[BrowserImage, np.ndarray]:
        """Reads the channels of an image.

        Args:
            uploads: in the order of the channels.
            reader: nnU-Net's, of the plans.
            most_bytes: that all of them may have, unpacked.

        Returns:
            the image and its voxels, (C, z, y, x).

        Raises:
            ImageError: for files that are damaged, too large, or no volume, naming the file.
        """
        with _temporary_folder() as folder:
            files, left = list[Path](), most_bytes
            for channel, upload in enumerate(uploads):
                content = unpacked(upload, left)
                check_header(upload.name, content, left)
                left -= len(content)
                files.append(folder / f"image_{channel:04d}.nii")
                files[-1].write_bytes(content)
            try:
                voxels, properties = read_image(files, reader)
            except ImageError as error:
                sentence = str(error)
                for file, upload in zip(files, uploads, strict=True):
                    sentence = sentence.replace(str(file), upload.name)
                raise ImageError(sentence) from error
        return cls(uploads[0].name, uploads[0].case, voxels.shape[1:], properties, reader), voxels

    @property
    def spacing(self) -> list[float]:
        """Mm, (z, y, x)."""
        return [float(length) for length in self.properties["spacing"]]

    @property
    def geometry(self) -> Geometry:
        """Where the voxels are."""
        return Geometry.from_properties(self.properties, self.shape)

    def voxel(self, ijk: Sequence[float]) -> list[float]:
        """A voxel (i, j, k) of the file as one of the array, (z, y, x)."""
        return self.geometry.to_zyx([ijk], "ijk")[0].tolist()

    def file_voxel(self, zyx: Sequence[float]) -> list[int]:
        """Inverse of :meth:`voxel`, of a whole voxel."""
        return [round(place) for place in self.geometry.from_zyx([zyx], "ijk")[0].tolist()]

    def in_file_order(self, array: np.ndarray) -> np.ndarray:
        """A view of an array (z, y, x) along the axes of the file, (k, j, i): the reader may have turned it."""
        turn = self.geometry.array_from_file[:3, :3]  # (x, y, z) of the array for each of (i, j, k)
        own = [int(np.argmax(np.abs(turn[:, axis]))) for axis in (2, 1, 0)]
        moved = array.transpose([2 - axis for axis in own])
        backwards = [place for place, axis in enumerate(own) if turn[axis, 2 - place] < 0]
        return np.flip(moved, tuple(backwards))

    def mask_file(self, labels: np.ndarray) -> tuple[str, bytes]:
        """Name and content of the NIfTI file with a segmentation (z, y, x), as ``predict`` writes it."""
        with _temporary_folder() as folder:
            file = folder / f"mask{ENDING}"
            with image_written_whole(file, ENDING) as partial:
                self.reader.write_seg(labels, str(partial), dict(self.properties))
            return self.case + ENDING, file.read_bytes()

    def click_file(self, clicks: Sequence[Click], model: str) -> tuple[str, bytes]:
        """Name and content of the JSON file of clicks, which ``predict --clicks`` reads."""
        with _temporary_folder() as folder:
            file = folder / "clicks.json"
            space = "LPS" if "LPS" in self.geometry.spaces() else "zyx"
            provenance = {"model": model, "made_in": "the browser page of nnUNetv2_sam3d serve"}
            write_clicks(file, clicks, self.geometry, space=space, image=self.name, provenance=provenance)
            return self.case + RECORD_SUFFIX, file.read_bytes()
