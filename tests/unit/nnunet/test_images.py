"""Images that cannot be what they say are refused with file and remedy."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from blobs import write_blobs
from limited import run_limited
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunetv2_sam3d.nnunet.images import ImageError, read_image


@pytest.fixture
def image(tmp_path: Path) -> Path:
    write_blobs(tmp_path, "straight", case="straight")
    return tmp_path / "straight_0000.nii.gz"


@pytest.mark.parametrize("reader", [SimpleITKIO, NibabelIO])
def test_images_that_cannot_be_read(reader: type, image: Path) -> None:
    whole = image.read_bytes()
    assert read_image([image], reader())[0].shape == (1, 18, 22, 26)
    for content in (b"", b"no image", gzip.compress(b"no image"), whole[:100], whole[: len(whole) // 2], whole[:-1]):
        image.write_bytes(content)
        with pytest.raises(ImageError, match=rf"^{image} cannot be read \([^\n]+\): it is damaged"):
            read_image([image], reader())
    with pytest.raises(ImageError, match="absent.nii.gz does not exist"):
        read_image([image.parent / "absent.nii.gz"], reader())


def test_images_without_numbers_or_promising_too_much(image: Path, tmp_path: Path) -> None:
    whole = sitk.ReadImage(str(image))
    values = sitk.GetArrayFromImage(whole).astype(np.float32)
    values[2, 3, 4], values[5, 6, 7] = np.nan, np.inf
    (changed := sitk.GetImageFromArray(values)).CopyInformation(whole)
    for ending, reader in ((".nrrd", SimpleITKIO), (".mha", SimpleITKIO)):
        sitk.WriteImage(changed, str(file := tmp_path / f"c_0000{ending}"))
        with pytest.raises(ImageError, match=rf"^{file} holds 2 voxels that are no finite.*\(4, 3, 2\)"):
            read_image([file], reader())
    bombs = {
        "a.nii": (sizes := nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4)).to_bytes()),
        "a.nii.gz": gzip.compress(sizes),
        "a.nrrd": b"NRRD0004\ntype: uint8\ndimension: 3\nsizes: 20000 20000 20000\nencoding: gzip\n\n"
        + gzip.compress(b"0"),
        "a.mha": b"ObjectType = Image\nNDims = 3\nDimSize = 20000 20000 20000\nElementType = MET_UCHAR\n"
        b"ElementDataFile = LOCAL\n" + bytes(8),
    }  # fmt: skip
    for name, content in bombs.items():
        if ".nii" in name:  # the sizes in the header of what has eight voxels
            content = bytearray(gzip.decompress(content) if name.endswith(".gz") else content)
            content[42:48] = np.array([20_000] * 3, "<i2").tobytes()
            content = gzip.compress(content) if name.endswith(".gz") else bytes(content)
        (tmp_path / name).write_bytes(content)
    body = """
for reader in (SimpleITKIO, NibabelIO):
    for file in sorted(Path(sys.argv[1]).glob("a.n*" if reader is NibabelIO else "a.*")):
        try:
            read_image([file], reader())
        except ImageError as error:
            assert "promises 8000000000000 bytes" in str(error), error
        else:
            sys.exit(f"{file} was read")
"""
    imports = (
        "from pathlib import Path\nfrom nnunetv2.imageio.nibabel_reader_writer import NibabelIO\n"
        "from nnunetv2_sam3d.nnunet.images import ImageError, SimpleITKIO, read_image"
    )
    run_limited(imports, body, [tmp_path], seconds=10, megabytes=100)
