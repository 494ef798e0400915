"""Trainers that start from files of several kinds, and from models of other classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.run import run_training
from safetensors.torch import save_file
from trainer_kit import MakeTrainer, batch, finish, in_optimizer, sam_checkpoint, values, without_local_path

from nnunetv2_sam3d.weights.checkpoint_file import read_checkpoint
from nnunetv2_sam3d.weights.errors import WeightsError
from nnunetv2_sam3d.weights.reading import convert

KITS = {"background": 0, "kidney and masses": [1, 2, 3], "masses": [2, 3], "tumour": 2}
LAST = "mask_decoder.seg_layers.0.weight"


def hugging_face(source: Path, target: Path) -> None:
    """SAM's file under the names of transformers."""
    renamed = {}
    for key, value in read_checkpoint(source).items():
        key = key.replace("image_encoder.", "vision_encoder.").replace(".blocks.", ".layers.")
        renamed[key.replace(".norm", ".layer_norm").replace("patch_embed.proj.", "patch_embed.projection.")] = value
    save_file(renamed, target)


@pytest.mark.parametrize("origin", ["plans", "environment", "pretrained_weights", "converted"])
def test_sam_of_hugging_face_from_everywhere(
    origin: str, make_trainer: MakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = sam_checkpoint(make_trainer("Original", initialize=True), tmp_path / "sam.pth")
    file = tmp_path / "model.safetensors"
    hugging_face(tmp_path / "sam.pth", file)
    if origin == "environment":
        monkeypatch.setenv("nnUNet_sam_checkpoint", str(file))
    trainer = make_trainer("Original", **({"sam_checkpoint": str(file)} if origin == "plans" else {}))
    if origin == "converted":
        convert(file, tmp_path / "encoder.pth")
        file = tmp_path / "encoder.pth"
    start_with = str(file) if origin in ("pretrained_weights", "converted") else None
    run_training.maybe_load_checkpoint(trainer, False, False, start_with)
    if not trainer.was_initialized:
        trainer.initialize()
    trainer.start.check(trainer.run(), trainer.recipe)
    own = values(trainer)
    assert all(torch.equal(own[name], value) for name, value in given.items())


def binary_model(make_trainer: MakeTrainer, file: Path) -> Any:
    """A finished model of background and tumour."""
    trainer = make_trainer("Full", initialize=True, labels={"background": 0, "tumour": 1}, fold=4, precision="float32")
    convert(finish(trainer), file)
    return trainer


@pytest.mark.parametrize("asked", ["in the plans", "in the file"])
def test_tumour_of_a_binary_model_on_regions(asked: str, make_trainer: MakeTrainer, tmp_path: Path) -> None:
    binary, file = binary_model(make_trainer, tmp_path / "binary.pth"), tmp_path / "binary.pth"
    settings: dict[str, Any] = {"map_class": {"tumour": 1}} if asked == "in the plans" else {}
    if asked == "in the file":
        convert(file, tmp_path / "mapped.pth", class_map={"tumour": 1})
        file = tmp_path / "mapped.pth"

    trainer = make_trainer("DualPath", labels=KITS, regions_class_order=[1, 3, 2], precision="float32", **settings)
    run_training.maybe_load_checkpoint(trainer, False, False, str(file))
    trainer.start.check(trainer.run(), trainer.recipe)
    image = batch(binary)["data"]
    without_local_path(trainer)
    with torch.no_grad():
        expected = binary.network.eval()(image).softmax(1)[:, 1]
        begun = trainer.network.eval()(image)[:, 2].sigmoid()
    torch.testing.assert_close(begun, expected, atol=1e-5, rtol=1e-5)
    log = Path(trainer.log_file).read_text()
    assert "mapped as asked: 'tumour' from channel 1" in log and "The last convolution is trained too" in log
    assert in_optimizer(trainer)[1:] == [{LAST}]
    assert trainer.start.provenance["last convolution"]["channels"] == {"tumour": 1}


def test_nothing_is_mapped_unasked(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    binary_model(make_trainer, tmp_path / "binary.pth")
    trainer = make_trainer("DualPath", labels=KITS, regions_class_order=[1, 3, 2])
    run_training.maybe_load_checkpoint(trainer, False, False, str(tmp_path / "binary.pth"))
    log = Path(trainer.log_file).read_text()
    assert "the last convolution was not taken and starts at random" in log
    assert "The last convolution is trained too: the start has other classes" in log
    assert trainer.start.provenance["last convolution"] == {"kind": "random"}


def test_map_of_the_plans_is_for_the_first_model_only(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    """DualPath starts from an Original that has the data set's classes already: nothing of it is mapped again."""
    binary_model(make_trainer, tmp_path / "binary.pth")
    kits: dict[str, Any] = {"labels": KITS, "regions_class_order": [1, 3, 2], "map_class": {"tumour": 1}}
    full = make_trainer("Full", **kits)
    run_training.maybe_load_checkpoint(full, False, False, str(tmp_path / "binary.pth"))
    with torch.no_grad():
        full.network.get_parameter(LAST).add_(1)  # as if trained
    finish(full, 0)
    trainer = make_trainer("DualPath", initialize=True, **kits)
    trainer.start.check(trainer.run(), trainer.recipe)
    assert torch.equal(values(trainer)[LAST], values(full)[LAST])
    assert "mapped" not in Path(trainer.log_file).read_text()


def test_misspelt_class_is_refused(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    binary_model(make_trainer, tmp_path / "binary.pth")
    trainer = make_trainer("DualPath", labels=KITS, regions_class_order=[1, 3, 2], map_class={"tumor": 1})
    with pytest.raises(WeightsError, match="'tumor', but the data set has kidney and masses, masses, tumour"):
        run_training.maybe_load_checkpoint(trainer, False, False, str(tmp_path / "binary.pth"))


def test_sam_of_another_size_is_named(
    make_trainer: MakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sam_checkpoint(make_trainer("Original", initialize=True), tmp_path / "sam.pth")
    monkeypatch.setenv("nnUNet_sam_checkpoint", str(tmp_path / "sam.pth"))
    trainer = make_trainer("Original", variant="vit_b", network=None)
    with pytest.raises(WeightsError, match=r"sam.pth .*the plans ask for vit_b: embed_dim is 32 .*weights fetch vit_b"):
        trainer.initialize()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_diverged_sam_is_refused(make_trainer: MakeTrainer, tmp_path: Path, value: float) -> None:
    sam_checkpoint(make_trainer("Original", initialize=True), tmp_path / "sam.pth")
    content = read_checkpoint(tmp_path / "sam.pth")
    content["image_encoder.blocks.0.attn.qkv.bias"][3] = value
    torch.save(content, tmp_path / "sam.pth")
    with pytest.raises(WeightsError, match=r"sam.pth .*NaN or infinite.*encoder.blocks.0.attn.qkv.bias"):
        make_trainer("Original", initialize=True, sam_checkpoint=str(tmp_path / "sam.pth"))
