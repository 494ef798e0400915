"""A session: the mask is what the predictor gives, every change is told, and every step can be taken back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from server_kit import SPACING, write_served

from nnunetv2_sam3d.clicks.click import Click, ClickError
from nnunetv2_sam3d.inference.click_predictor import ClickPredictor
from nnunetv2_sam3d.network_architecture.sam3d import SAM3D
from nnunetv2_sam3d.server.interactive_session import Change, InteractiveSession
from nnunetv2_sam3d.server.offer import Offer

VOXELS = [((4, 12, 7), True), ((2, 3, 15), False), ((8, 18, 1), True), ((5, 11, 8), False)]


@pytest.fixture
def session(offer: Offer, volume: np.ndarray) -> InteractiveSession:
    session = offer.new_session()
    session.set_image(volume, SPACING)
    return session


def apply(buffer: np.ndarray, change: Change) -> None:
    """As a client does: only the box of an answer is written."""
    if change.box is not None:
        buffer[tuple(slice(*ends) for ends in change.box)] = change.values


def test_masks_and_undo(session: InteractiveSession, served_model: Path, volume: np.ndarray) -> None:
    predictor = ClickPredictor(served_model, device="cpu")
    predictor.set_image(volume.astype(np.float32), SPACING)
    buffer, clicks = np.zeros(volume.shape[1:], np.uint8), list[Click]()
    np.testing.assert_array_equal(session.automatic, predictor.predict() == 2)
    history, cleared = [buffer.copy()], 0
    for voxel, positive in VOXELS:
        before = buffer.copy()
        apply(buffer, session.add_click(voxel, positive))
        clicks.append(Click(voxel, "tumour", 1 if positive else -1))
        np.testing.assert_array_equal(buffer, predictor.predict(clicks) == 2)
        np.testing.assert_array_equal(buffer, session.mask)
        cleared += int((before > buffer).sum())
        history.append(buffer.copy())
    assert cleared > 0 and len({mask.tobytes() for mask in history}) == 5
    for expected in history[-2::-1]:  # back to the empty mask
        change = session.undo()
        assert change.ran
        apply(buffer, change)
        np.testing.assert_array_equal(buffer, expected)
    assert not buffer.any() and session.undo() == Change(ran=False) and session.clicks == ()
    apply(buffer, session.add_click(*VOXELS[0]))
    np.testing.assert_array_equal(buffer, history[1])


def test_the_box_is_the_smallest(session: InteractiveSession) -> None:
    before = session.mask.copy()
    change = session.add_click((4, 12, 7))
    places = np.argwhere(before != session.mask)
    assert change.box == tuple(zip(places.min(0), places.max(0) + 1, strict=True))
    assert change.values is not None and change.values.dtype == np.uint8
    again = session.add_click((4, 12, 7))
    unlike = session.undo()
    assert again.box == unlike.box  # also where nothing changed


def test_clicks_that_wait(session: InteractiveSession) -> None:
    assert session.add_click(VOXELS[0][0], predict=False) == Change(ran=False)
    assert session.add_click(VOXELS[1][0], False, predict=False).box is None and not session.mask.any()
    assert session.predict().ran and session.predict() == Change(ran=False)
    both = session.mask.copy()
    session.undo()
    assert len(session.clicks) == 1 and not session.mask.any()
    session.predict()
    one = session.mask.copy()
    session.add_click(*VOXELS[1])
    np.testing.assert_array_equal(session.mask, both)
    session.undo()
    np.testing.assert_array_equal(session.mask, one)
    session.reset()
    assert session.clicks == () and not session.mask.any() and session.undo() == Change(ran=False)


def test_what_is_refused_changes_nothing(session: InteractiveSession, offer: Offer, volume: np.ndarray) -> None:
    session.add_click(*VOXELS[0])
    mask = session.mask.copy()
    for voxel in ((10, 0, 0), (0, -1, 0), (0, 0, 1e300), (0, 0), (0, 0, float("nan")), ("1", 0, 0), None):
        with pytest.raises(ClickError):
            session.add_click(voxel)  # type: ignore[arg-type]
    assert len(session.clicks) == 1 and (session.mask == mask).all()
    empty = offer.new_session()
    empty.reset()
    for action in (empty.undo, empty.predict, lambda: empty.add_click((0, 0, 0)), lambda: empty.mask):
        with pytest.raises(ValueError, match="there is no image yet"):
            action()
    nothing = np.full(volume.shape, np.nan, np.float32)
    for image, spacing, words in (
        (volume[0], SPACING, "1 channels"),
        (np.concatenate([volume, volume]), SPACING, "1 channels"),
        (volume, (3, 1), "three finite numbers"),
        (volume, (3, 0, 1), "three lengths"),
        (volume, (1, 1, 3), "not in the training's order"),
        (volume, (3e6, 1e6, 1e6), "GB are free"),
        (volume, (1e308, 1e308, 1e308), "three lengths"),
        (volume, (3e-6, 1e-6, 1e-6), "thinner than a voxel"),
        (nothing, SPACING, "no finite numbers"),
        (volume * np.float64(1e300), SPACING, "no finite numbers"),
    ):
        with pytest.raises(ValueError, match=words):
            session.set_image(image, spacing)
        with pytest.raises(ValueError, match="there is no image yet"):  # the earlier one is gone, too
            session.add_click((0, 0, 0))


def test_an_axis_that_the_viewer_shows_backwards(offer: Offer, volume: np.ndarray) -> None:
    """napari sends a negative length then; the array is as it is."""
    session, backwards = offer.new_session(), offer.new_session()
    session.set_image(volume, SPACING)
    backwards.set_image(volume, [-length for length in SPACING])
    assert session.automatic is not None and session.automatic.any()
    assert np.array_equal(session.automatic, backwards.automatic)


def test_images_of_any_type_and_of_one_value(offer: Offer, volume: np.ndarray) -> None:
    found = []
    for dtype in (np.uint16, np.float64):
        session = offer.new_session()
        session.set_image(np.asfortranarray(volume.clip(0).astype(dtype)), SPACING)
        session.add_click(*VOXELS[0])
        found.append(session.mask)
    assert all((mask == found[0]).all() for mask in found) and found[0].any()
    for value in (0, 7):
        session.set_image(np.full((1, 3, 5, 4), value, np.int16), SPACING)
        session.add_click((1, 1, 1))


def test_unchecked_axes_get_the_sentence_as_a_warning(served_model: Path, volume: np.ndarray) -> None:
    session = Offer(served_model, refuse_axes=False).new_session()
    warning = session.set_image(volume[:, :, :10], (1, 1, 3))
    assert warning is not None and "--axes" in warning and session.warning == warning


def test_a_warning_is_confirmed_in_any_session(served_model: Path, volume: np.ndarray) -> None:
    offer = Offer(served_model, refuse_axes=False, confirm_axes=True)
    session = offer.new_session()
    with pytest.raises(ValueError, match="send it again") as refused:
        session.set_image(volume[:, :, :10], (1, 1, 3))
    assert session.shape is None
    warning = offer.new_session().set_image(volume[:, :, :10], (1, 1, 3))  # viewers begin anew after an error
    assert warning is not None and warning in str(refused.value)
    assert session.set_image(volume, SPACING) is None  # nothing to confirm


def test_target_and_only_clicked(served_model: Path, volume: np.ndarray) -> None:
    both = Offer(served_model, target="1,2").new_session()
    both.set_image(volume, SPACING)
    both.add_click(*VOXELS[0])
    alone = Offer(served_model, target="organ", only=True).new_session()
    alone.set_image(volume, SPACING)
    alone.add_click(*VOXELS[0])
    predictor = ClickPredictor(served_model, device="cpu")
    predictor.set_image(volume.astype(np.float32), SPACING)
    np.testing.assert_array_equal(both.mask, predictor.predict([Click(VOXELS[0][0])]) > 0)
    np.testing.assert_array_equal(alone.mask, predictor.predict([Click(VOXELS[0][0], "organ")], only=True) == 1)
    with pytest.raises(ValueError, match="there is no target 'liver'"):
        Offer(served_model, target="liver")


@pytest.mark.parametrize("sizes", [{"prompt_encoder": False, "signed_clicks": False}, {"signed_clicks": False}])
def test_models_without_clicks(
    sizes: dict[str, Any], make_network: Callable[..., SAM3D], tmp_path: Path, volume: np.ndarray
) -> None:
    """The automatic result, and of it the connected structure under the click."""
    model = write_served(tmp_path, make_network, clicks="none", **sizes)
    offer = Offer(model)
    assert not offer.takes_clicks and "connected structure" in offer.clicks_in_words
    session = offer.new_session()
    session.set_image(volume, SPACING)
    predictor = ClickPredictor(model, device="cpu")
    predictor.set_image(volume.astype(np.float32), SPACING)
    np.testing.assert_array_equal(session.automatic, predictor.predict() == 2)
    place = tuple(np.argwhere(session.automatic)[0].tolist())
    session.add_click(place)
    assert session.mask[place] and not (session.mask & ~session.automatic).any()
    with pytest.raises(ValueError, match="trained without clicks"):
        session.add_click(place, False)
    assert len(session.clicks) == 1
    session.undo()
    assert not session.mask.any()
    timings = offer.measure()
    assert timings.image_s > 0 and timings.first_click_s is None


def test_unsigned_models_refuse_background_clicks(
    make_network: Callable[..., SAM3D], tmp_path: Path, volume: np.ndarray
) -> None:
    offer = Offer(write_served(tmp_path, make_network, signed_clicks=False))
    assert offer.takes_clicks and not offer.background_clicks
    session = offer.new_session()
    session.set_image(volume, SPACING)
    session.add_click(*VOXELS[0])
    with pytest.raises(ValueError, match="cannot tell background clicks"):
        session.add_click((1, 1, 1), False)
    assert len(session.clicks) == 1


def test_timings(offer: Offer) -> None:
    timings = offer.measure()
    assert timings.first_click_s is not None and timings.next_click_s is not None
    assert 0 < timings.next_click_s < timings.first_click_s < timings.image_s
