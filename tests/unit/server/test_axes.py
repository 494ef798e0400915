"""The order of a volume's axes: put right, held against the training, and without a trace in the mask."""

from __future__ import annotations

import re
import time
from itertools import permutations, product

import numpy as np
import pytest

from nnunetv2_sam3d.server.axis_check import Confirmations, TrainingGeometry, WrongAxes
from nnunetv2_sam3d.server.axis_order import AxisOrder
from nnunetv2_sam3d.server.interactive_session import InteractiveSession
from nnunetv2_sam3d.server.offer import Offer

ORDERS = ["".join(letters) for letters in permutations("kji")]
FLIPS = ["".join(letters) for letters in product(*[("", letter) for letter in "kji"])]
CT = TrainingGeometry((5.0, 0.8, 0.8), (60, 512, 512))
BRAIN = TrainingGeometry((1.0, 1.0, 1.0), (155, 240, 240))
SAME = AxisOrder()


@pytest.mark.parametrize("order", ORDERS)
def test_there_and_back(order: str) -> None:
    image = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    for flip in FLIPS:
        axes = AxisOrder.parse(order, flip)
        assert axes.name == order and set(axes.flipped) == set(flip)
        own = axes.to_model(image)
        assert own.shape[1:] == axes.sizes(image.shape[1:])
        np.testing.assert_array_equal(axes.from_model(own[1]), image[1])
        for voxel in ((0, 0, 0), (2, 1, 4), (1, 3, 2)):
            there = axes.point(voxel, image.shape[1:])
            assert own[(0, *map(int, there))] == image[(0, *voxel)]


def test_what_the_options_take() -> None:
    assert AxisOrder.parse("IKJ", "K") == AxisOrder((2, 0, 1), (False, True, False))
    for order, flip in (("kj", ""), ("kjj", ""), ("xyz", ""), ("", ""), ("kji", "x"), ("kji", "kk")):
        with pytest.raises(ValueError, match="letters k, j and i"):
            AxisOrder.parse(order, flip)


@pytest.mark.parametrize(
    ("training", "spacing", "shape"),
    [
        (CT, (5, 0.8, 0.8), (60, 512, 512)),
        (CT, (1, 0.7, 0.7), (300, 512, 512)),  # thinner slices
        (CT, (3, 1, 0.7), (40, 100, 90)),
        (BRAIN, (1, 1, 1), (150, 235, 250)),
    ],
)
def test_the_trainings_axes(training: TrainingGeometry, spacing: tuple[float, ...], shape: tuple[int, ...]) -> None:
    assert training.check(spacing, shape, SAME) is None


@pytest.mark.parametrize(
    ("training", "spacing", "shape", "remedy"),
    [
        (CT, (0.7, 0.7, 1), (512, 512, 300), "--axes ikj"),
        (CT, (0.8, 5, 0.8), (512, 60, 512), "--axes jki"),
        (CT, (1, 0.7, 3), (90, 100, 40), "--axes ikj"),
        (CT, (0.8, 0.8, 0.8), (512, 512, 60), "--axes ikj"),  # by its shape
        (BRAIN, (1, 1, 1), (240, 155, 240), "--axes jki"),
    ],
)
def test_permuted_volumes_are_refused(
    training: TrainingGeometry, spacing: tuple[float, ...], shape: tuple[int, ...], remedy: str
) -> None:
    with pytest.raises(WrongAxes) as refused:
        training.check(spacing, shape, SAME)
    sentence = str(refused.value)
    assert remedy in sentence and "k, j, i" in sentence and "Orient Scalar Volume" in sentence
    order = AxisOrder.parse(remedy.removeprefix("--axes "))  # and that is one
    assert training.check(order.sizes(spacing), order.sizes(shape), order) is None
    with pytest.raises(WrongAxes, match="--axes kji|--axes kij"):  # named in the volume's own axes
        given = AxisOrder.parse("ikj")
        CT.check(given.sizes((5, 0.8, 0.8)), given.sizes((60, 512, 512)), given)


@pytest.mark.parametrize(
    ("training", "spacing", "shape"),
    [
        (CT, (0.8, 0.8, 0.8), (300, 300, 300)),
        (BRAIN, (1, 1, 1), (128, 128, 128)),
        (BRAIN, (3, 1, 1), (50, 240, 240)),  # slices, which the training's images do not have
        (TrainingGeometry(), (1, 1, 1), (9, 9, 9)),
    ],
)
def test_what_cannot_be_told_gets_a_warning(
    training: TrainingGeometry, spacing: tuple[float, ...], shape: tuple[int, ...]
) -> None:
    warning = training.check(spacing, shape, SAME)
    assert warning is not None and "axes" in warning


@pytest.mark.parametrize(
    ("training", "order", "words"),
    [
        (CT, "kji", "axes must lie .* (5 x 0.8 x 0.8 mm and 60 x 512 x 512 voxels along k, j, i): another order"),
        (CT, "ikj", "axes must lie .* (0.8 x 0.8 x 5 mm and 512 x 512 x 60 voxels along k, j, i): another order"),
        (TrainingGeometry((3, 1, 1)), "jki", "axes must lie .* (1 x 3 x 1 mm along k, j, i): another order"),
        (BRAIN, "kji", "axes must lie .* (1 x 1 x 1 mm and 155 x 240 x 240 voxels along k, j, i): another order"),
        (TrainingGeometry((1, 1, 1), (64, 64, 64)), "kji", "Make sure .* along k, j, i): nobody can tell them apart"),
        (TrainingGeometry((1, 1, 1)), "kji", "Make sure .* (1 x 1 x 1 mm along k, j, i): nobody can tell them apart"),
        (TrainingGeometry(), "kji", "Make sure .* (images of unknown size): nobody can tell them apart"),
    ],
)
def test_what_people_are_told_before(training: TrainingGeometry, order: str, words: str) -> None:
    """In a volume's own axes; and whether the server can check it."""
    pattern = words.replace("(", r"\(").replace(")", r"\)")
    assert re.search(pattern, training.advice(AxisOrder.parse(order)))


def test_medians_of_the_plans_are_transposed() -> None:
    plans = {
        "transpose_forward": [2, 0, 1],
        "original_median_spacing_after_transp": [5.0, 1.0, 0.9],
        "original_median_shape_after_transp": [60, 100, 90],
    }
    assert TrainingGeometry.from_plans(plans) == TrainingGeometry((1.0, 0.9, 5.0), (100, 90, 60))
    assert TrainingGeometry.from_plans({}) == TrainingGeometry()


def test_one_phantom_in_several_orders_has_one_mask(offer: Offer, volume: np.ndarray) -> None:
    """Its slices first, in the middle or last, and backwards: same clicks, same lesion, same mask."""
    spacing, clicks = (3.0, 1.0, 1.0), [((4, 12, 7), True), ((2, 3, 15), False)]
    expected: list[np.ndarray] = []
    for order, flip in (("kji", ""), ("ikj", ""), ("jki", "ki")):
        axes = AxisOrder.parse(order, flip)
        stored = axes.from_model(volume[0])[None]  # as a viewer would send it
        back = AxisOrder(tuple(int(place) for place in np.argsort(axes.order)))  # type: ignore[arg-type]
        session = InteractiveSession(offer._new_model(), axes, offer._check_volume)
        session.set_image(stored, back.sizes(spacing))
        found = [session.automatic]
        for voxel, positive in clicks:
            mirrored = [
                n - 1 - v if turned else v for v, n, turned in zip(voxel, volume.shape[1:], axes.reversed, strict=True)
            ]
            session.add_click(back.sizes(mirrored), positive)
            found.append(session.mask.copy())
        found = [np.ascontiguousarray(axes.to_model(mask)) for mask in found]
        expected = expected or found
        for mask, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(mask, other)
    assert len({mask.tobytes() for mask in expected}) == 3  # each click changed something


def test_a_refusal_is_confirmed_for_a_while() -> None:
    """For this volume, and no other one of its size."""
    confirmations = Confirmations(seconds=0.2)
    volume, spacing = np.zeros((1, 9, 9, 9), np.int16), (1, 1, 1)
    other = volume.copy()
    other[0, 4, 4, 4] = 1
    with pytest.raises(ValueError, match=r"^the sentence\. Is it right as it is\? Then send it again"):
        confirmations.ask("the sentence", volume, spacing)
    confirmations.ask("the sentence", volume, spacing)
    for another, its_spacing in ((other, spacing), (volume, (1, 1, 2)), (volume[:, 1:], spacing)):
        with pytest.raises(ValueError, match="send it again"):
            confirmations.ask("the sentence", another, its_spacing)
    time.sleep(0.25)
    with pytest.raises(ValueError, match="send it again"):
        confirmations.ask("the sentence", volume, spacing)
