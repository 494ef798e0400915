"""Derived plans, without nnU-Net's planning: a hand-written file stands in for its plans."""

from __future__ import annotations

import json
import re
from copy import deepcopy
from math import prod
from pathlib import Path
from typing import Any

import pytest
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_sam3d.cli import main
from nnunetv2_sam3d.nnunet.folders import dataset_folder
from nnunetv2_sam3d.planning.plans import derive_plans, window_patch
from nnunetv2_sam3d.settings import Settings

NAME = "Dataset991_Toy"
TINY = Settings(variant="vit_tiny", epochs=3)


def base_plans() -> dict[str, Any]:
    architecture = {"network_class_name": "unused", "arch_kwargs": {}, "_kw_requires_import": []}
    full = {
        "data_identifier": "nnUNetPlans_3d_fullres", "preprocessor_name": "DefaultPreprocessor", "batch_size": 2,
        "patch_size": [40, 56, 48], "median_image_size_in_voxels": [40.0, 60.0, 50.0], "spacing": [3.0, 1.0, 1.0],
        "normalization_schemes": ["CTNormalization"], "use_mask_for_norm": [False], "batch_dice": True,
        "architecture": architecture,
    }  # fmt: skip
    return {
        "dataset_name": NAME,
        "plans_name": "nnUNetPlans",
        "transpose_forward": [0, 1, 2],
        "configurations": {
            "2d": full | {"data_identifier": "nnUNetPlans_2d", "patch_size": [64, 48], "spacing": [1.0, 1.0]},
            "3d_lowres": full | {"data_identifier": "nnUNetPlans_3d_lowres", "spacing": [4.0, 2.0, 2.0]},
            "3d_fullres": full,
            "3d_heir": {"inherits_from": "3d_fullres", "patch_size": [32, 32, 32]},
        },
    }


@pytest.fixture(autouse=True)
def folder(nnunet_paths: Path) -> Path:
    """The preprocessed data set, with nnU-Net's plans and data."""
    folder = nnunet_paths / "preprocessed" / NAME
    (folder / "nnUNetPlans_3d_fullres").mkdir(parents=True)
    (folder / "nnUNetPlans.json").write_text(json.dumps(base_plans()))
    return folder


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("dataset", [991, "991", NAME])
def test_content_is_nnunets_with_ours_beside_it(dataset: str | int, folder: Path) -> None:
    settings = Settings(variant="vit_tiny", token_stride=(2, 4, 4), epochs=7, prompt_encoder=False)
    plan = derive_plans(dataset, settings=settings, patch_size=(24, 48, 32), batch_size=3)
    assert plan.file == folder / "nnUNetSAM3DPlans.json"
    expected = base_plans()
    expected["plans_name"] = "nnUNetSAM3DPlans"
    expected["configurations"]["3d_fullres"] |= {"patch_size": [24, 48, 32], "batch_size": 3, "sam3d": {
        "variant": "vit_tiny", "token_stride": [2, 4, 4], "epochs": 7, "prompt_encoder": False,
    }}  # fmt: skip
    assert json.loads(plan.file.read_text()) == expected
    assert json.loads((folder / "nnUNetPlans.json").read_text()) == base_plans()


def test_settings_survive_the_file() -> None:
    settings = Settings(
        variant="vit_tiny", network={"embed_dim": 48}, token_stride=(1, 2, 4), adapter_dim=5, prompt_encoder=False,
        checkpointing=True, epochs=7, iterations_per_epoch=8, val_iterations_per_epoch=9, initial_lr=1e-3,
        max_seconds=3.5, sam_checkpoint="/some/file.pth",
    )  # fmt: skip
    plan = derive_plans(991, settings=settings)
    configuration = PlansManager(str(plan.file)).get_configuration("3d_fullres")
    assert Settings.from_plans(configuration.configuration) == settings
    assert all(str(value) in str(plan.summary) for value in ("vit_tiny", 48, [1, 2, 4], "/some/file.pth"))


def test_patch_and_batch_are_the_base_plans_by_default() -> None:
    configuration = PlansManager(str(derive_plans(991, settings=TINY).file)).get_configuration("3d_fullres")
    assert (configuration.patch_size, configuration.batch_size) == ([40, 56, 48], 2)
    assert configuration.data_identifier == "nnUNetPlans_3d_fullres"


def test_remedies_for_plans_that_are_not_there(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"there is {NAME}.*-d 991 -c 3d_fullres$"):
        derive_plans(NAME[:-1], settings=TINY)
    with pytest.raises(FileNotFoundError, match="-d 991 -c 3d_fullres -pl nnUNetPlannerResEncL$"):
        derive_plans(991, settings=TINY, base="nnUNetResEncUNetLPlans")


def test_same_spacing_needs_no_preprocessing(folder: Path) -> None:
    assert derive_plans(991, settings=TINY).preprocess is None
    assert derive_plans(991, settings=TINY, spacing_mm=(3, 1, 1)).preprocess is None
    (folder / "nnUNetPlans_3d_fullres").rmdir()
    assert derive_plans(991, settings=TINY).preprocess == "nnUNetv2_preprocess -d 991 -plans_name nnUNetSAM3DPlans " \
                                                          "-c 3d_fullres"  # fmt: skip


def test_other_spacing_needs_preprocessing(folder: Path) -> None:
    plan = derive_plans(991, settings=TINY, spacing_mm=(2, 2, 0.5), name="Other")
    assert plan.preprocess == "nnUNetv2_preprocess -d 991 -plans_name Other -c 3d_fullres"
    configuration = PlansManager(str(plan.file)).get_configuration("3d_fullres")
    assert configuration.spacing == [2.0, 2.0, 0.5]
    assert configuration.median_image_size_in_voxels == [60.0, 30.0, 100.0]
    assert configuration.data_identifier == "Other_3d_fullres"
    (folder / "Other_3d_fullres").mkdir()  # what the command leaves
    assert derive_plans(991, settings=TINY, spacing_mm=(2, 2, 0.5), name="Other").preprocess is None


def test_data_of_another_spacing_are_not_taken_for_the_new_ones(folder: Path) -> None:
    earlier = derive_plans(991, settings=TINY, spacing_mm=(2, 2, 2)).file.read_text()
    (folder / "nnUNetSAM3DPlans_3d_fullres").mkdir()
    both = r"\[2\.0, 2\.0, 2\.0\].*\[1\.0, 1\.0, 1\.0\]"
    with pytest.raises(ValueError, match=rf"nnUNetSAM3DPlans_3d_fullres.*{both}.*-o"):
        derive_plans(991, settings=TINY, spacing_mm=(1, 1, 1))
    assert (folder / "nnUNetSAM3DPlans.json").read_text() == earlier
    (folder / "nnUNetSAM3DPlans_3d_fullres").rmdir()
    assert derive_plans(991, settings=TINY, spacing_mm=(1, 1, 1)).preprocess


def test_going_back_to_the_base_spacing_takes_the_base_data(folder: Path) -> None:
    derive_plans(991, settings=TINY, spacing_mm=(2, 2, 2))
    (folder / "nnUNetSAM3DPlans_3d_fullres").mkdir()
    plan = derive_plans(991, settings=TINY)
    configuration = PlansManager(str(plan.file)).get_configuration("3d_fullres")
    assert (configuration.spacing, configuration.data_identifier) == ([3.0, 1.0, 1.0], "nnUNetPlans_3d_fullres")
    assert plan.preprocess is None


def test_a_configuration_that_inherits_keeps_inheriting() -> None:
    plan = derive_plans(991, settings=TINY, configuration="3d_heir")
    chosen = json.loads(plan.file.read_text())["configurations"]["3d_heir"]
    assert chosen["inherits_from"] == "3d_fullres"
    configuration = PlansManager(str(plan.file)).get_configuration("3d_heir")
    assert configuration.patch_size == [32, 32, 32]
    assert configuration.spacing == [3.0, 1.0, 1.0]
    assert "sam3d" not in PlansManager(str(plan.file)).get_configuration("3d_fullres").configuration


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"name": "nnUNetPlans"}, ValueError, "cannot be called like the plans"),
        ({"base": "Absent"}, FileNotFoundError, r"Absent\.json.*nnUNetv2_plan_and_preprocess -d 991 -c 3d_fullres"),
        ({"configuration": "3d_absent"}, ValueError, "3d_absent.*3d_fullres"),
        ({"configuration": "2d"}, NotImplementedError, "two-dimensional"),
        ({"patch_size": (16, 16)}, ValueError, "three positive"),
        ({"patch_size": (16, 0, 16)}, ValueError, "three positive"),
        ({"patch_size": (16, -8, 16)}, ValueError, "three positive"),
        ({"patch_size": (4, 4, 4)}, ValueError, "single token.*larger patch"),
        ({"batch_size": 0}, ValueError, "batch size must be at least 1"),
        ({"spacing_mm": (1, 1)}, ValueError, "spacing must be three"),
        ({"spacing_mm": (1, 0, 1)}, ValueError, "spacing must be three"),
        ({"spacing_mm": (1, -1, 1)}, ValueError, "spacing must be three"),
        ({"spacing_mm": (1, float("nan"), 1)}, ValueError, "spacing must be three"),
        ({"spacing_mm": (1, 1000, 1)}, ValueError, "spacing must be three"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    arguments: dict[str, Any], error: type[Exception], words: str, folder: Path
) -> None:
    before = files(folder)
    with pytest.raises(error, match=words):
        derive_plans(991, **({"settings": TINY} | arguments))
    assert files(folder) == before
    assert json.loads((folder / "nnUNetPlans.json").read_text()) == base_plans()


def test_unknown_data_set() -> None:
    with pytest.raises((RuntimeError, ValueError, FileNotFoundError), match="123"):
        derive_plans(123, settings=TINY)
    with pytest.raises(FileNotFoundError, match="Dataset123_Absent"):
        derive_plans("Dataset123_Absent", settings=TINY)


def test_data_set_by_name_or_number(folder: Path) -> None:
    assert dataset_folder(991) == dataset_folder("991") == dataset_folder(NAME) == folder


def test_plans_without_our_key_give_vit_b_with_stride_4() -> None:
    settings = Settings.from_plans(base_plans()["configurations"]["3d_fullres"])
    assert settings == Settings()
    config = settings.network_config(adapter="original", in_channels=1, num_classes=4)
    assert (config.embed_dim, config.depth, config.num_heads, config.token_stride) == (768, 12, 12, (4, 4, 4))
    assert (settings.epochs, settings.initial_lr, config.prompt_encoder, config.num_classes) == (500, 4e-4, True, 4)


@pytest.mark.parametrize(
    ("stride", "patch", "max_tokens", "expected", "batch"),
    [
        (4, (40, 56, 48), 8192, (32, 64, 64), 2),  # rounded to whole windows of 32 voxels
        ((1, 4, 4), (40, 56, 48), 8192, (32, 64, 64), 1),  # 5 windows along depth would be 20 in all
        (4, (40, 56, 48), 512, (32, 32, 32), 1),
        (16, (40, 56, 48), 8192, (128, 128, 128), 2),  # at least one window
        (4, (128, 128, 128), 8192, (64, 64, 96), 1),
    ],
)
def test_window_patch(
    stride: int | tuple[int, ...], patch: tuple[int, ...], max_tokens: int, expected: tuple[int, ...], batch: int,
    folder: Path,
) -> None:  # fmt: skip
    plans = base_plans()
    plans["configurations"]["3d_fullres"]["patch_size"] = list(patch)
    (folder / "nnUNetPlans.json").write_text(json.dumps(plans))
    settings = Settings(variant="vit_tiny", token_stride=stride)  # type: ignore[arg-type]
    chosen, size = window_patch(991, "nnUNetPlans", "3d_fullres", settings, max_tokens)
    strides = (stride,) * 3 if isinstance(stride, int) else stride
    assert all(length % (8 * step) == 0 for length, step in zip(chosen, strides, strict=True))
    assert size * prod(length // step for length, step in zip(chosen, strides, strict=True)) <= max_tokens
    assert (sorted(chosen), size) == (sorted(expected), batch)
    derive_plans(991, settings=settings, patch_size=chosen, batch_size=size)


def test_nothing_given_is_changed() -> None:
    settings = Settings(variant="vit_tiny", network={"embed_dim": 48})
    before = deepcopy(settings)
    patch = [24, 48, 32]
    derive_plans(991, settings=settings, patch_size=patch)
    assert settings == before
    assert patch == [24, 48, 32]


def test_plans_for_a_gpu(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command writes what fits; what is given stays as it is."""
    labels = {"background": 0, "organ": 1}
    (folder / "dataset.json").write_text(
        json.dumps({"labels": labels, "channel_names": {"0": "CT"}, "file_ending": ".mha"})
    )

    def planned(*more: str) -> dict[str, Any]:
        assert main(["plan", "-d", "991", "--variant", "vit_tiny", "--gpu-memory", *more]) == 0
        return json.loads((folder / "nnUNetSAM3DPlans.json").read_text())["configurations"]["3d_fullres"]

    roomy = planned("24")
    assert (roomy["patch_size"], roomy["batch_size"]) == ([40, 56, 48], 2)
    assert roomy["sam3d"]["checkpointing"] is False
    assert re.search(
        r"of 24 GB \(computed, not measured\): DualPath 1\.\d GB, Original 1\.\d GB", capsys.readouterr().out
    )
    tight = planned("1.53", "--batch-size", "1")
    assert prod(tight["patch_size"]) < prod(roomy["patch_size"]) and tight["batch_size"] == 1
    assert main(["plan", "-d", "991", "--gpu-memory", "0"]) == 1
    assert "--gpu-memory must be positive" in capsys.readouterr().err


def test_click_options(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = {"background": 0, "organ": 1, "tumour": 2}
    (folder / "dataset.json").write_text(
        json.dumps({"labels": labels, "channel_names": {"0": "CT"}, "file_ending": ".mha"})
    )

    def planned(*more: str) -> Settings:
        assert main(["plan", "-d", "991", "--variant", "vit_tiny", *more]) == 0
        plans = json.loads((folder / "nnUNetSAM3DPlans.json").read_text())
        return Settings.from_plans(plans["configurations"]["3d_fullres"])

    assert planned() == Settings(variant="vit_tiny")
    assert planned("--clicks", "none").click_preset() is None
    chosen = planned("--automatic-share", "0.25", "--max-clicks", "3", "--click-targets", "organ", "tumour")
    assert (chosen.automatic_share, chosen.max_clicks, chosen.click_targets) == (0.25, 3, ("organ", "tumour"))
    beyond = planned("--signed-clicks", "--click-maps").network_config(adapter="original", in_channels=1, num_classes=3)
    assert beyond.signed_clicks and beyond.click_maps
    before = (folder / "nnUNetSAM3DPlans.json").read_text()
    for options, message in (
        (["--click-targets", "liver"], "no target 'liver' in dataset.json. It has: organ = 1, tumour = 2"),
        (["--clicks", "reference", "--signed-clicks"], "signed_clicks needs clicks"),
        (["--no-prompt-encoder", "--click-maps"], "click_maps needs a prompt encoder"),
        (["--automatic-share", "1"], "automatic_share must be at least 0 and less than 1"),
    ):
        assert main(["plan", "-d", "991", "--variant", "vit_tiny", *options]) == 1
        assert message in capsys.readouterr().err
    assert (folder / "nnUNetSAM3DPlans.json").read_text() == before


def test_other_plans_of_the_name_are_kept() -> None:
    """Once: the same plans again leave them alone."""
    earlier = derive_plans(991, settings=TINY, batch_size=3, keep_earlier=True)
    assert earlier.kept is None
    content = earlier.file.read_bytes()
    replaced = derive_plans(991, settings=TINY, batch_size=4, keep_earlier=True)
    assert replaced.kept is not None and replaced.kept.read_bytes() == content != replaced.file.read_bytes()
    assert derive_plans(991, settings=TINY, batch_size=4, keep_earlier=True).kept is None
    assert replaced.kept.read_bytes() == content
    replaced.file.write_bytes(replaced.file.read_bytes().rstrip())  # as nnU-Net and earlier versions end it
    assert derive_plans(991, settings=TINY, batch_size=4, keep_earlier=True).kept is None
