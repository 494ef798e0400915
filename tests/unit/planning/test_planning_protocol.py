"""``plan --protocol``: the data of the published experiment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nnunetv2.preprocessing.normalization.default_normalization_schemes import CTNormalization
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_sam3d.cli import main
from nnunetv2_sam3d.planning.plans import derive_plans
from nnunetv2_sam3d.settings import Settings

NAME = "Dataset991_Toy"
OTHERS = {"min": -900.0, "max": 1500.0, "median": 60.0}
MEASURED = OTHERS | {"mean": 80.0, "std": 70.0, "percentile_00_5": -60.0, "percentile_99_5": 300.0}
# DESIGN: HU clipped to [-54, 247], mean 59.53867, std 55.457336
PUBLISHED = OTHERS | {"mean": 59.53867, "std": 55.457336, "percentile_00_5": -54.0, "percentile_99_5": 247.0}
TINY = Settings(variant="vit_tiny")


def write_plans(folder: Path, **more: Any) -> None:
    full = {
        "data_identifier": "nnUNetPlans_3d_fullres", "preprocessor_name": "DefaultPreprocessor", "batch_size": 2,
        "patch_size": [40, 56, 48], "median_image_size_in_voxels": [40.0, 60.0, 50.0], "spacing": [3.0, 1.0, 1.0],
        "normalization_schemes": ["CTNormalization"], "use_mask_for_norm": [False], "batch_dice": True,
        "architecture": {"network_class_name": "unused", "arch_kwargs": {}, "_kw_requires_import": []}, **more,
    }  # fmt: skip
    plans = {
        "dataset_name": NAME, "plans_name": "nnUNetPlans", "transpose_forward": [0, 1, 2],
        "foreground_intensity_properties_per_channel": {"0": MEASURED},
        "configurations": {"3d_lowres": full, "3d_fullres": full, "heir": {"inherits_from": "3d_fullres"}},
    }  # fmt: skip
    (folder / "nnUNetPlans.json").write_text(json.dumps(plans))


@pytest.fixture(autouse=True)
def folder(nnunet_paths: Path) -> Path:
    folder = nnunet_paths / "preprocessed" / NAME
    (folder / "nnUNetPlans_3d_fullres").mkdir(parents=True)
    write_plans(folder)
    return folder


@pytest.mark.parametrize("configuration", ["3d_fullres", "heir"])
def test_spacing_crop_and_window_of_the_publication(folder: Path, configuration: str) -> None:
    plan = derive_plans(991, settings=TINY, protocol="3dsam-adapter", configuration=configuration)
    plans = PlansManager(str(plan.file))
    assert plans.available_configurations == [configuration]
    chosen = plans.get_configuration(configuration)
    assert chosen.spacing == [1.0, 1.0, 1.0]
    assert chosen.patch_size == [128, 128, 128]
    assert chosen.configuration["median_image_size_in_voxels"] == [120.0, 60.0, 50.0]
    assert plans.foreground_intensity_properties_per_channel == {"0": PUBLISHED}
    assert plan.preprocess == f"nnUNetv2_preprocess -d 991 -plans_name nnUNetSAM3DPlans -c {configuration}"
    stock = json.loads((folder / "nnUNetPlans.json").read_text())
    assert stock["foreground_intensity_properties_per_channel"] == {"0": MEASURED}


def test_nnunet_normalises_with_these_numbers() -> None:
    plans = PlansManager(str(derive_plans(991, settings=TINY, protocol="3dsam-adapter").file))
    (name,) = plans.get_configuration("3d_fullres").normalization_schemes
    assert name == "CTNormalization"
    normalise = CTNormalization(False, plans.foreground_intensity_properties_per_channel["0"]).run
    hu = np.array([-1000, -54, 0, 59.53867, 247, 2000], np.float32)
    expected = [(value - 59.53867) / 55.457336 for value in (-54, -54, 0, 59.53867, 247, 247)]
    np.testing.assert_allclose(normalise(hu), expected, atol=1e-5)


def test_same_spacing_still_needs_preprocessing_for_the_window(folder: Path) -> None:
    write_plans(folder, spacing=[1.0, 1.0, 1.0])
    plan = derive_plans(991, settings=TINY, protocol="3dsam-adapter")
    assert plan.data_identifier == "nnUNetSAM3DPlans_3d_fullres"
    assert plan.preprocess
    (folder / plan.data_identifier).mkdir()  # what the command leaves
    assert derive_plans(991, settings=TINY, protocol="3dsam-adapter").preprocess is None


def test_data_of_another_window_are_not_taken_for_these(folder: Path) -> None:
    derive_plans(991, settings=TINY, spacing_mm=(1, 1, 1))
    (folder / "nnUNetSAM3DPlans_3d_fullres").mkdir()
    with pytest.raises(ValueError, match=r"preprocessed for the intensities .*80\.0.*59\.53867.*-o NAME"):
        derive_plans(991, settings=TINY, protocol="3dsam-adapter")


def test_only_for_ct(folder: Path) -> None:
    write_plans(folder, normalization_schemes=["ZScoreNormalization"])
    with pytest.raises(ValueError, match=r"one for CT.*ZScoreNormalization"):
        derive_plans(991, settings=TINY, protocol="3dsam-adapter")
    assert not (folder / "nnUNetSAM3DPlans.json").exists()


def test_the_command_explains_preprocessing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "-d", "991", "--protocol", "3dsam-adapter", "--batch-size", "1"]) == 0
    output = capsys.readouterr().out
    assert "must be preprocessed" in output and "nnUNetv2_preprocess -d 991" in output
    assert "[128, 128, 128]" in output and "59.53867" in output
    assert main(["plan", "-d", "991", "--protocol", "3dsam-adapter", "--spacing", "2", "2", "2"]) == 1
    assert "fixes patch size and spacing" in capsys.readouterr().err
