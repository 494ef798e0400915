"""The phantoms are plausible patients, geometry included, and make a data set that nnU-Net accepts."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
from functools import cache

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.ndimage import binary_dilation, binary_erosion
from scipy.ndimage import label as components

from nnunetv2_sam3d.demo import phantoms
from nnunetv2_sam3d.demo.anatomy import CYST, KIDNEY, TUMOUR
from nnunetv2_sam3d.demo.phantoms import PhantomCase, make_phantom
from nnunetv2_sam3d.demo.raw_dataset import VERSION, case_seeds, write_dataset

SEEDS = range(6)


@cache
def phantom(seed: int) -> PhantomCase:
    return make_phantom(seed)


@cache
def patient_and_scan(seed: int) -> tuple[phantoms.Anatomy, phantoms.Scan]:
    patient, scanner, _ = np.random.default_rng(seed).spawn(3)
    anatomy = phantoms.sample_anatomy(patient)
    return anatomy, phantoms.sample_scan(scanner, anatomy)


def positions_mm(case: PhantomCase, mask: np.ndarray) -> np.ndarray:
    """LPS positions (n, 3) of the voxels in `mask`."""
    xyz = np.argwhere(mask)[:, ::-1] * case.spacing_mm[::-1]
    return xyz @ np.array(case.direction).reshape(3, 3).T + case.origin_mm


def middle_x_mm(case: PhantomCase) -> float:
    return float(positions_mm(case, np.ones(case.labels.shape, bool))[:, 0].mean())


def test_same_seed_same_bytes_and_other_seed_other_patient() -> None:
    first, again, other = make_phantom(3), make_phantom(3), make_phantom(4)
    for field in dataclasses.fields(PhantomCase):
        a, b = getattr(first, field.name), getattr(again, field.name)
        assert a.tobytes() == b.tobytes() if isinstance(a, np.ndarray) else a == b
    assert first.image_hu.shape != other.image_hu.shape or not np.array_equal(first.image_hu, other.image_hu)


@pytest.mark.parametrize("seed", SEEDS)
def test_arrays_and_geometry_are_within_the_promised_ranges(seed: int) -> None:
    case = phantom(seed)
    assert case.image_hu.dtype == np.int16 and case.labels.dtype == np.uint8
    assert case.image_hu.shape == case.labels.shape
    slices, rows, columns = case.labels.shape
    assert 36 <= slices <= 60 and 96 <= rows <= 128 and rows == columns
    z, y, x = case.spacing_mm
    assert 3 <= z <= 5 and 2.6 <= y <= 3.4 and x == y
    assert any(case.origin_mm)
    assert np.linalg.norm(case.direction) == pytest.approx(3**0.5)
    assert case.image_hu.min() >= -1024 and case.image_hu.max() > 350  # air to bone


@pytest.mark.parametrize("seed", SEEDS)
def test_both_kidneys_and_a_tumour_lie_inside_the_image(seed: int) -> None:
    case = phantom(seed)
    voxel_ml = np.prod(case.spacing_mm) / 1000
    x = positions_mm(case, case.labels == KIDNEY)[:, 0] - middle_x_mm(case)
    for side in (-1, 1):
        assert 40 < np.sum(side * x > 0) * voxel_ml < 350  # parenchyma: a large tumour takes the place of some
    assert 4 < np.sum(case.labels == TUMOUR) * voxel_ml < 250
    assert not case.labels[[0, -1]].any() and not case.labels[:, [0, -1]].any() and not case.labels[:, :, [0, -1]].any()


@pytest.mark.parametrize("seed", SEEDS)
def test_lesions_touch_a_kidney(seed: int) -> None:
    labels = phantom(seed).labels
    for lesion in (TUMOUR, CYST):
        parts, count = components(labels == lesion, np.ones((3, 3, 3)))
        for part in range(1, count + 1):
            around = binary_dilation(parts == part, np.ones((3, 3, 3)))
            assert (labels[around] == KIDNEY).any()


def test_intensities_match_the_labels() -> None:
    means: dict[int, list[float]] = {KIDNEY: [], TUMOUR: [], CYST: []}
    for seed in SEEDS:
        case = phantom(seed)
        for value, found in means.items():
            core = binary_erosion(case.labels == value)  # without the partial volume at the edge
            if core.sum() >= 10:
                found.append(case.image_hu[core].mean())
    assert all(120 < hu < 190 for hu in means[KIDNEY])
    assert all(25 < hu < 115 for hu in means[TUMOUR])
    assert means[CYST] and all(-10 < hu < 45 for hu in means[CYST])
    assert np.mean(means[KIDNEY]) - np.mean(means[TUMOUR]) > 50
    assert np.mean(means[TUMOUR]) - np.mean(means[CYST]) > 30


@pytest.mark.parametrize("seed", SEEDS)
def test_fat_around_the_body_organs_and_air(seed: int) -> None:
    image = phantom(seed).image_hu
    assert np.mean(image < -900) > 0.2
    fat = image[(image > -140) & (image < -60)]
    assert fat.size > 0.05 * image.size and -110 < np.median(fat) < -85


@pytest.mark.parametrize("seed", SEEDS)
def test_a_threshold_does_not_find_the_tumour(seed: int) -> None:
    case = phantom(seed)
    low, high = np.percentile(case.image_hu[case.labels == TUMOUR], (10, 90))
    in_range = (case.image_hu >= low) & (case.image_hu <= high)
    assert np.mean(case.labels[in_range] == TUMOUR) < 0.1


@pytest.mark.parametrize("seed", SEEDS)
def test_the_liver_is_on_the_right_and_the_spine_behind(seed: int) -> None:
    case = phantom(seed)
    bone = positions_mm(case, case.image_hu > 350)
    kidneys = positions_mm(case, case.labels == KIDNEY)
    middle = middle_x_mm(case)
    near = np.abs(bone[:, 0] - middle) < 30
    assert bone[near, 1].mean() > kidneys[:, 1].mean()
    # The largest organ of its density in the upper half; LPS: the patient's right has the smaller x.
    smooth = sitk.GetArrayFromImage(sitk.Median(sitk.GetImageFromArray(case.image_hu), (1, 1, 1)))
    soft = positions_mm(case, binary_erosion((smooth > 75) & (smooth < 135), iterations=2) & (case.labels == 0))
    soft = soft[soft[:, 2] > kidneys[:, 2].mean()]
    assert np.mean(soft[:, 0] < middle) > 0.6


@pytest.mark.parametrize(
    ("spacing", "flipped"),
    [((3.2, 2.7, 2.7), (True, False, False)), ((4.8, 3.3, 3.3), (False, True, True))],
)
def test_position_and_volume_do_not_depend_on_grid_or_orientation(
    spacing: tuple[float, float, float], flipped: tuple[bool, bool, bool]
) -> None:
    anatomy, scan = patient_and_scan(0)  # has one tumour: with two, the centre shifts with their volumes
    extent = np.array(scan.shape) * scan.spacing_mm
    shape = tuple(np.ceil(extent / spacing).astype(int).tolist())
    plain = dataclasses.replace(scan, flipped=(False, False, False))
    other = dataclasses.replace(scan, shape=shape, spacing_mm=spacing, flipped=flipped)
    cases = [phantoms.acquire(anatomy, s, np.random.default_rng(0)) for s in (plain, other)]
    for value in (KIDNEY, TUMOUR):
        centres = [positions_mm(case, case.labels == value).mean(0) for case in cases]
        np.testing.assert_allclose(*centres, atol=0.5)
        volumes = [np.sum(case.labels == value) * np.prod(case.spacing_mm) for case in cases]
        assert volumes[0] == pytest.approx(volumes[1], rel=0.03)


def test_flipping_moves_neither_image_nor_labels() -> None:
    anatomy, scan = patient_and_scan(0)
    images = []
    for flipped in ((False, False, False), (True, False, False), (False, True, True)):
        case = phantoms.acquire(anatomy, dataclasses.replace(scan, flipped=flipped), np.random.default_rng(0))
        image = sitk.GetImageFromArray(case.image_hu)
        image.SetSpacing(case.spacing_mm[::-1])
        image.SetOrigin(case.origin_mm)
        image.SetDirection(case.direction)
        images.append(sitk.DICOMOrient(image, "LPS"))
    for image in images[1:]:
        np.testing.assert_allclose(image.GetOrigin(), images[0].GetOrigin(), atol=1e-3)
        np.testing.assert_array_equal(sitk.GetArrayViewFromImage(image), sitk.GetArrayViewFromImage(images[0]))


def test_patients_and_scans_vary() -> None:
    cases = [phantom(seed) for seed in SEEDS]
    assert len({case.direction for case in cases}) >= 2
    assert len({case.spacing_mm for case in cases}) == len(cases)
    patients = [patient_and_scan(seed)[0] for seed in range(60)]
    with_cyst = np.mean([any(layer.label == CYST for layer in patient.layers) for patient in patients])
    assert 0.3 <= with_cyst <= 0.7


def test_no_seed_is_used_twice() -> None:
    used = [seed for root in range(3) for split in case_seeds(root, 5000, 5000) for seed in split]
    assert len(set(used)) == len(used) == 30_000


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory):
    return write_dataset(tmp_path_factory.mktemp("raw"), train_cases=5, test_cases=2, progress=False)


def test_dataset_is_one_that_nnunet_accepts(dataset) -> None:
    assert dataset.name == "Dataset990_KidneyPhantoms"
    names = {part: sorted(f.name for f in (dataset / part).iterdir()) for part in ("imagesTr", "imagesTs", "labelsTs")}
    assert names["imagesTr"] == [f"phantom_{i:03d}_0000.nii.gz" for i in range(5)]
    assert names["imagesTs"] == ["phantom_005_0000.nii.gz", "phantom_006_0000.nii.gz"]
    assert names["labelsTs"] == ["phantom_005.nii.gz", "phantom_006.nii.gz"]
    description = json.loads((dataset / "dataset.json").read_text())
    assert description["labels"] == {"background": 0, "kidney": 1, "tumour": 2, "cyst": 3}
    assert description["numTraining"] == 5 and description["channel_names"] == {"0": "CT"}

    verify = pytest.importorskip("nnunetv2.experiment_planning.verify_dataset_integrity")
    with contextlib.redirect_stdout(io.StringIO()):
        verify.verify_dataset_integrity(str(dataset), 1)


def test_files_hold_the_case_and_its_geometry(dataset) -> None:
    for split, seeds, first in zip(("Tr", "Ts"), case_seeds(0, 5, 2), (0, 5), strict=True):
        case, stem = make_phantom(seeds[1]), f"phantom_{first + 1:03d}"
        pairs = ((f"images{split}/{stem}_0000", case.image_hu), (f"labels{split}/{stem}", case.labels))
        for name, array in pairs:
            image = sitk.ReadImage(str(dataset / f"{name}.nii.gz"))
            np.testing.assert_array_equal(sitk.GetArrayFromImage(image), array)
            np.testing.assert_allclose(image.GetSpacing(), case.spacing_mm[::-1], atol=1e-4)
            np.testing.assert_allclose(image.GetOrigin(), case.origin_mm, atol=1e-3)
            np.testing.assert_allclose(image.GetDirection(), case.direction, atol=1e-5)


def test_cysts_as_kidney(dataset, tmp_path) -> None:
    without = write_dataset(tmp_path, train_cases=5, test_cases=2, cysts=False, progress=False, processes=2)
    assert json.loads((without / "dataset.json").read_text())["labels"] == {"background": 0, "kidney": 1, "tumour": 2}
    seen = set()
    for file in dataset.glob("labels*/*"):
        labels, as_kidney = (sitk.GetArrayFromImage(sitk.ReadImage(str(f / file.parent.name / file.name)))
                             for f in (dataset, without))  # fmt: skip
        seen |= set(np.unique(labels))
        np.testing.assert_array_equal(as_kidney, np.where(labels == CYST, KIDNEY, labels))
    assert CYST in seen
    with pytest.raises(ValueError, match="delete the folder"):  # the two are not mixed
        write_dataset(tmp_path, train_cases=5, test_cases=2, progress=False)


def test_no_test_case_is_a_training_case(dataset) -> None:
    def digests(part: str) -> set[str]:
        arrays = (sitk.GetArrayFromImage(sitk.ReadImage(str(f))) for f in (dataset / part).iterdir())
        return {hashlib.sha256(a.tobytes()).hexdigest() for a in arrays}

    training, test = digests("imagesTr"), digests("imagesTs")
    assert len(training) == 5 and len(test) == 2 and not training & test


def test_a_repeated_call_keeps_whole_cases_and_makes_missing_ones(dataset) -> None:
    lost = dataset / "labelsTr" / "phantom_002.nii.gz"
    before = {f: f.stat().st_mtime_ns for f in dataset.rglob("*.nii.gz") if "phantom_002" not in f.name}
    content = lost.read_bytes()
    lost.unlink()
    (dataset / "dataset.json").unlink()  # as after an interruption
    assert write_dataset(dataset.parent, train_cases=5, test_cases=2, progress=False) == dataset
    assert {f: f.stat().st_mtime_ns for f in before} == before
    assert sitk.GetArrayFromImage(sitk.ReadImage(str(lost))).any() and len(lost.read_bytes()) == len(content)
    assert (dataset / "dataset.json").exists()
    assert not list(dataset.rglob(".*"))


@pytest.mark.parametrize("change", [{"seed": 1}, {"train_cases": 6}, {"test_cases": 3}])
@pytest.mark.parametrize("record", ["phantoms.json", "dataset.json"])
def test_another_configuration_is_not_mixed_in(tmp_path, change: dict[str, int], record: str) -> None:
    folder = tmp_path / "Dataset990_KidneyPhantoms"
    folder.mkdir()
    found = {"version": VERSION, "seed": 0, "train_cases": 5, "test_cases": 2}
    (folder / record).write_text(json.dumps({"phantoms": found}))
    with pytest.raises(ValueError, match="delete the folder"):
        write_dataset(tmp_path, progress=False, **{"train_cases": 5, "test_cases": 2, **change})
    assert [f.name for f in folder.iterdir()] == [record]


def test_a_foreign_dataset_is_left_alone(tmp_path) -> None:
    (tmp_path / "Dataset990_KidneyPhantoms" / "imagesTr").mkdir(parents=True)
    with pytest.raises(ValueError, match="another data set"):
        write_dataset(tmp_path, progress=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train_cases": 4}, "train_cases must be within 5"),
        ({"test_cases": -1}, "test_cases must be within 0"),
        ({"dataset_id": 0}, "dataset_id must be within 1"),
        ({"dataset_id": 1000}, "dataset_id must be within 1"),
        ({"name": "a/b"}, "name must be letters"),
        ({"seed": -1}, "seed must be at least 0"),
    ],
)
def test_nonsense_is_refused_before_anything_is_written(tmp_path, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_dataset(tmp_path, **arguments)
    assert not list(tmp_path.iterdir())


def test_negative_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="seed must be at least 0"):
        make_phantom(-1)
