"""Labels, regions and their tolerances."""

from __future__ import annotations

import numpy as np
import pytest

from nnunetv2_sam3d.results.metrics import KITS_TOLERANCES_MM
from nnunetv2_sam3d.results.structures import structures_of

KITS = {"labels": {"background": 0, "kidney": [1, 2, 3], "masses": [2, 3], "tumor": 2}}
PLAIN = {"labels": {"background": 0, "kidney": 1, "tumour": 2, "cyst": 3, "ignore": 4}}


def test_kits_regions_have_kits_tolerances() -> None:
    kidney, masses, tumour = structures_of(KITS)
    assert [entry.tolerance_mm for entry in (kidney, masses, tumour)] == list(KITS_TOLERANCES_MM.values())
    assert [entry.lesion for entry in (kidney, masses, tumour)] == [False, True, True]
    assert kidney.mask(np.array([0, 1, 2, 3, 4])).tolist() == [False, True, True, True, False]


def test_plain_labels() -> None:
    found = structures_of(PLAIN)
    assert [(s.name, s.labels, s.tolerance_mm, s.lesion) for s in found] == [
        ("kidney", (1,), 2.0, False),
        ("tumour", (2,), 2.0, True),
        ("cyst", (3,), 2.0, True),
    ]
    assert [s.tolerance_mm for s in structures_of(PLAIN, [1, 2, 3])] == [1, 2, 3]
    assert [s.lesion for s in structures_of(PLAIN, lesions=["kidney"])] == [True, False, False]


def test_kits_regions_of_plain_labels() -> None:
    labels = {"labels": {"background": 0, "kidney": 1, "tumour": 2, "cyst": 3}}
    found = structures_of(labels, kits=True)
    assert [(s.name, s.labels) for s in found] == [
        ("kidney and masses", (1, 2, 3)),
        ("masses", (2, 3)),
        ("tumour", (2,)),
    ]
    assert found[0].tolerance_mm == KITS_TOLERANCES_MM["kidney and masses"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tolerances_mm": [1, 2]}, "--tolerance-mm takes one distance"),
        ({"tolerances_mm": [-1]}, "--tolerance-mm takes one distance"),
        ({"lesions": ["spleen"]}, "no structure 'spleen'"),
    ],
)
def test_errors(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        structures_of(PLAIN, **arguments)


def test_other_labels_are_not_kits() -> None:
    with pytest.raises(ValueError, match="leave out --kits"):
        structures_of({"labels": {"background": 0, "Anterior": 1, "Posterior": 2}}, kits=True)
    with pytest.raises(ValueError, match="no foreground label"):
        structures_of({"labels": {"background": 0}})
