"""Adapter files of real checkpoints: out, described, and back onto the base bit for bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from trainer_kit import (
    CONFIGURATION,
    NAME,
    PLANS,
    TOY,
    MakeTrainer,
    Pair,
    batch,
    dualpath_on,
    finish,
    sam_checkpoint,
    same,
    train,
    weights_of,
)

import nnunetv2_sam3d
from nnunetv2_sam3d.cli import main
from nnunetv2_sam3d.files import sha256
from nnunetv2_sam3d.network_architecture.config import VARIANTS
from nnunetv2_sam3d.network_architecture.sam3d import SAM3D
from nnunetv2_sam3d.trainers.recipes import DUALPATH, ORIGINAL, apply_freezing
from nnunetv2_sam3d.weights.adapter_file import is_adapter_file, read_adapter
from nnunetv2_sam3d.weights.checkpoint_file import read_checkpoint
from nnunetv2_sam3d.weights.describe import describe
from nnunetv2_sam3d.weights.errors import WeightsError
from nnunetv2_sam3d.weights.export import export_adapter, merge
from nnunetv2_sam3d.weights.reading import convert, load_model, read_weights


def round_trip(pair: Pair, folder: Path) -> Path:
    """The merged checkpoint; its weights are those of the exported one."""
    base, checkpoint = pair
    export_adapter(checkpoint, folder / "a.safetensors")
    assert set(load_file(folder / "a.safetensors")) == set(read_checkpoint(checkpoint)["sam3d"]["trained"])
    merge(base, folder / "a.safetensors", folder / "merged.pth")
    assert same(weights_of(folder / "merged.pth"), weights_of(checkpoint))
    return folder / "merged.pth"


# --- out and back, for every start ---


def test_original_on_sam(original: Pair, tmp_path: Path) -> None:
    merged = round_trip(original, tmp_path)
    image = torch.randn(1, 1, 8, 16, 16)
    with torch.no_grad():
        assert torch.equal(load_model(merged)(image), load_model(original[1])(image))


def test_dualpath_on_the_finished_original(original: Pair, make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = make_trainer("DualPath", initialize=True)
    round_trip((original[1], finish(trainer)), tmp_path)
    assert read_adapter(tmp_path / "a.safetensors")[1].base["file"] == "checkpoint_final.pth"


def test_dualpath_on_a_converted_3dsam_adapter_checkpoint(
    original: Pair, make_trainer: MakeTrainer, reference_content: Callable[[SAM3D], Any], tmp_path: Path
) -> None:
    torch.save(reference_content(load_model(original[1])), tmp_path / "best.pth.tar")
    convert(tmp_path / "best.pth.tar", tmp_path / "original.pth")
    pair = dualpath_on(tmp_path / "original.pth", make_trainer, network=TOY["network"] | {"decoder_scale": 2})
    round_trip(pair, tmp_path)
    # the checkpoint itself gives the same weights
    merge(tmp_path / "best.pth.tar", tmp_path / "a.safetensors", tmp_path / "again.pth")
    assert same(weights_of(tmp_path / "again.pth"), weights_of(pair[1]))


def test_dualpath_of_other_classes_brings_its_last_convolution(
    original: Pair, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    round_trip(dualpath_on(original[1], make_trainer, classes=5), tmp_path)
    assert "mask_decoder.seg_layers.0.weight" in load_file(tmp_path / "a.safetensors")


def test_automatic_dualpath_on_a_promptable_model(original: Pair, make_trainer: MakeTrainer, tmp_path: Path) -> None:
    merged = round_trip(dualpath_on(original[1], make_trainer, prompt_encoder=False), tmp_path)
    assert load_model(merged).prompt_encoder is None


def test_two_adapter_files_in_a_chain(original: Pair, make_trainer: MakeTrainer, tmp_path: Path) -> None:
    """SAM -> Original -> DualPath, by SAM's file and two small ones: what was merged is the same base."""
    sam, first = original
    second = finish(make_trainer("DualPath", initialize=True))
    export_adapter(first, tmp_path / "1.safetensors")
    export_adapter(second, tmp_path / "2.safetensors")
    merge(sam, tmp_path / "1.safetensors", tmp_path / "1.pth")
    assert sha256(tmp_path / "1.pth") != sha256(first)
    merge(tmp_path / "1.pth", tmp_path / "2.safetensors", tmp_path / "2.pth")
    assert same(weights_of(tmp_path / "2.pth"), weights_of(second))
    # exported once more, a merged checkpoint gives the same weights
    export_adapter(tmp_path / "2.pth", tmp_path / "3.safetensors")
    assert same(load_file(tmp_path / "3.safetensors"), load_file(tmp_path / "2.safetensors"))


@pytest.mark.parametrize("kind", ["Full", "OriginalEval"])
def test_models_without_base_or_training(kind: str, make_trainer: MakeTrainer, tmp_path: Path) -> None:
    full = finish(make_trainer("Full", initialize=True))
    file = full
    if kind == "OriginalEval":
        trainer = make_trainer("OriginalEval", initialize=True)
        file = Path(trainer.output_folder) / "checkpoint_final.pth"
        trainer.save_checkpoint(str(file))
    with pytest.raises(WeightsError) as caught:
        export_adapter(file, tmp_path / "a.safetensors")
    assert not (tmp_path / "a.safetensors").exists()
    if kind == "OriginalEval":
        assert f"trained nothing: all its weights are those of {full}" in str(caught.value)
        return
    assert "every weight was trained" in str(caught.value) and f"weights convert {full} -o model.pth" in str(
        caught.value
    )
    convert(full, tmp_path / "model.pth")  # the advice
    assert same(weights_of(tmp_path / "model.pth"), weights_of(full))
    assert (tmp_path / "model.pth").stat().st_size < 0.4 * full.stat().st_size


# --- what nnU-Net makes of it ---


def test_stock_prediction_with_a_merged_model(original: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    monkeypatch.setenv("nnUNet_extTrainer", str(Path(nnunetv2_sam3d.__file__).parent / "_nnunet_ext"))
    export_adapter(original[1], tmp_path / "a.safetensors")
    model = tmp_path / "model"
    merge(original[0], tmp_path / "a.safetensors", model / "fold_0" / "checkpoint_final.pth")
    assert sorted(path.name for path in model.iterdir()) == ["dataset.json", "fold_0", "plans.json"]
    predictor = nnUNetPredictor(device=torch.device("cpu"), verbose=False, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), (0,), "checkpoint_final.pth")
    expected = load_model(original[1])
    assert same(predictor.network.state_dict(), expected.state_dict())
    assert predictor.allowed_mirroring_axes == (0, 1, 2)
    # a second fold goes beside it, another model does not
    merge(original[0], tmp_path / "a.safetensors", model / "fold_1" / "checkpoint_final.pth")
    (model / "plans.json").write_text(json.dumps({"plans_name": "others"}))
    with pytest.raises(WeightsError, match="plans of another model"):
        merge(original[0], tmp_path / "a.safetensors", model / "fold_2" / "checkpoint_final.pth")
    assert not (model / "fold_2").exists()


def test_trainer_takes_a_merged_checkpoint(original: Pair, make_trainer: MakeTrainer, tmp_path: Path) -> None:
    """As ``nnUNetv2_train --val`` and ``-c`` do; the optimizer begins anew."""
    merged = round_trip(original, tmp_path)
    trainer = make_trainer("Original")
    trainer.load_checkpoint(str(merged))
    assert same(trainer.network.state_dict(), weights_of(original[1]))
    assert trainer.current_epoch == read_checkpoint(original[1])["current_epoch"]
    before = trainer.network.state_dict()["mask_decoder.seg_layers.0.weight"].clone()
    train(trainer, 1)
    assert not torch.equal(trainer.network.state_dict()["mask_decoder.seg_layers.0.weight"], before)
    assert torch.isfinite(trainer.network(batch(trainer)["data"])).all()


def test_entries_beside_the_weights(original: Pair, tmp_path: Path) -> None:
    before, after = read_checkpoint(original[1]), read_checkpoint(round_trip(original, tmp_path))
    assert after.keys() == before.keys()
    for key in ("init_args", "trainer_name", "inference_allowed_mirroring_axes", "current_epoch", "grad_scaler_state"):
        assert after[key] == before[key], key
    assert after["logging"].keys() == before["logging"].keys()
    assert after["sam3d"]["trained"] == before["sam3d"]["trained"]
    assert after["sam3d"]["network"] == before["sam3d"]["network"]
    assert after["optimizer_state"]["state"] == {} and before["optimizer_state"]["state"] != {}


# --- what the file says ---


def test_description(original: Pair, make_trainer: MakeTrainer, tmp_path: Path) -> None:
    sam, first = original
    file = tmp_path / "a.safetensors"
    export_adapter(finish(make_trainer("DualPath", initialize=True)), file, licence="CC BY 4.0")
    assert is_adapter_file(file) and not is_adapter_file(sam) and not is_adapter_file(tmp_path / "none")
    _, metadata = read_adapter(file)
    assert (metadata.variant, metadata.adapter) == ("other", "dualpath")
    assert metadata.classes == {"background": 0, "label 1": 1, "label 2": 2} and metadata.channels == {"0": "MR"}
    assert metadata.base["sha256"] == sha256(first)
    assert metadata.base["made_from"]["SAM encoder"]["sha256"] == sha256(sam)
    with safe_open(file, framework="pt") as opened:  # any tool that knows safetensors can read it
        header = opened.metadata()
    assert header["licence"] == "CC BY 4.0" and json.loads(header["base"])["sha256"] == sha256(first)
    assert str(tmp_path) not in str(header)  # folders are nobody's business
    text = describe(file)
    for words in (
        "an adapter file", f"base: checkpoint_final.pth (trained, SHA-256 {sha256(first)})",
        f"sam.pth (sam, SHA-256 {sha256(sam)})", "nnUNetTrainer_SAM3DDualPath", "label 2 (2)", "CC BY 4.0",
        metadata.plans_sha256, f"{sum(value.numel() for value in load_file(file).values()):,}",
    ):  # fmt: skip
        assert words in text
    with pytest.raises(WeightsError, match="is an adapter file.*nnUNetv2_sam3d weights merge"):
        read_weights(file)


def test_unstated_licence_is_said(original: Pair, tmp_path: Path) -> None:
    metadata = export_adapter(original[1], tmp_path / "a.safetensors")
    assert metadata.licence.startswith("Not stated") and "Apache-2.0" in metadata.licence


def test_variant_is_named() -> None:
    from nnunetv2_sam3d.network_architecture.config import variant_of

    for name, config in VARIANTS.items():
        assert variant_of(replace(config, num_classes=7, adapter="dualpath")) == name
    assert variant_of(replace(VARIANTS["vit_b"], depth=8, global_attn_indexes=(1, 3))) is None


@pytest.mark.parametrize("recipe", [ORIGINAL, DUALPATH])
def test_share_of_the_checkpoint_at_vit_b(recipe: Any) -> None:
    """A checkpoint holds every weight, and AdamW's two moments of each that is trained."""
    with torch.device("meta"):
        network = SAM3D(replace(VARIANTS["vit_b"], adapter=recipe.adapter))
    trained = sum(parameter.numel() for group in apply_freezing(network, recipe) for parameter in group)
    assert trained <= (sum(value.numel() for value in network.state_dict().values()) + 2 * trained) / 5


@pytest.mark.slow
def test_vit_b_at_full_size(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    vit_b = {"variant": "vit_b", "network": None}
    full = make_trainer("Full", initialize=True, **vit_b)
    sam_checkpoint(full, tmp_path / "sam.pth")
    trainer = make_trainer("Original", sam_checkpoint=str(tmp_path / "sam.pth"), initialize=True, **vit_b)
    file = finish(trainer)
    metadata = export_adapter(file, tmp_path / "a.safetensors")
    assert metadata.variant == "vit_b"
    assert (tmp_path / "a.safetensors").stat().st_size <= file.stat().st_size / 5
    merge(tmp_path / "sam.pth", tmp_path / "a.safetensors", tmp_path / "merged.pth")
    assert same(weights_of(tmp_path / "merged.pth"), weights_of(file))


# --- folders and commands ---


def test_folder_of_a_model(original: Pair, tmp_path: Path) -> None:
    fold = original[1].parent
    expected = load_file(_exported(original[1], tmp_path))
    for model in (fold, fold.parent):
        assert same(load_file(_exported(model, tmp_path)), expected)
    shutil.copytree(fold, fold.parent / "fold_1")
    with pytest.raises(WeightsError, match="holds the folds 0, 1.*--fold"):
        _exported(fold.parent, tmp_path)
    assert same(load_file(_exported(fold.parent, tmp_path, fold="1")), expected)
    with pytest.raises(WeightsError, match="no checkpoint_final.pth of fold 4"):
        _exported(fold.parent, tmp_path, fold="4")


def _exported(model: Path, folder: Path, **options: Any) -> Path:
    export_adapter(model, folder / "out.safetensors", **options)
    return folder / "out.safetensors"


def test_commands(original: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sam, checkpoint = original
    file, merged = str(tmp_path / "a.safetensors"), str(tmp_path / "merged.pth")
    assert main(["weights", "export-adapter", str(checkpoint), "-o", file, "--licence", "CC0"]) == 0
    said = capsys.readouterr().out
    assert f"base: sam.pth (sam, SHA-256 {sha256(sam)})" in said
    assert main(["weights", "inspect", file]) == 0
    assert "licence: CC0" in capsys.readouterr().out
    assert main(["weights", "merge", str(sam), file, "-o", merged]) == 0
    place = f"{NAME}/nnUNetTrainer_SAM3DOriginal__{PLANS}__{CONFIGURATION}/fold_0/checkpoint_final.pth"
    assert place in capsys.readouterr().out
    assert (
        main(
            [
                "weights",
                "merge",
                str(checkpoint),
                file,
                "-o",
                merged,
                "--force",
            ]
        )
        == 0
    )  # it holds SAM's frozen weights, too
    assert main(["weights", "merge", file, file, "-o", merged, "--force"]) == 1
    assert "is an adapter file" in capsys.readouterr().err
