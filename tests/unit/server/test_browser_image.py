"""Files that a browser sends: the right voxels in any orientation, and sentences for everything else."""

from __future__ import annotations

import gzip
import random
import tracemalloc
from pathlib import Path

import nibabel
import numpy as np
import pytest
from nifti_files import AFFINES, SHAPE, nifti, volume
from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name

from nnunetv2_sam3d.clicks.click import Click
from nnunetv2_sam3d.clicks.click_files import read_clicks
from nnunetv2_sam3d.nnunet.images import ImageError
from nnunetv2_sam3d.server.browser_image import BrowserImage, Upload

READERS = ("SimpleITKIO", "SimpleITKIOWithReorient", "NibabelIO", "NibabelIOWithReorient")
LIMIT = 1 << 20


def read(
    content: bytes, name: str = "case_0000.nii.gz", reader: str = "SimpleITKIO"
) -> tuple[BrowserImage, np.ndarray]:
    own = recursive_find_reader_writer_by_name(reader)()
    return BrowserImage.read([Upload.named(name, content)], own, LIMIT)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("orientation", [name for name in AFFINES if name != "oblique"])
def test_voxels_of_the_file(orientation: str, reader: str, tmp_path: Path) -> None:
    """Whichever way the reader turns the image, voxels and masks are those of the file."""
    values = volume()
    image, voxels = read(nifti(values, orientation), reader=reader)
    for ijk in ((0, 0, 0), (8, 6, 4), (6, 2, 1)):
        place = image.voxel(ijk)
        assert voxels[0][tuple(round(value) for value in place)] == values[ijk]
        assert image.file_voxel(place) == list(ijk)
    assert np.array_equal(image.in_file_order(voxels[0]), values.T)
    labels = (voxels[0] > 50).astype(np.uint8)
    name, content = image.mask_file(labels)
    written = nibabel.Nifti1Image.from_bytes(gzip.decompress(content))
    assert name == "case.nii.gz"
    assert np.array_equal(np.asarray(written.dataobj), values > 50)
    assert np.allclose(written.affine, AFFINES[orientation], atol=1e-4)


def test_clicks_as_predict_reads_them(tmp_path: Path) -> None:
    image, _ = read(nifti(volume(), "oblique"))
    name, content = image.click_file([Click((1, 2, 6), "lesion"), Click((3, 4, 2), "lesion", -1)], "Full")
    assert name == "case_clicks.json"
    (tmp_path / name).write_bytes(content)
    found = read_clicks(tmp_path / name)
    assert (found.image, [click.sign for click in found.clicks]) == ("case_0000.nii.gz", [1, -1])
    expected = AFFINES["oblique"] @ (6, 2, 1, 1)
    assert np.allclose(np.multiply(found.clicks[0].position, (-1, -1, 1)), expected[:3], atol=1e-3)


@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("liver_007_0000.nii.gz", "liver_007"),
        ("a/b\\c d.NII", "c d"),
        ("../../etc/x\n.nii.gz", "x_"),
        ("_0000.nii.gz", "image"),
        ("Größe.nii", "Größe"),
    ],
)
def test_names(name: str, case: str) -> None:
    assert Upload.named(name, b"").case == case


def refused(content: bytes, name: str = "ct.nii.gz") -> str:
    with pytest.raises(ImageError) as caught:
        read(content, name)
    return str(caught.value)


def test_what_is_no_volume() -> None:
    whole, colours = nifti(volume()), np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    assert "is no NIfTI image by its name" in refused(whole, "ct.png")
    assert "ct.nii.gz is no NIfTI image" in refused(b"")
    assert "ct.nii.gz is no NIfTI image" in refused(b"<html>not at all, but long enough for a header</html>" * 20)
    assert "ct.nii.gz cannot be unpacked" in refused(whole[:-40])
    assert "ct.nii.gz cannot be unpacked" in refused(whole[:60] + b"\0\0\0\0" + whole[64:])
    assert "is cut off: its header promises [9, 7, 5] voxels" in refused(nifti(volume(), packed=False)[:-1])
    assert "shape [9, 7, 5, 2]; expected one volume" in refused(nifti(np.stack([volume()] * 2, 3)))
    assert "colours" in refused(nifti(colours))
    assert "complex" in refused(nifti(volume().astype(np.complex64)))
    assert read(nifti(volume()[..., None]))[1].shape == (1, 5, 7, 9)  # one volume all the same


def test_memory_is_bounded() -> None:
    """A bomb of a few kilobytes, and a header that promises a terabyte."""
    bomb = gzip.compress(nifti(np.zeros((400, 400, 400), np.uint8), packed=False), 9)
    assert len(bomb) < 100_000
    tracemalloc.start()
    assert "more than 0.00105 GB when it is unpacked: crop it" in refused(bomb)
    header = nibabel.Nifti1Image(np.zeros((2, 2, 2), np.int16), np.eye(4)).header
    header["dim"][1:4] = 10_000
    assert "voxels, more than the server takes" in refused(bytes(header.binaryblock) + bytes(4 + 16))
    assert tracemalloc.get_traced_memory()[1] < 8 * LIMIT
    tracemalloc.stop()


def test_damaged_files_get_a_sentence() -> None:
    """Hundreds of damaged headers: an image or a sentence that names the file, never anything else."""
    chance = random.Random(1)
    whole = nifti(volume(), packed=False)
    outcomes = set()
    for _ in range(400):
        content = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            content[chance.randrange(352)] = chance.choice((0, 1, 127, 128, 255, chance.randrange(256)))
        try:
            _, voxels = read(bytes(content))
            outcomes.add("read")
            assert voxels.shape[0] == 1
        except ImageError as error:
            outcomes.add("refused")
            assert "case_0000.nii.gz" in str(error) and "/tmp" not in str(error)
    assert outcomes == {"read", "refused"}
