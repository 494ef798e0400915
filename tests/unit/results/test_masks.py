"""Masks by nnU-Net's readers: where they lie, what is told, and the store of what was measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile

from nnunetv2_sam3d.nnunet.images import read_segmentation, reader_called
from nnunetv2_sam3d.report.overlays import Orientation, load_view
from nnunetv2_sam3d.results.collect import Item
from nnunetv2_sam3d.results.measure import measure_all, read_mask, voxels_apart
from nnunetv2_sam3d.results.structures import structures_of

STRUCTURES = structures_of({"labels": {"background": 0, "x": 1, "y": 2}}, None, kits=False, lesions=None)


def ball(shift: int = 0) -> np.ndarray:
    z, y, x = np.mgrid[:10, :20, :24]
    distance = (z - 5) ** 2 + (y - 10) ** 2 + (x - 9 - shift) ** 2
    return (distance < 20).astype(np.uint8) + (distance < 6)


def write(file: Path, array: np.ndarray, change: Callable[[sitk.Image], Any] = lambda image: None) -> Path:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((1.0, 1.5, 2.0))
    image.SetOrigin((-10.0, 5.0, 30.0))
    change(image)
    sitk.WriteImage(image, str(file))
    return file


def turned(angle: float) -> Callable[[sitk.Image], Any]:
    c, s = np.cos(angle), np.sin(angle)
    return lambda image: image.SetDirection((c, -s, 0, s, c, 0, 0, 0, 1))


def apart(folder: Path, change: Callable[[sitk.Image], Any], shape: tuple[int, ...] = (3, 512, 512)) -> float:
    empty = np.zeros(shape, np.uint8)
    files = write(folder / "p.nii.gz", empty), write(folder / "r.nii.gz", empty, change)
    return voxels_apart(*(read_mask(file, "SimpleITKIO") for file in files))


def test_a_small_turn_is_half_a_voxel_at_the_other_end(tmp_path: Path) -> None:
    assert apart(tmp_path, turned(0.0009)) == pytest.approx(0.0009 * 511 * np.hypot(1, 1.5), rel=0.01)
    assert apart(tmp_path, lambda image: image.SetOrigin((-10.0, 5.0, 31.0))) == pytest.approx(1.0)
    assert apart(tmp_path, lambda image: image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))) > 500
    assert apart(tmp_path, turned(1e-6)) == apart(tmp_path, lambda image: None) == 0
    with pytest.raises(ValueError, match=r"its spacing is \(1, 1.5, 2\), the reference's \(1, 1.5, 2.01\)"):
        apart(tmp_path, lambda image: image.SetSpacing((1.0, 1.5, 2.01)))


def items(folder: Path, change: Callable[[sitk.Image], Any] = lambda image: None, **more: Any) -> list[Item]:
    reference = write(folder / "r.nii.gz", ball(), change)
    return [Item(name, 0, "a", write(folder / f"{name}.nii.gz", ball(shift)), reference, **more)
            for name, shift in (("one", 1), ("two", 2))]  # fmt: skip


def test_what_nnunet_accepts_is_measured_and_told(tmp_path: Path) -> None:
    (tmp_path / "apart").mkdir()
    notes: list[str] = []
    rows = measure_all(items(tmp_path), STRUCTURES, [0, 1, 2], store=tmp_path / "s", notes=notes)
    assert notes == []
    shifted = items(tmp_path / "apart", lambda image: image.SetOrigin((0.0, 0.0, 0.0)))
    for _ in range(2):  # measured, and from the store
        notes = []
        again = measure_all(shifted, STRUCTURES, [0, 1, 2], store=tmp_path / "t", notes=notes)
        assert [row.measures for row in again] == [row.measures for row in rows]
        assert (
            len(notes) == 1
            and notes[0].startswith("1 annotations lie elsewhere in the patient")
            and "r.nii.gz" in notes[0]
        )


def test_one_prediction_that_lies_elsewhere_is_refused(tmp_path: Path) -> None:
    found = items(tmp_path)
    write(found[1].prediction, ball(2), turned(0.05))
    with pytest.raises(ValueError, match=rf"^{found[1].prediction} does not lie on the grid of .*r\.nii\.gz, as other"):
        measure_all(found, STRUCTURES, [0, 1, 2], store=tmp_path / "s")


def sheared(file: Path) -> Path:
    """A header that ITK does not take, and nnU-Net reads with nibabel."""
    image = nib.load(file)
    affine = image.affine.copy()
    affine[0, 1] = 0.2
    changed = nib.Nifti1Image(np.asarray(image.dataobj), affine)
    changed.set_qform(None, 0)
    changed.set_sform(affine, 1)
    nib.save(changed, file)
    return file


def test_the_reader_of_the_plans_reads_masks_and_images(tmp_path: Path) -> None:
    plain = measure_all(items(tmp_path), STRUCTURES, [0, 1, 2], store=tmp_path / "s")
    found = items(tmp_path, reader="NibabelIO")
    for file in {file for item in found for file in (item.prediction, item.reference)}:
        sheared(file)
    rows = measure_all(found, STRUCTURES, [0, 1, 2], store=tmp_path / "t")
    assert [row.measures.dice for row in rows] == [row.measures.dice for row in plain]
    image = sheared(write(tmp_path / "image.nii.gz", ball().astype(np.int16) * 100))
    view = load_view(found, image, STRUCTURES[0], [0, 1, 2], [(-1.0, 20.0, 40.0)])
    assert view.image is not None and np.array_equal(view.image, view.reference * 100.0)
    with pytest.raises(ValueError, match="cannot be read"):
        read_mask(image, "SimpleITKIO")
    with pytest.raises(ValueError, match="no reader 'SomeIO'"):
        reader_called("SomeIO")


def test_a_format_without_a_place(tmp_path: Path) -> None:
    files = []
    for name, shift in (("p", 1), ("r", 0)):
        tifffile.imwrite(file := tmp_path / f"{name}.tif", ball(shift))
        (tmp_path / f"{name}.json").write_text('{"spacing": [2.0, 1.5, 1.0]}')
        files.append(file)
    rows = measure_all([Item("m", 0, "a", *files, reader="Tiff3DIO")], STRUCTURES, [0, 1, 2], store=tmp_path / "s")
    write(tmp_path / "p.nii.gz", ball(1)), write(tmp_path / "r.nii.gz", ball())
    expected = measure_all([Item("m", 0, "a", tmp_path / "p.nii.gz", tmp_path / "r.nii.gz")], STRUCTURES, [0, 1, 2],
                           store=tmp_path / "s")  # fmt: skip
    assert [row.measures for row in rows] == [row.measures for row in expected]


def test_masks_are_as_nnunets_reader_gives_them(tmp_path: Path) -> None:
    file = write(tmp_path / "a.nii.gz", ball())
    reader = reader_called("SimpleITKIO")
    values, properties = read_segmentation(file, reader)
    theirs, told = reader.read_seg(str(file))
    assert values.dtype == np.uint8 and np.array_equal(values, theirs[0]) and properties == told


@pytest.mark.parametrize("direction", [np.eye(3), np.diag([-1, -1, 1]), np.eye(3)[[2, 0, 1]], -np.eye(3)[[1, 0, 2]]])
def test_planes_are_the_patients(direction: np.ndarray, tmp_path: Path) -> None:
    """The same as ITK's DICOMOrient."""
    file = write(tmp_path / "a.nii.gz", ball() + np.arange(24, dtype=np.uint8),
                 lambda image: image.SetDirection(direction.ravel().tolist()))  # fmt: skip
    mask = read_mask(file, "SimpleITKIO")
    place, expected = Orientation(mask.geometry, mask.spacing_mm), sitk.DICOMOrient(sitk.ReadImage(str(file)), "LPS")
    assert np.array_equal(place.turned(mask.values), sitk.GetArrayFromImage(expected))
    assert place.spacing_mm == pytest.approx(expected.GetSpacing()[::-1])
    point = expected.TransformContinuousIndexToPhysicalPoint((3.5, 2.0, 4.0))
    assert place.voxels([point])[0] == pytest.approx((4.0, 2.0, 3.5))


def test_the_store_is_believed_only_as_it_was_written(tmp_path: Path) -> None:
    found, store = items(tmp_path), tmp_path / "measured.jsonl"
    right = measure_all(found, STRUCTURES, [0, 1, 2], store=store)
    text = store.read_text()
    entry = json.loads(text.splitlines()[0])
    dice = entry["measures"][0]["dice"]
    damages = {
        "a digit": text.replace(f'"dice": {dice!r}', '"dice": 0.97', 1),
        "text": text.replace(f'"dice": {dice!r}', '"dice": "x"', 1),
        "a structure too few": json.dumps(entry | {"measures": entry["measures"][:1]}) + "\n",
        "deep": "[" * 100_000 + "\n" + text,
        "no table": "5\n" + text,
        "cut off": text[:-30],
        "no text": "\ufffd\x00" * 30 + "\n" + text,
        "earlier": json.dumps({key: entry[key] for key in ("key", "measures")}) + "\n",
    }
    for name, content in damages.items():
        store.write_text(content)
        notes: list[str] = []
        assert measure_all(found, STRUCTURES, [0, 1, 2], store=store, notes=notes) == right, name
        assert notes and notes[0].startswith(f"{store}: 1 lines do not hold what was written"), name
        assert measure_all(found, STRUCTURES, [0, 1, 2], store=store, notes=(notes := [])) == right, name
        assert len(store.read_text().splitlines()) <= 4 and len(notes) == 1, name  # nothing is measured a third time
    store.write_text(text)
    notes = []
    assert measure_all(found, STRUCTURES, [0, 1, 2], store=store, notes=notes) == right and notes == []
