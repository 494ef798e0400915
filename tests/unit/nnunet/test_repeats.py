"""Names of the plans of repeats."""

from __future__ import annotations

import subprocess
import sys

import pytest

from nnunetv2_sam3d.nnunet.layout import repeat_of, repeat_plans


@pytest.mark.parametrize(
    ("plans", "repeat", "name"),
    [("nnUNetSAM3DPlans", 1, "nnUNetSAM3DPlans"), ("P", 2, "P_repeat2"), ("P_repeat", 12, "P_repeat_repeat12")],
)
def test_there_and_back(plans: str, repeat: int, name: str) -> None:
    assert repeat_plans(plans, repeat) == name
    assert repeat_of(name) == (plans, repeat)


@pytest.mark.parametrize("name", ["P_repeat1", "P_repeat02", "P_repeat", "_repeat2", "P_repeat2b"])
def test_other_names_are_no_repeats(name: str) -> None:
    assert repeat_of(name) == (name, 1)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="counted from 1, got 0"):
        repeat_plans("P", 0)
    with pytest.raises(ValueError, match="name the plans that they repeat: P$"):
        repeat_plans("P_repeat2", 3)


def test_names_need_nothing_heavy() -> None:
    code = "import sys, nnunetv2_sam3d.nnunet.layout; sys.exit(bool({'torch', 'nnunetv2'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)
