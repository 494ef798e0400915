"""The whole-volume protocol with predictors whose answers are known."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from scipy import ndimage
from torch import Tensor

from nnunetv2_sam3d.evaluation import whole_volume
from nnunetv2_sam3d.evaluation.whole_volume import WholeVolumeProtocol
from nnunetv2_sam3d.nnunet.labels import Target
from nnunetv2_sam3d.nnunet.trained_fold import Volume

LABELS = {"background": 0, "tumour": 1}
TUMOUR = Target("tumour", (1,))
SHAPE = (24, 24, 24)
SPACING_MM = (1.5, 1.0, 1.0)
RADIUS = 3
BIG = (slice(2, 16), slice(3, 14), slice(3, 14))
SMALL = (slice(18, 22), slice(17, 22), slice(17, 22))
BLOB = (slice(1, 10), slice(16, 23), slice(16, 23))  # beside the target


@pytest.fixture(autouse=True)
def annotations_of_these_folds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Theirs are arrays; test_whole_volume_run.py has them as files."""
    monkeypatch.setattr(whole_volume, "annotation_of", lambda fold, volume: (*fold.annotation(volume.case), 0.0))


def boxes(*places: tuple[slice, slice, slice]) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    for place in places:
        mask[place] = True
    return mask


def painted(mask: np.ndarray, clicks: Sequence[Sequence[int]], signs: Sequence[int], radius: float) -> np.ndarray:
    """A mask with a ball put in around each foreground click, and one taken out around each background click."""
    mask = mask.copy()
    for click, sign in zip(clicks, signs, strict=True):
        mask[sum((axis - at) ** 2 for axis, at in zip(np.indices(SHAPE), click, strict=True)) <= radius**2] = sign > 0
    return mask


class Painter:
    """A predictor that starts from a mask and paints around clicks; it notes what it was asked."""

    def __init__(self, automatic: np.ndarray, radius: float = RADIUS) -> None:
        self.mask, self.radius = automatic, radius
        self.asked: list[tuple[list, list]] = []

    def set_image(self, image: Tensor) -> None:
        assert image.shape == (1, *SHAPE) and image.dtype == torch.float32

    def automatic(self) -> Tensor:
        return as_logits(self.mask)

    def logits(self, points: Tensor, signs: Tensor) -> Tensor:
        assert points.shape == (len(signs), 3)
        self.asked.append((points.tolist(), signs.tolist()))
        return as_logits(painted(self.mask, points.tolist(), signs.tolist(), self.radius))


def as_logits(mask: np.ndarray) -> Tensor:
    return torch.stack([torch.from_numpy(~mask), torch.from_numpy(mask)]).half()


def evaluate(
    target: np.ndarray, predictor: Painter, counts: tuple[int, ...] = (0, 1, 3, 5), ignored: np.ndarray | None = None,
    **options: Any,
) -> dict[str, Any]:  # fmt: skip
    """The protocol on a case whose original grid is that of its preprocessed data."""
    segmentation = target.astype(np.int16)
    if ignored is not None:
        segmentation[ignored] = 2
    labels = LabelManager(LABELS | ({} if ignored is None else {"ignore": 2}), None)
    fold: Any = SimpleNamespace(
        labels=labels,
        annotation=lambda case: (segmentation, list(SPACING_MM)),
        original_segmentation=lambda logits, properties: logits.argmax(0).numpy(),
        plans=SimpleNamespace(transpose_forward=[0, 1, 2]),
        dataset_json={"labels": LABELS},
    )
    uncropped = {
        "bbox_used_for_cropping": [[0, size] for size in SHAPE], "shape_after_cropping_and_before_resampling": SHAPE,
    }  # fmt: skip
    volume = Volume("case_07", np.zeros((1, *SHAPE), np.float32), segmentation, SPACING_MM, uncropped)
    return WholeVolumeProtocol(TUMOUR, fold, click_counts=counts, **options).evaluate(predictor, volume)


def dice(one: np.ndarray, two: np.ndarray) -> float:
    return 2 * (one & two).sum() / (one.sum() + two.sum())


def middle_of_largest(error: np.ndarray) -> list[list[int]]:
    """The deepest voxels of the largest part of an error."""
    parts, _ = ndimage.label(error, np.ones((3, 3, 3)))
    largest = parts == np.bincount(parts.ravel())[1:].argmax() + 1
    depth = ndimage.distance_transform_edt(np.pad(largest, 1), SPACING_MM)[1:-1, 1:-1, 1:-1]
    return np.argwhere(depth > depth.max() - 1e-9).tolist()


def test_dice_rises_by_what_is_painted() -> None:
    """Clicks and figures, worked out again from the clicks that were stored."""
    target, automatic = boxes(BIG, SMALL), np.zeros(SHAPE, bool)
    predictor = Painter(automatic)
    result = evaluate(target, predictor)
    clicks = result["placed"]
    assert [click["placed"] for click in clicks] == ["first", *["error"] * 4]
    assert list(result["clicks"]) == ["0", "1", "3", "5"]
    shown = automatic
    for number, click in enumerate(clicks):
        wrong = target & ~shown
        for earlier in clicks[:number]:
            wrong[earlier["point_zyx"]] = False
        assert list(click["point_zyx"]) in middle_of_largest(wrong)
        assert click["sign"] == 1
        shown = painted(automatic, [c["point_zyx"] for c in clicks[: number + 1]], [1] * (number + 1), RADIUS)
        if str(number + 1) in result["clicks"]:
            found = result["clicks"][str(number + 1)]
            assert found["metrics"]["Dice"] == pytest.approx(dice(shown, target))
            assert found["predicted_voxels"] == shown.sum()
    curve = [found["metrics"]["Dice"] for found in result["clicks"].values()]
    assert curve[0] == 0 and curve == sorted(curve) and curve[-1] > 0.3
    # each prediction has all clicks so far, in their order
    assert [len(points) for points, _ in predictor.asked] == [1, 2, 3, 4, 5]
    assert predictor.asked[-1][0] == [list(click["point_zyx"]) for click in clicks]


def test_no_click_is_the_automatic_result_and_the_first_click_does_not_look_at_it() -> None:
    target = boxes(BIG, SMALL)
    for automatic in (np.zeros(SHAPE, bool), target, boxes(BIG), boxes(BLOB)):
        result = evaluate(target, Painter(automatic), (0, 1))
        assert result["clicks"]["0"]["metrics"]["Dice"] == pytest.approx(dice(automatic, target))
        (first,) = result["placed"]
        assert list(first["point_zyx"]) in middle_of_largest(target)


def test_only_a_signed_network_is_told_what_is_surplus() -> None:
    """The blob is the largest error; the small part of the target is the largest missed one."""
    target, automatic = boxes(BIG, SMALL), boxes(BIG, BLOB)
    unsigned = evaluate(target, Painter(automatic), (0, 2))["placed"]
    assert [(click["sign"], target[click["point_zyx"]]) for click in unsigned] == [(1, True), (1, True)]
    assert list(unsigned[1]["point_zyx"]) in middle_of_largest(boxes(SMALL))
    signed = evaluate(target, Painter(automatic, 5), (0, 1, 2), signed_clicks=True)
    assert [click["sign"] for click in signed["placed"]] == [1, -1]
    assert list(signed["placed"][1]["point_zyx"]) in middle_of_largest(boxes(BLOB))
    curve = [found["metrics"]["Dice"] for found in signed["clicks"].values()]
    assert curve[0] == curve[1] < curve[2]


def test_where_no_error_is_left_clicks_are_random_and_seeded() -> None:
    target = boxes(BIG)

    def clicks(seed: int, signed: bool = False) -> list[tuple]:
        placed = evaluate(target, Painter(target, radius=0), (0, 4), seed=seed, signed_clicks=signed)["placed"]
        assert [click["placed"] for click in placed] == ["first", "random", "random", "random"]
        assert all(target[click["point_zyx"]] and click["sign"] == 1 for click in placed)
        return [click["point_zyx"] for click in placed]

    assert clicks(0) == clicks(0) == clicks(0, signed=True)
    assert clicks(0)[0] == clicks(1)[0] and clicks(0)[1:] != clicks(1)[1:]
    assert len(set(clicks(0))) == 4


def test_a_deaf_network_is_not_clicked_on_one_place_forever() -> None:
    class Deaf(Painter):
        def logits(self, points: Tensor, signs: Tensor) -> Tensor:
            return self.automatic()

    result = evaluate(boxes(BIG), Deaf(boxes(BLOB)), (0, 10), signed_clicks=True)
    assert len({click["point_zyx"] for click in result["placed"]}) == 10
    assert result["clicks"]["0"] == result["clicks"]["10"]


def test_ignored_voxels_are_no_prediction_and_no_error() -> None:
    target = boxes(BIG, SMALL)
    result = evaluate(target, Painter(boxes(BIG, BLOB)), (0, 2), ignored=boxes(BLOB), signed_clicks=True)
    assert result["clicks"]["0"]["predicted_voxels"] == boxes(BIG).sum()
    assert [click["sign"] for click in result["placed"]] == [1, 1]


def test_only_what_was_clicked_on_counts() -> None:
    """The blob beside the target is in the automatic result, and out of it with clicks, which go to what is left."""
    target = boxes(BIG, SMALL)
    result = evaluate(target, Painter(boxes(BIG, BLOB)), (0, 1, 2), only_clicked=True, signed_clicks=True)
    found = {count: entry["metrics"]["Dice"] for count, entry in result["clicks"].items()}
    assert found["0"] == pytest.approx(dice(boxes(BIG, BLOB), target))
    assert found["1"] == pytest.approx(dice(boxes(BIG), target))  # it was there already
    second = result["placed"][1]
    assert second["sign"] == 1 and boxes(SMALL)[tuple(second["point_zyx"])]
    assert found["2"] == pytest.approx(dice(painted(boxes(BIG), [second["point_zyx"]], [1], RADIUS), target))


def test_regions() -> None:
    """A network of regions: the target is one of them, here two labels of which one overwrites the other."""
    labels = LabelManager({"background": 0, "both": [1, 2], "core": 2}, [1, 2])
    segmentation = np.where(boxes(BIG), 1, 0)
    segmentation[4:8, 5:9, 5:9] = 2
    fold: Any = SimpleNamespace(
        labels=labels,
        annotation=lambda case: (segmentation, list(SPACING_MM)),
        original_segmentation=lambda logits, properties: labels.convert_logits_to_segmentation(logits).numpy(),
    )

    class Regions(Painter):
        def automatic(self) -> Tensor:
            return torch.stack([as_logits(self.mask)[1] - 0.5, as_logits(segmentation == 2)[1] - 0.5])

    protocol = WholeVolumeProtocol(Target("both", (1, 2)), fold, click_counts=(0,))
    volume = Volume("case_07", np.zeros((1, *SHAPE), np.float32), segmentation, SPACING_MM)
    found = protocol.evaluate(Regions(boxes(BIG, BLOB)), volume)["clicks"]["0"]
    assert found["metrics"]["Dice"] == pytest.approx(dice(boxes(BIG, BLOB), boxes(BIG)))


def test_case_without_target_is_left_out() -> None:
    assert evaluate(np.zeros(SHAPE, bool), Painter(boxes(BIG))) == {"left_out": "no voxel of tumour to click on"}


@pytest.mark.parametrize(
    ("counts", "options"),
    [((), {}), ((-1, 0), {}), ((1, 1), {}), ((0, 1), {"tolerance_mm": 0.0}), ((0,), {"seed": -1})],
)
def test_impossible_settings(counts: tuple[int, ...], options: dict) -> None:
    with pytest.raises(ValueError, match="numbers of clicks|tolerance|seed"):
        evaluate(boxes(BIG), Painter(boxes(BIG)), counts, **options)
