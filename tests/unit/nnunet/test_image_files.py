"""Image files whose voxels are not all there: refused when they are read, and never left behind when one is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO

from nnunetv2_sam3d.nnunet.image_files import check_size, image_written_whole

NOISE = np.random.default_rng(0).integers(0, 255, (20, 30, 40)).astype(np.uint8)  # which hardly compresses
GEOMETRY: dict[str, Any] = {
    "sitk_stuff": {"spacing": (1.0, 1.0, 2.0), "origin": (0.0, 0.0, 0.0), "direction": tuple(np.eye(3).ravel())},
    "nibabel_stuff": {"original_affine": np.eye(4)},
    "spacing": [2.0, 1.0, 1.0],
}
WRITERS = [(SimpleITKIO, ending) for ending in SimpleITKIO.supported_file_endings]
WRITERS += [(NibabelIO, ".nii"), (NibabelIO, ".nii.gz"), (Tiff3DIO, ".tif")]


@pytest.mark.parametrize(("writer", "ending"), WRITERS)
@pytest.mark.parametrize("earlier", [False, True])
def test_a_full_disk_leaves_no_part_of_an_image(writer: Any, ending: str, earlier: bool, tmp_path: Path) -> None:
    """A limit on the size of files stops the writing half-way, as a full disk does; ITK then says nothing of NIfTI."""
    resource = pytest.importorskip("resource")
    file = tmp_path / f"case{ending}"
    if earlier:
        file.write_bytes(b"the earlier one")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (NOISE.size // 2, limits[1]))
    try:
        with pytest.raises(OSError, match=f"case{ending} could not be written: .*Free disk space"):
            with image_written_whole(file, ending) as partial:
                writer().write_seg(NOISE, str(partial), GEOMETRY)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.glob("*case*")] == ([file.name] if earlier else [])
    assert not earlier or file.read_bytes() == b"the earlier one"
    with image_written_whole(file, ending) as partial:
        writer().write_seg(NOISE, str(partial), GEOMETRY)
    assert np.array_equal(writer().read_seg(str(file))[0][0], NOISE)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".gipl"])
@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.float32])
def test_a_byte_less_is_noticed(ending: str, kind: type, tmp_path: Path) -> None:
    """In the formats of which ITK reads what is absent as if it were there."""
    file = tmp_path / f"case{ending}"
    sitk.WriteImage(sitk.GetImageFromArray(NOISE.astype(kind)), str(file))
    check_size(file)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises((ValueError, EOFError)):
        check_size(file)
