"""Where SAM's file is looked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from nnunetv2_sam3d.weights.errors import WeightsError
from nnunetv2_sam3d.weights.sources import SAM_FILES, cache_folder, find_sam_checkpoint


def test_nothing_is_found_where_nothing_is() -> None:
    assert find_sam_checkpoint("vit_b", None) is None
    assert find_sam_checkpoint("vit_tiny", None) is None


def test_order_of_the_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache_folder().mkdir(parents=True)
    cached = cache_folder() / SAM_FILES["vit_b"].official
    cached.touch()
    assert cached == tmp_path / "xdg-cache" / "nnunetv2_sam3d" / "sam_vit_b_01ec64.pth"
    assert find_sam_checkpoint("vit_b", None) == cached
    assert find_sam_checkpoint("vit_l", None) is None
    variable, setting = tmp_path / "variable.pth", tmp_path / "setting.pth"
    variable.touch()
    setting.touch()
    monkeypatch.setenv("nnUNet_sam_checkpoint", str(variable))
    assert find_sam_checkpoint("vit_b", None) == variable
    assert find_sam_checkpoint("vit_b", str(setting)) == setting


def test_place_that_does_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WeightsError, match=r"the plans \(sam_checkpoint\) names .*none.pth"):
        find_sam_checkpoint("vit_b", str(tmp_path / "none.pth"))
    monkeypatch.setenv("nnUNet_sam_checkpoint", str(tmp_path / "nothing.pth"))
    with pytest.raises(WeightsError, match="the variable nnUNet_sam_checkpoint names .*nothing.pth"):
        find_sam_checkpoint("vit_b", None)
