"""Image files and what their headers promise: before a library reads one, and after it wrote one."""

from __future__ import annotations

import contextlib
import gzip
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel
import SimpleITK as sitk
import tifffile

from nnunetv2_sam3d.files import written_whole

_CHUNK = 1 << 20
LONGEST_HEADER, MOST_HEADER_LINES, LONGEST_HEADER_LINE, LONGEST_HEADER_WORD = 4 << 20, 10_000, 1000, 100
MHA_NUMBERS = {
    b"CenterOfRotation", b"DimSize", b"ElementSize", b"ElementSpacing", b"Offset", b"Orientation", b"Origin",
    b"Position", b"Rotation", b"TransformMatrix",
}  # fmt: skip
# https://teem.sourceforge.net/nrrd/format.html
NRRD_FIELDS = {
    b"axis maxs", b"axis mins", b"axismaxs", b"axismins", b"block size", b"blocksize", b"byte skip", b"byteskip",
    b"centerings", b"centers", b"content", b"data file", b"datafile", b"dimension", b"encoding", b"endian", b"kinds",
    b"labels", b"line skip", b"lineskip", b"max", b"measurement frame", b"min", b"number", b"old max", b"old min",
    b"oldmax", b"oldmin", b"sample units", b"sampleunits", b"sizes", b"space", b"space dimension", b"space directions",
    b"space origin", b"space units", b"spacings", b"thicknesses", b"type", b"units",
}  # fmt: skip
MOST_COMPRESSION = 1100  # deflate makes 1032 bytes of one at most
_NEVER_COMPRESSED = (".nii", ".gipl")
_GIPL_HEADER = 256  # bytes


def check_size(file: Path) -> None:
    """Raises ValueError if a file cannot hold the voxels that its header promises; reads gzip files to their end.

    Of a file that is cut off, ITK reads the rest as if it were there. And memory is asked for by the header alone.
    """
    check_header(file)
    size, (promised, begin) = file.stat().st_size, _promised_bytes(file)
    if file.name.endswith(".gz"):
        size = 0
        with gzip.open(file) as content:
            while block := content.read(_CHUNK):
                size += len(block)
    most = size - begin if file.name.endswith((".gz", *_NEVER_COMPRESSED)) else MOST_COMPRESSION * size
    if promised > most:
        raise ValueError(f"its header promises {promised} bytes of voxels, the file has {max(0, most)} at most")


def is_whole_image(file: Path) -> bool:
    """Whether an image file holds what its header promises; true of files of other kinds."""
    try:
        check_size(file)
    except Exception:  # the libraries' errors have no class in common
        return False
    return True


@contextmanager
def image_written_whole(path: Path, ending: str) -> Iterator[Path]:
    """:func:`~nnunetv2_sam3d.files.written_whole` for images; on a full disk ITK cuts NIfTI and GIPL off in silence.

    Args:
        path: the file that is to be there in the end.
        ending: of images of this kind, such as ``.nii.gz``.

    Raises:
        OSError: as ``written_whole``, and if less was written than the header promises.
    """
    with written_whole(path, ending) as partial:
        try:
            yield partial
            check_size(partial)
        except RuntimeError as error:  # where ITK notices it, in many lines
            raise OSError(str(error).strip().splitlines()[-1]) from error
        except (ValueError, EOFError) as error:
            raise OSError(f"not all of it came onto the disk ({error})") from error


def _check_nrrd_header(file: Path) -> None:
    """Raises ValueError for a NRRD header that is not of the format's words, before ITK sees it.

    ITK's parser keeps words in buffers of some hundred letters without looking at their length, and other damage ends
    the process as well. Comments and the entries of 3D Slicer (``key:=value``) may be of any length.
    """
    with open(file, "rb") as content:
        magic, *lines = content.read(LONGEST_HEADER).splitlines()[:MOST_HEADER_LINES] or [b""]
    sound = bool(re.fullmatch(rb"NRRD000[1-6]", magic))
    for line in lines if sound else ():
        if not line.strip():
            break
        if line.startswith(b"#") or b":=" in line:
            continue
        field, _, words = line.partition(b":")
        sound = (
            field in NRRD_FIELDS and len(line) < LONGEST_HEADER_LINE and line.isascii() and line.decode().isprintable()
        )
        if not sound or max(map(len, words.split()), default=LONGEST_HEADER_WORD) >= LONGEST_HEADER_WORD:
            sound = False
            break
    if not sound:
        raise ValueError("its header is no whole NRRD header, with the format's fields and words")


def _check_mha_header(file: Path) -> None:
    """The same for MetaImage: a header of a wrong number of axes ends the process."""
    with open(file, "rb") as content:
        lines = content.read(LONGEST_HEADER).splitlines()[:MOST_HEADER_LINES]
    axes = 0
    for line in lines:
        key, equals, value = (part.strip() for part in line.partition(b"="))
        if not equals or (key in MHA_NUMBERS and len(value.split()) > 16):
            break
        if key == b"NDims":
            axes = int(value) if value in (b"2", b"3", b"4") and not axes else -1
        if key == b"ElementDataFile":
            if axes > 0:
                return
            break
    raise ValueError("its header is no whole MetaImage header of two to four axes")


def check_header(file: Path) -> None:
    """Raises ValueError for headers with which ITK would end the process."""
    if file.name.endswith(".nrrd"):
        _check_nrrd_header(file)
    if file.name.endswith(".mha"):
        _check_mha_header(file)


def _promised_bytes(file: Path) -> tuple[int, int]:
    """Bytes of the voxels by the header of a file, and where they begin; zeros if the header is not looked at."""
    if file.name.endswith((".nii", ".nii.gz")):
        with contextlib.suppress(nibabel.filebasedimages.ImageFileError, nibabel.spatialimages.HeaderDataError):
            image = nibabel.nifti1.load(file)
            return math.prod(image.shape) * image.header.get_data_dtype().itemsize, image.dataobj.offset
    if file.name.endswith((".nii", ".nii.gz", ".nrrd", ".mha", ".gipl")):
        header = sitk.ImageFileReader()
        header.SetFileName(str(file))
        header.ReadImageInformation()
        values = math.prod(header.GetSize()) * header.GetNumberOfComponents()
        if file.name.endswith(".gipl"):
            return values * sitk.Image([1, 1], header.GetPixelID()).GetSizeOfPixelComponent(), _GIPL_HEADER
        return values, 0  # a byte each at least
    if file.name.lower().endswith((".tif", ".tiff")):
        with tifffile.TiffFile(file) as content:
            return sum(int(series.nbytes) for series in content.series), 0
    return 0, 0
