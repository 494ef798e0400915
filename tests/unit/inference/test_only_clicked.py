"""Connected components that clicks choose."""

from __future__ import annotations

import numpy as np
import pytest

from nnunetv2_sam3d.clicks.click import Click
from nnunetv2_sam3d.inference.only_clicked import only_clicked

LABELS = {"background": 0, "organ": 1, "tumour": 2, "vessel": 3}
REGIONS = {"background": 0, "organ": [1, 2], "tumour": 2, "vessel": 3}
SPACING = (5.0, 1.0, 1.0)


@pytest.fixture
def segmentation() -> np.ndarray:
    """Two organs, the first with a tumour in it and one that touches it by a corner; a vessel beside it."""
    volume = np.zeros((9, 20, 20), np.uint8)
    volume[1:4, 2:8, 2:8] = 1
    volume[2, 3:5, 3:5] = 2
    volume[3, 6:8, 6:8] = 2
    volume[4, 8, 8] = 2  # shares a corner with the one before
    volume[6:8, 12:18, 12:18] = 1
    volume[1:4, 2:8, 8] = 3
    return volume


def where(segmentation: np.ndarray, *boxes: tuple[slice, ...]) -> np.ndarray:
    kept = np.zeros_like(segmentation)
    for box in boxes:
        kept[box] = segmentation[box]
    return kept


def test_the_component_that_holds_the_click(segmentation: np.ndarray) -> None:
    kept, missed = only_clicked(segmentation, [Click((1, 3, 3), "organ")], LABELS, SPACING)
    assert not missed and kept.dtype == segmentation.dtype
    assert np.array_equal(kept, np.where(where(segmentation, np.s_[1:4, 2:8, 2:8]) == 1, 1, 0))
    kept, _ = only_clicked(segmentation, [Click((2, 4, 4), "tumour")], LABELS, SPACING)
    assert kept.sum() == 2 * 4  # the other tumour is another component
    kept, _ = only_clicked(segmentation, [Click((2, 4, 4), 2), Click((3, 7, 7), "tumour")], LABELS, SPACING)
    assert kept.sum() == 2 * 9  # corners connect
    both, _ = only_clicked(segmentation, [Click((1, 3, 3), "organ"), Click((7, 15, 15), "organ")], LABELS, SPACING)
    assert np.array_equal(both, np.where(segmentation == 1, 1, 0))


def test_background_clicks_choose_nothing(segmentation: np.ndarray) -> None:
    clicks = [Click((1, 3, 3), "organ", -1), Click((2, 5, 8), "vessel")]
    kept, missed = only_clicked(segmentation, clicks, LABELS, SPACING)
    assert not missed and np.array_equal(kept, np.where(segmentation == 3, 3, 0))


def test_a_region_keeps_the_labels_in_it(segmentation: np.ndarray) -> None:
    kept, _ = only_clicked(segmentation, [Click((2, 4, 4), "organ")], REGIONS, SPACING)
    expected = where(segmentation, np.s_[1:5, 2:9, 2:9])
    expected[expected == 3] = 0
    assert np.array_equal(kept, expected) and set(np.unique(kept)) == {0, 1, 2}


def test_a_click_without_label_takes_what_is_there(segmentation: np.ndarray) -> None:
    for place, label in (((1, 3, 3), 1), ((2, 4, 4), 2), ((2, 5, 8), 3)):
        kept, _ = only_clicked(segmentation, [Click(place)], LABELS, SPACING)
        assert set(np.unique(kept)) == {0, label}


def test_a_click_may_miss_by_millimetres(segmentation: np.ndarray) -> None:
    beside = {"five voxels": (2, 3, 13.4), "one slice": (8.2, 15, 15)}  # 4.9 mm from the vessel, 3.5 mm from the organ
    for place, label in zip(beside.values(), ("vessel", "organ"), strict=True):
        kept, missed = only_clicked(segmentation, [Click(place, label)], LABELS, SPACING)
        assert not missed and set(np.unique(kept)) == {0, LABELS[label]}
    far = [Click((2, 3, 13.6), "vessel"), Click((2, 15, 3)), Click((7, 15, 15), "tumour")]
    kept, missed = only_clicked(segmentation, far, LABELS, SPACING)
    assert missed == far and not kept.any()
    # of two organs, the nearer one, by millimetres: seven voxels in the plane are more than one slice
    kept, _ = only_clicked(segmentation, [Click((5, 11.9, 12), "organ")], LABELS, SPACING)
    assert kept[7, 15, 15] == 1 and kept[2, 3, 3] == 0


def test_the_volumes_border(segmentation: np.ndarray) -> None:
    segmentation[8, 19, 19] = 2
    kept, missed = only_clicked(segmentation, [Click((8.5, 19.5, 19.5), "tumour")], LABELS, SPACING)
    assert not missed and kept.sum() == 2
