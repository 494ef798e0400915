"""The reference's test protocol against values that plain code in these tests works out."""

from __future__ import annotations

from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunetv2_sam3d.clicks.sampling import click_generator, random_target_voxels
from nnunetv2_sam3d.evaluation.reference_protocol import ReferenceProtocol
from nnunetv2_sam3d.nnunet.labels import Target
from nnunetv2_sam3d.nnunet.trained_fold import Volume
from nnunetv2_sam3d.weights.reading import load_model

BINARY = LabelManager({"background": 0, "tumour": 1}, None)
TUMOUR = Target("tumour", (1,))
SPACING_MM = (1.5, 1.0, 0.5)
NSD = "NSD 5 mm"
KITS_TUMOUR = "NSD 1.15 mm (KiTS, tumour)"


def volume(shape: tuple[int, int, int], boxes: list[tuple[slice, slice, slice]], label: int = 1) -> Volume:
    segmentation = np.zeros(shape, np.int16)
    for box in boxes:
        segmentation[box] = label
    image = np.random.default_rng(7).normal(size=(1, *shape)).astype(np.float32)
    return Volume("case_07", image, segmentation, SPACING_MM)


def expected_clicks(segmentation: np.ndarray, count: int, seed: int = 0) -> list[list[int]]:
    """The first of all target voxels in random order, by the documented random numbers."""
    voxels = [[z, y, x] for z, y, x in np.ndindex(*segmentation.shape) if segmentation[z, y, x] == 1]
    order = np.random.default_rng([seed, crc32(b"case_07"), count]).permutation(len(voxels))
    return [voxels[place] for place in order[:count]]


def expected_start(clicks: list[list[int]], size: int) -> list[int]:
    return [int(np.floor((min(axis) + max(axis)) / 2)) - size // 2 for axis in zip(*clicks, strict=True)]


def padded_crop(image: np.ndarray, start: list[int], size: int) -> np.ndarray:
    """The crop out of an image with so much zero around it that nothing can be missing."""
    wide = np.pad(image, size)
    z, y, x = (first + size for first in start)
    return wide[z : z + size, y : y + size, x : x + size]


@pytest.mark.golden
def test_golden_checkpoint_crop_clicks_and_metrics(shared: Path) -> None:
    """Crop, clicks, Dice and NSD at 5 mm and KiTS's tolerance, with the network of the golden checkpoint."""
    monai = pytest.importorskip("monai.metrics", reason="MONAI computes the expected surface Dice")
    network = load_model(shared / "golden" / "reference_tiny.pth.tar")
    # higher than the crop, narrower than it, and the target so near the upper end that the crop leaves the volume
    case = volume((150, 132, 90), [(slice(90, 142), slice(40, 90), slice(30, 75))])
    given: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def predict(image: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            given.append((image, points, network(image, points)[0]))
        return given[-1][2]

    result = ReferenceProtocol(TUMOUR, BINARY, click_counts=(1, 3)).evaluate(predict, case)
    target = case.segmentation == 1
    for count, (image, points, logits) in zip((1, 3), given, strict=True):
        record = result["clicks"][str(count)]
        clicks = expected_clicks(case.segmentation, count)
        start = expected_start(clicks, 128)
        assert record["points_zyx"] == clicks
        assert record["crop_start_zyx"] == start
        assert record["points_outside_crop"] == 0
        crop = padded_crop(case.image[0], start, 128)
        assert np.array_equal(image.numpy(), crop[None, None])
        relative = np.array(clicks) - start
        assert np.array_equal(points.numpy(), relative[None])
        probability = torch.exp(logits[1]) / (torch.exp(logits[0]) + torch.exp(logits[1]))
        prediction = np.zeros(target.shape, bool)
        for z, y, x in np.argwhere(probability.numpy() > 0.5) + start:
            if 0 <= z < 150 and 0 <= y < 132 and 0 <= x < 90:
                prediction[z, y, x] = True
        assert 0 < prediction.sum() < prediction.size  # an empty or full result would prove little
        # a probability within rounding of 0.5 may fall on either side: one of 900,000 was seen to
        assert record["predicted_voxels"] == pytest.approx(prediction.sum(), abs=10)
        overlap = 2 * (prediction & target).sum() / (prediction.sum() + target.sum())
        assert record["metrics"]["Dice"] == pytest.approx(overlap, abs=1e-5)
        for name, tolerance in ((NSD, 5.0), (KITS_TUMOUR, 1.1498198361434828)):
            expected = monai.compute_surface_dice(
                torch.from_numpy(prediction)[None, None], torch.from_numpy(target)[None, None], [tolerance],
                include_background=True, spacing=SPACING_MM, use_subvoxels=True,
            )  # fmt: skip
            assert record["metrics"][name] == pytest.approx(expected.item(), abs=1e-4)


def bright(image: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """A network whose answer is known: probability above 0.5 where the image is above zero."""
    return torch.stack([torch.zeros_like(image[0, 0]), image[0, 0]])


def with_target_bright(case: Volume) -> Volume:
    image = np.where(case.segmentation == 1, 1.0, -1.0).astype(np.float32)[None]
    return Volume(case.case, image, case.segmentation, case.spacing_mm)


def test_perfect_network_scores_one_and_what_the_crop_misses_is_lost() -> None:
    case = with_target_bright(volume((40, 40, 40), [(slice(10, 30), slice(12, 20), slice(12, 20))]))
    whole = ReferenceProtocol(TUMOUR, BINARY, (64, 64, 64)).evaluate(bright, case)
    assert list(whole["clicks"]) == ["1", "3", "10"]
    for record in whole["clicks"].values():
        assert set(record["metrics"].values()) == {1.0}
        assert record["target_voxels_outside_crop"] == 0
    one = ReferenceProtocol(TUMOUR, BINARY, (16, 16, 16), (1,)).evaluate(bright, case)["clicks"]["1"]
    z = one["points_zyx"][0][0]
    seen = (min(30, z + 8) - max(10, z - 8)) * 64  # of 20 * 8 * 8; in y and x, 8 voxels around a click miss nothing
    assert one["target_voxels_outside_crop"] == 20 * 64 - seen
    assert one["predicted_voxels"] == seen
    assert one["metrics"]["Dice"] == pytest.approx(2 * seen / (seen + 20 * 64))


def test_clicks_far_apart_are_given_as_far_as_the_crop_has_them() -> None:
    case = volume(
        (80, 20, 20), [(slice(0, 2), slice(9, 11), slice(9, 11)), (slice(78, 80), slice(9, 11), slice(9, 11))]
    )
    seen: list[torch.Tensor] = []

    def predict(image: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        seen.append(points)
        return bright(image, points)

    record = ReferenceProtocol(TUMOUR, BINARY, (16, 16, 16), (10,)).evaluate(predict, case)["clicks"]["10"]
    depths = {point[0] for point in record["points_zyx"]}
    assert min(depths) < 2 and max(depths) > 77  # ten of sixteen voxels cannot all lie in one half
    assert record["points_outside_crop"] == 10
    assert seen[0].shape == (1, 0, 3)
    assert record["crop_start_zyx"][0] == (min(depths) + max(depths)) // 2 - 8


def test_case_without_target_is_left_out() -> None:
    result = ReferenceProtocol(TUMOUR, BINARY, (16, 16, 16)).evaluate(bright, volume((20, 20, 20), []))
    assert result == {"left_out": "no voxel of tumour to click on"}


def test_ignored_voxels_are_no_prediction() -> None:
    labels = LabelManager({"background": 0, "tumour": 1, "ignore": 2}, None)
    case = volume((24, 24, 24), [(slice(8, 16), slice(8, 16), slice(8, 16))])
    image = np.ones((1, 24, 24, 24), np.float32)
    segmentation = np.where(case.segmentation == 1, 1, 2).astype(np.int16)
    record = ReferenceProtocol(TUMOUR, labels, (48, 48, 48), (1,)).evaluate(
        bright, Volume("case_07", image, segmentation, SPACING_MM)
    )["clicks"]["1"]
    assert record["predicted_voxels"] == 8**3
    assert record["metrics"]["Dice"] == 1.0


def test_clicks_depend_on_seed_case_and_number_alone() -> None:
    target = np.random.default_rng(0).random((12, 12, 12)) > 0.5

    def clicks(seed: int, case: str, count: int) -> list[list[int]]:
        return random_target_voxels(target, count, click_generator(seed, case, count)).tolist()

    assert clicks(0, "a", 10) == clicks(0, "a", 10)
    different = [clicks(0, "a", 10), clicks(1, "a", 10), clicks(0, "b", 10), clicks(0, "a", 11)[:10]]
    assert all(one != other for place, one in enumerate(different) for other in different[:place])
    assert all(target[tuple(point)] for point in different[0])
    assert len({tuple(point) for point in different[0]}) == 10


def test_small_target_is_clicked_on_once_per_voxel() -> None:
    target = np.zeros((5, 5, 5), bool)
    target[2, 2, 1:4] = True
    assert sorted(random_target_voxels(target, 10, click_generator(0, "a", 10)).tolist()) == [
        [2, 2, 1], [2, 2, 2], [2, 2, 3]
    ]  # fmt: skip
    with pytest.raises(ValueError, match="no voxel"):
        random_target_voxels(np.zeros((2, 2, 2), bool), 1, click_generator(0, "a", 1))


def test_every_target_voxel_is_clicked_on_equally_often() -> None:
    target = np.ones((2, 2, 2), bool)
    counts = np.zeros((2, 2, 2))
    for seed in range(4000):
        counts[tuple(random_target_voxels(target, 1, click_generator(seed, "a", 1))[0])] += 1
    assert np.abs(counts - 500).max() < 5 * np.sqrt(500)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"click_counts": (0, 1)}, "numbers of clicks"),
        ({"click_counts": (3, 3)}, "numbers of clicks"),
        ({"click_counts": ()}, "numbers of clicks"),
        ({"crop_size": (128, 128)}, "crop"),
        ({"tolerance_mm": float("inf")}, "tolerance"),
        ({"seed": -1}, "seed"),
        ({"target": Target("cyst", (3,))}, r"no label \[3\]"),
    ],
)
def test_impossible_settings(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReferenceProtocol(**({"target": TUMOUR, "labels": BINARY} | options))
