"""Names that nnU-Net gives."""

from __future__ import annotations

import pytest

from nnunetv2_sam3d.experiment.models import Model
from nnunetv2_sam3d.nnunet.layout import dataset_number


@pytest.mark.parametrize(
    ("name", "number"), [("Dataset004_A", 4), ("Dataset1234_Blobs", 1234), ("Dataset12345", 12345)]
)
def test_a_number_has_as_many_digits_as_it_has(name: str, number: int) -> None:
    assert dataset_number(name) == number


def test_a_folder_without_a_number() -> None:
    with pytest.raises(ValueError, match="Blobs is no data set's name"):
        dataset_number("Blobs")


def test_trainings_name_the_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a number, nnU-Net would find Dataset1234_Blobs as 123, too, and refuse it beside Dataset1235_Other."""
    monkeypatch.setenv("nnUNet_results", "/results")
    step = Model("Dataset1234_Blobs", "nnUNetTrainer", "nnUNetPlans").training(0, folder=None)
    assert step.command[1:] == ("Dataset1234_Blobs", "3d_fullres", "0", "-tr", "nnUNetTrainer", "-p", "nnUNetPlans")
