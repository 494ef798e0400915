"""Clicks of training steps: presets, what is clicked on, and the same draws for the same step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunetv2_sam3d.clicks.presets import PRESETS, click_training
from nnunetv2_sam3d.clicks.sampling import correcting_click
from nnunetv2_sam3d.clicks.simulation import BORDER_VOXELS, SimulatedClicks, background_points
from nnunetv2_sam3d.nnunet.labels import ClickTarget, click_target

KITS = {"background": 0, "kidney": [1, 2, 3], "masses": [2, 3], "tumour": 2}
PLAIN = {"background": 0, "organ": 1, "tumour": 2, "cyst": 3}
IGNORE = PLAIN | {"ignore": 4}
SIZE = (12, 14, 16)


def manager(labels: dict[str, Any]) -> LabelManager:
    regions = any(isinstance(value, list) for value in labels.values())
    return LabelManager(labels, [1, 3, 2] if regions else None)


def target_of(labels: dict[str, Any], *wanted: str) -> ClickTarget:
    return click_target(labels, manager(labels), wanted or None)


def batch(samples: int = 2, tumour: bool = True) -> np.ndarray:
    """nnU-Net's target of crops with an organ and, in all but the last sample, a tumour of 60 voxels."""
    target = np.zeros((samples, 1, *SIZE), np.int16)
    target[:, 0, 1:11, 1:11, 1:11] = 1
    if tumour:
        target[: max(1, samples - 1), 0, 4:7, 4:8, 4:9] = 2
    return target


def simulated(preset: str = "mixed", *, signed: bool = False, seed: int = 3, **changes: Any) -> SimulatedClicks:
    training = click_training(preset, **changes)
    assert training is not None
    return SimulatedClicks(training, target_of(PLAIN), signed, seed)


# --- presets ---


def test_presets() -> None:
    assert click_training("none") is None
    mixed, reference = click_training("mixed"), click_training("reference")
    assert mixed is not None and reference is not None
    assert (mixed.automatic_share, mixed.max_clicks, mixed.fewer, mixed.random_points) == (0.5, 10, True, 0)
    numbers = (reference.automatic_share, reference.max_clicks, reference.random_points, reference.validation_clicks)
    assert numbers == (0, 10, 20, 10)
    assert not reference.fewer
    changed = click_training("mixed", automatic_share=0.25, max_clicks=4)
    assert changed is not None
    assert (changed.automatic_share, changed.max_clicks) == (0.25, 4)
    assert PRESETS["mixed"] == mixed  # as before


# --- what is clicked on ---


@pytest.mark.parametrize(
    ("labels", "wanted", "values", "channels"),
    [
        (PLAIN, (), (2,), (2,)),
        (PLAIN, ("organ", "cyst"), (1, 3), (1, 3)),
        (PLAIN, ("2,3",), (2, 3), (2, 3)),
        ({"background": 0, "Anterior": 1, "Posterior": 2}, (), (1, 2), (1, 2)),
        ({"background": 0, "enhancing tumour": 1, "tumour core": 2, "oedema": 3}, (), (1, 2), (1, 2)),
        (KITS, (), (2,), (2,)),
        (KITS, ("masses",), (2, 3), (1, 2)),
        (KITS, ("kidney",), (1, 2, 3), (0, 1, 2)),
        ({"background": 0, "left": [1, 2], "right": [3, 4], "vessel": 5}, (), (1, 2, 3, 4, 5), (0, 1, 2)),
    ],
)
def test_labels_and_channels(
    labels: dict[str, Any], wanted: tuple[str, ...], values: tuple[int, ...], channels: tuple[int, ...]
) -> None:
    target = target_of(labels, *wanted)
    assert (target.labels, target.channels) == (values, channels)


def test_names_that_are_not_there_and_labels_without_region() -> None:
    with pytest.raises(ValueError, match="there is no target 'liver'.*tumour = 2"):
        target_of(PLAIN, "liver")
    with pytest.raises(
        ValueError, match=r"no regions are made of these labels.*\[\[1, 2, 3\], \[2, 3\], \[2\]\].*--cl"
    ):
        target_of(KITS, "3")


def test_masks_of_labels_and_regions_are_the_same() -> None:
    segmentation = np.random.default_rng(0).integers(0, 4, (2, 1, *SIZE))
    regions = np.concatenate([np.isin(segmentation, region) for region in ([1, 2, 3], [2, 3], [2])], 1)
    for wanted, values in (("tumour", [2]), ("masses", [2, 3]), ("kidney", [1, 2, 3])):
        expected = np.isin(segmentation[:, 0], values)
        assert np.array_equal(target_of(KITS, wanted).masks(regions), expected)
        assert np.array_equal(target_of(KITS, wanted).masks(regions.astype(np.float32)), expected)
        names = ",".join(map(str, values))
        assert np.array_equal(target_of(PLAIN, names).masks(segmentation), expected)


def test_predictions_of_labels_and_regions() -> None:
    logits = torch.randn(2, 4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    assert np.array_equal(target_of(PLAIN, "2,3").predicted(logits), (logits.argmax(1) >= 2).numpy())
    assert np.array_equal(target_of(KITS, "tumour").predicted(logits[:, 1:]), (logits[:, 3] > 0).numpy())


def test_ignored_voxels() -> None:
    segmentation = np.random.default_rng(0).integers(0, 5, (2, 1, *SIZE))
    assert np.array_equal(target_of(IGNORE).ignored(segmentation), segmentation[:, 0] == 4)
    assert not target_of(PLAIN).ignored(batch()).any()
    labels = KITS | {"ignore": 4}
    regions = [np.isin(segmentation, region) for region in ([1, 2, 3], [2, 3], [2], [4])]
    assert np.array_equal(target_of(labels).ignored(np.concatenate(regions, 1)), segmentation[:, 0] == 4)


# --- steps ---


def test_steps_are_drawn_alike_again_and_differ_from_each_other() -> None:
    one, again, other = simulated(), simulated(), simulated(seed=4)
    clicked = [(epoch, step) for epoch in range(3) for step in range(20) if not one.is_automatic(epoch, step)]
    drawn = [one.for_training(batch(), *place) for place in clicked]
    for place, clicks in zip(reversed(clicked), reversed(drawn), strict=True):  # in whatever order
        repeated = again.for_training(batch(), *place)
        assert np.array_equal(repeated.points, clicks.points) and np.array_equal(repeated.signs, clicks.signs)
    several = [clicks.points.tobytes() for clicks in drawn if (clicks.signs != 0).sum() > 1]  # one may be in the middle
    assert len(set(several)) == len(several) > 10
    assert [one.is_automatic(0, step) for step in range(30)] != [other.is_automatic(0, step) for step in range(30)]
    epoch, step = clicked[0]
    others = one.for_training(batch(), epoch, step, rank=1)  # another process, other crops
    assert not np.array_equal(others.points, drawn[0].points)


def test_share_of_automatic_steps() -> None:
    for share in (0.0, 0.3, 0.5):
        clicks = simulated(automatic_share=share)
        automatic = np.mean([clicks.is_automatic(epoch, step) for epoch in range(20) for step in range(50)])
        assert automatic == pytest.approx(share, abs=0.05)  # standard deviation 0.016
    clicks = simulated()
    for step in range(20):
        signs = clicks.for_training(batch(), 0, step).signs
        assert signs.shape == (2, 10)
        assert (signs == 0).all() == clicks.is_automatic(0, step)


def test_few_clicks_are_more_frequent_than_many() -> None:
    clicks = simulated(automatic_share=0.0)
    counts = np.bincount([int(clicks.for_training(batch(1), 0, step).signs.sum()) for step in range(1500)])
    expected = 1500 / np.arange(1, 11) / (1 / np.arange(1, 11)).sum()
    assert counts[0] == 0
    assert (np.abs(counts[1:] - expected) < 4 * np.sqrt(expected)).all()


def test_half_of_the_samples_begin_in_the_middle() -> None:
    clicks, target = simulated(automatic_share=0.0), batch(1)
    middle, _ = correcting_click(np.zeros(SIZE, bool), target[0, 0] == 2) or (None, 0)
    first = [tuple(clicks.for_training(target, 0, step).points[0, 0]) for step in range(200)]
    assert np.mean([point == middle for point in first]) == pytest.approx(0.5, abs=0.12)  # standard deviation 0.035


def test_mixed_clicks_lie_on_the_target_and_nowhere_without() -> None:
    clicks = simulated(automatic_share=0.0)
    target = batch()
    for step in range(20):
        points, signs = clicks.for_training(target, 0, step)
        assert points.dtype == signs.dtype == np.float32
        assert (signs[1] == 0).all()  # no tumour
        count = int(signs[0].sum())
        assert signs[0].tolist() == [1] * count + [0] * (10 - count)
        chosen = points[0, :count].astype(int)
        assert (target[0, 0][tuple(chosen.T)] == 2).all()
        assert len(np.unique(chosen, axis=0)) == count
        assert (points[0, count:] == 0).all()


def test_a_target_of_fewer_voxels_gets_fewer_clicks() -> None:
    target = batch(1, tumour=False)
    target[0, 0, 5, 5, 5:7] = 2
    clicks = simulated("reference").for_training(target, 0, 0)
    assert clicks.signs.sum() == 22


def test_the_references_recipe() -> None:
    clicks = simulated("reference")
    target = batch()
    everywhere = []
    for step in range(100):
        assert not clicks.is_automatic(0, step)
        points, signs = clicks.for_training(target, 0, step)
        assert points.shape == (2, 30, 3)
        assert (signs[0] == 1).all()
        on_target = target[0, 0][tuple(points[0].astype(int).T)] == 2
        assert on_target[:10].all()
        everywhere.append(points[0, 10:])
        assert signs[1].tolist() == [1] * 20 + [0] * 10  # without tumour, those anywhere are left
    voxels = np.concatenate(everywhere)
    assert voxels.min(0).tolist() == [0, 0, 0] and voxels.max(0).tolist() == [size - 1 for size in SIZE]


@pytest.mark.parametrize(("preset", "count"), [("mixed", 1), ("reference", 10)])
def test_clicks_of_validation(preset: str, count: int) -> None:
    clicks = simulated(preset)
    target = batch()
    points, signs = clicks.for_validation(target, 4, 2)
    assert points.shape == (2, count, 3)
    assert signs.tolist() == [[1] * count, [0] * count]
    assert (target[0, 0][tuple(points[0].astype(int).T)] == 2).all()
    assert np.array_equal(points, simulated(preset).for_validation(target, 4, 2).points)
    assert not np.array_equal(points, clicks.for_validation(target, 4, 3).points)


# --- signed ---


def test_background_clicks_lie_outside_and_many_near_the_target() -> None:
    target = batch(1)[0, 0] == 2
    outside = ~target
    outside[:2] = False  # ignored
    near = 0
    for seed in range(30):
        points = background_points(target, outside, 6, np.random.default_rng(seed))
        assert points.shape == (6, 3)
        assert outside[tuple(points.T)].all()
        voxels = np.argwhere(target)
        near += sum(np.abs(voxels - point).max(1).min() <= BORDER_VOXELS for point in points)
    assert near > 90
    everything = np.ones(SIZE, bool)
    assert background_points(everything, ~everything, 3, np.random.default_rng(0)).shape == (0, 3)
    assert background_points(~everything, everything, 3, np.random.default_rng(0)).shape == (3, 3)


def test_signed_steps_begin_with_the_target_and_say_no_where_there_is_none() -> None:
    clicks = simulated(signed=True, automatic_share=0.0)
    target = batch()
    signs_seen = []
    for step in range(200):
        points, signs = clicks.for_training(target, 0, step)
        assert points.shape == (2, 11, 3)
        assert (signs[:, -1] == 0).all()  # kept for the correcting click
        assert signs[0, 0] == 1
        assert (signs[1] <= 0).all() and (signs[1] < 0).any()
        for sample in range(2):
            on_target = target[sample, 0][tuple(points[sample].astype(int).T)] == 2
            assert on_target[signs[sample] > 0].all() and not on_target[signs[sample] < 0].any()
        signs_seen += signs[0][signs[0] != 0].tolist()[1:]
    assert 0.15 < np.mean(np.array(signs_seen) < 0) < 0.35


def test_correcting_clicks_follow_the_networks_error() -> None:
    clicks = simulated(signed=True, automatic_share=0.0)
    target = batch(2)
    first = clicks.for_training(target, 0, 0)
    logits = torch.zeros(2, 4, *SIZE)
    logits[:, 0] = 1  # background everywhere
    logits[1, 2, 0:3, 0:3, 0:3] = 2  # but a tumour where there is none
    points, signs = clicks.corrected(first, target, logits)
    assert points[0, -1].tolist() == [5, 5, 6] and signs[0, -1] == 1  # the tumour is 3 x 4 x 5 from (4, 4, 4)
    assert points[1, -1].tolist() == [1, 1, 1] and signs[1, -1] == -1
    assert np.array_equal(points[:, :-1], first.points[:, :-1])
    assert (first.signs[:, -1] == 0).all()  # the caller's arrays stay
    right = torch.nn.functional.one_hot(torch.from_numpy(target[:, 0]).long(), 4).movedim(-1, 1)
    assert np.array_equal(clicks.corrected(first, target, right).signs, first.signs)


def test_ignored_voxels_are_no_errors_and_get_no_background_clicks() -> None:
    training = click_training("mixed", automatic_share=0.0)
    assert training is not None
    clicks = SimulatedClicks(training, target_of(IGNORE), True, 0)
    target = batch(1)
    target[0, 0, :, :, 9:] = 4
    for step in range(50):
        points, signs = clicks.for_training(target, 0, step)
        assert not (target[0, 0][tuple(points[0, signs[0] < 0].astype(int).T)] == 4).any()
    logits = torch.zeros(1, 4, *SIZE)
    logits[0, 0] = 1
    logits[0, 2, 4:7, 4:8, 4:] = 2  # the tumour, and on through the ignored voxels
    assert clicks.corrected(clicks.for_training(target, 0, 0), target, logits).signs[0, -1] == 0


def test_correcting_steps_are_some_of_those_with_clicks() -> None:
    clicks = simulated(signed=True)
    places = [(epoch, step) for epoch in range(10) for step in range(50)]
    corrected = [place for place in places if clicks.is_corrected(*place)]
    assert not any(clicks.is_automatic(*place) for place in corrected)
    assert len(corrected) / len(places) == pytest.approx(0.25, abs=0.06)
    assert not any(simulated().is_corrected(*place) for place in places)
