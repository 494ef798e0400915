"""Which structure the clicks are about, and its probability."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunetv2_sam3d.nnunet.labels import Target, find_target

KITS = {"background": 0, "kidney": [1, 2, 3], "masses": [2, 3], "tumour": 2}
REGIONS = LabelManager(KITS, [1, 3, 2])
LABELS = LabelManager({"background": 0, "kidney": 1, "tumour": 2, "cyst": 3}, None)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ({"background": 0, "thing": 1}, Target("thing", (1,))),
        ({"background": 0, "liver": 1, "Tumor": 2}, Target("Tumor", (2,))),
        ({"background": 0, "colon cancer primaries": 4}, Target("colon cancer primaries", (4,))),
        (KITS, Target("tumour", (2,))),
        ({"background": 0, "Anterior": 1, "Posterior": 2, "ignore": 3}, Target("whole foreground", (1, 2))),
    ],
)
def test_default(labels: dict, expected: Target) -> None:
    assert find_target(labels) == expected


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("Masses", Target("masses", (2, 3))),
        ("2", Target("tumour", (2,))),
        ("3, 2", Target("masses", (2, 3))),
        ("1,2", Target("label 1+2", (1, 2))),
    ],
)
def test_by_name_or_number(wanted: str, expected: Target) -> None:
    assert find_target(KITS, wanted) == expected


@pytest.mark.parametrize("wanted", ["tumor", "4", "0", "2,9", "", "background"])
def test_unknown_target(wanted: str) -> None:
    with pytest.raises(ValueError, match=r"no target.*kidney = 1,2,3, masses = 2,3, tumour = 2"):
        find_target(KITS, wanted)


def test_several_tumours_are_a_question() -> None:
    with pytest.raises(ValueError, match="enhancing tumour, tumour core"):
        find_target({"background": 0, "enhancing tumour": 1, "tumour core": 2})


def test_mask_is_true_for_all_labels_of_the_target() -> None:
    assert Target("masses", (2, 3)).mask(np.array([-1, 0, 1, 2, 3])).tolist() == [False, False, False, True, True]


def test_probability_of_labels_is_the_sum_of_their_softmax() -> None:
    probabilities = torch.tensor([0.3, 0.2, 0.35, 0.15])
    logits = (probabilities.log() + 3)[:, None, None, None]
    assert Target("tumour", (2,)).probability(logits, LABELS).item() == pytest.approx(0.35)
    # above 0.5 together, though background is likelier than either
    assert Target("both", (1, 2)).probability(logits, LABELS).item() == pytest.approx(0.55)


def test_probability_of_a_region_is_its_sigmoid() -> None:
    logits = torch.tensor([2.0, -1.0, 0.5])[:, None, None, None]
    for labels, logit in (((1, 2, 3), 2.0), ((3, 2), -1.0), ((2,), 0.5)):
        expected = 1 / (1 + np.exp(-logit))
        assert Target("x", labels).probability(logits, REGIONS).item() == pytest.approx(expected)


def test_target_that_the_model_does_not_know() -> None:
    with pytest.raises(ValueError, match=r"none of them is cyst.*\[1, 2, 3\], \[2, 3\], \[2\]"):
        Target("cyst", (3,)).check(REGIONS)
    with pytest.raises(ValueError, match=r"no label \[5\]"):
        Target("x", (1, 5)).check(LABELS)
