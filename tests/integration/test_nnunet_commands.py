"""nnU-Net's own commands with the SAM3D trainers, each in a fresh process, on a tiny data set."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunetv2_sam3d import load_model
from nnunetv2_sam3d.weights.checkpoint_file import read_checkpoint

Workspace = Any  # the class in conftest.py
ReadVolume = Callable[[Path], np.ndarray]
BothAtOnce = Callable[[list[Callable[[], Any]]], list[Any]]
TRAINERS = ("SAM3DFull", "SAM3DDualPath", "SAM3DOriginalEval")


def final(workspace: Workspace, trainer: str, fold: int = 0) -> dict[str, Any]:
    return read_checkpoint(workspace.fold(trainer, fold) / "checkpoint_final.pth")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def in_dualpath(name: str) -> str:
    """Where a weight of a network with original adapters goes."""
    return name.replace(".adapter.conv.", ".adapter.global_conv.")


# --- training and validation ---


@pytest.mark.parametrize("trainer", TRAINERS)
def test_training_leaves_what_nnunet_leaves(trainer: str, trained: Workspace, read_volume: ReadVolume) -> None:
    fold = trained.fold(trainer, 0)
    for name in ("checkpoint_final.pth", "progress.png", "debug.json", "validation/summary.json"):
        assert (fold / name).stat().st_size > 0
    for name in ("plans.json", "dataset.json", "dataset_fingerprint.json"):
        assert (fold.parent / name).stat().st_size > 0
    assert not list(fold.glob("checkpoint_latest.pth")) + list(fold.rglob("*.partial"))
    summary = json.loads((fold / "validation" / "summary.json").read_text())
    assert len(summary["metric_per_case"]) == 1
    assert set(summary["mean"]) == {"1", "2"}
    assert 0 <= summary["foreground_mean"]["Dice"] <= 1
    label = sitk.ReadImage(str(trained.raw / "labelsTr" / "case_0.nii.gz"))
    result = sitk.ReadImage(str(fold / "validation" / "case_0.nii.gz"))
    assert result.GetSize() == label.GetSize()
    for geometry in ("GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(result, geometry)() == pytest.approx(getattr(label, geometry)(), abs=1e-5)
    assert set(np.unique(read_volume(fold / "validation" / "case_0.nii.gz"))) <= {0, 1, 2}


@pytest.mark.parametrize("trainer", TRAINERS[:2])
def test_two_epochs_were_trained(trainer: str, trained: Workspace) -> None:
    checkpoint = final(trained, trainer)
    assert checkpoint["current_epoch"] == 2
    assert len(checkpoint["logging"]["train_losses"]) == 2
    assert checkpoint["logging"]["lrs"] == pytest.approx([4e-4, 4e-4 * (1 - 0.99 / 2)])
    steps = [state["step"].item() for state in checkpoint["optimizer_state"]["state"].values()]
    assert steps == [4.0] * len(checkpoint["sam3d"]["trained"])


def test_original_eval_trained_for_zero_seconds(trained: Workspace) -> None:
    checkpoint = final(trained, "SAM3DOriginalEval")
    assert checkpoint["logging"]["epoch_start_timestamps"] == []
    assert checkpoint["optimizer_state"]["state"] == {}
    assert checkpoint["sam3d"]["trained"] == []
    assert "Epoch 0" not in trained.log("SAM3DOriginalEval", 0)
    full = final(trained, "SAM3DFull")["network_weights"]
    assert checkpoint["network_weights"].keys() == full.keys()
    assert all(torch.equal(value, full[name]) for name, value in checkpoint["network_weights"].items())


def test_original_eval_has_the_metrics_of_the_model_it_loads(trained: Workspace, read_volume: ReadVolume) -> None:
    theirs, ours = (trained.fold(trainer, 0) / "validation" for trainer in ("SAM3DFull", "SAM3DOriginalEval"))
    assert np.array_equal(read_volume(theirs / "case_0.nii.gz"), read_volume(ours / "case_0.nii.gz"))
    figures = [json.loads((folder / "summary.json").read_text())["mean"] for folder in (theirs, ours)]
    assert figures[0] == figures[1]
    log = trained.log("SAM3DOriginalEval", 0)
    assert f"Validation taken over from {theirs.parent}: same weights" in log and "predicting case_0" not in log


@pytest.mark.parametrize("trainer", TRAINERS[1:])
def test_the_finished_model_of_the_fold_is_the_start(trainer: str, trained: Workspace) -> None:
    file = trained.fold("SAM3DFull", 0) / "checkpoint_final.pth"
    log = trained.log(trainer, 0)
    assert "Starting from the finished nnUNetTrainer_SAM3DFull of fold 0" in log
    assert str(file) in log
    provenance = final(trained, trainer)["sam3d"]["provenance"]
    assert len(provenance) >= 5
    for record in provenance.values():
        assert (record["file"], record["sha256"], record["kind"]) == (str(file), sha256(file), "trained")


def test_dualpath_changed_what_it_trains_and_nothing_else(trained: Workspace) -> None:
    full, checkpoint = final(trained, "SAM3DFull"), final(trained, "SAM3DDualPath")
    names = set(checkpoint["sam3d"]["trained"])
    start = {in_dualpath(name): value for name, value in full["network_weights"].items()}
    weights = checkpoint["network_weights"]
    frozen = [name for name in weights if name not in names and not name.endswith(".published_plane")]  # no weight
    assert any(name.startswith("mask_decoder.") for name in frozen)
    assert any(name.startswith("prompt_encoder.") for name in frozen)
    assert all(name.startswith("encoder.") for name in names)
    for name in frozen:
        assert torch.equal(weights[name], start[name]), name
    unchanged = [name for name in names if name in start and torch.equal(weights[name], start[name])]
    assert unchanged == []


def test_weights_inspect_tells_trained_from_frozen(trained: Workspace) -> None:
    file = trained.fold("SAM3DDualPath", 0) / "checkpoint_final.pth"
    output = trained.run("nnUNetv2_sam3d", "weights", "inspect", file)
    checkpoint = read_checkpoint(file)
    trained_count = sum(checkpoint["network_weights"][name].numel() for name in checkpoint["sam3d"]["trained"])
    network = load_model(file)
    frozen = sum(parameter.numel() for parameter in network.parameters()) - trained_count
    lines = {line.split("  ")[1].strip(): line for line in output.splitlines() if " trained " in line}
    assert f"{trained_count:,} trained" in lines["all"] and f"{frozen:,} frozen" in lines["all"]
    for part in ("mask decoder", "prompt encoder", "last convolution", "SAM encoder"):
        assert " 0 trained" in lines[part]
    for part in ("adapters", "3D parts of the encoder"):
        assert " 0 frozen" in lines[part]
    source = trained.fold("SAM3DFull", 0) / "checkpoint_final.pth"
    assert str(source) in output and sha256(source) in output
    assert "random initialisation" in output  # what Full itself began with


@pytest.mark.parametrize("trainer", TRAINERS)
def test_load_model_is_the_network_that_nnunet_builds(trainer: str, trained: Workspace) -> None:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(device=torch.device("cpu"), verbose=False)
    predictor.initialize_from_trained_model_folder(str(trained.model(trainer)), (0,), "checkpoint_final.pth")
    predictor.network.load_state_dict(predictor.list_of_parameters[0])
    predictor.network.cpu_precision = "float32"  # load_model's, also where nnU-Net's commands take bfloat16
    image = torch.randn(2, 1, 16, 24, 16, generator=torch.Generator().manual_seed(0))
    network = load_model(trained.fold(trainer, 0) / "checkpoint_final.pth")
    with torch.inference_mode():
        logits = network(image)
        assert torch.equal(logits, predictor.network.eval()(image))
    assert logits.shape == (2, 3, 16, 24, 16)


# --- prediction ---


def test_prediction_is_voxel_for_voxel_the_validation(
    trained: Workspace, tmp_path: Path, read_volume: ReadVolume
) -> None:
    images = trained.validation_case(0, tmp_path / "images")
    trained.predict("SAM3DDualPath", 0, images, tmp_path / "out", cwd=tmp_path)
    validation = read_volume(trained.fold("SAM3DDualPath", 0) / "validation" / "case_0.nii.gz")
    assert np.array_equal(read_volume(tmp_path / "out" / "case_0.nii.gz"), validation)
    assert len(np.unique(validation)) > 1  # an all-background result would prove little


def test_exported_and_installed_elsewhere(trained: Workspace, tmp_path: Path, read_volume: ReadVolume) -> None:
    trained.run(
        "nnUNetv2_export_model_to_zip", "-d", trained.number, "-o", tmp_path / "model.zip", "-c", "3d_fullres",
        "-tr", "nnUNetTrainer_SAM3DDualPath", "-p", trained.plans, "-f", 0,
    )  # fmt: skip
    names = zipfile.ZipFile(tmp_path / "model.zip").namelist()
    assert any(name.endswith("fold_0/validation/summary.json") for name in names)
    elsewhere = {"variables": {"nnUNet_results": str(tmp_path / "results")}}
    (tmp_path / "results").mkdir()
    trained.run("nnUNetv2_install_pretrained_model_from_zip", tmp_path / "model.zip", **elsewhere)
    assert len(list((tmp_path / "results").rglob("checkpoint_final.pth"))) == 1
    images = trained.validation_case(0, tmp_path / "images")
    trained.predict("SAM3DDualPath", 0, images, tmp_path / "out", **elsewhere)
    validation = trained.fold("SAM3DDualPath", 0) / "validation" / "case_0.nii.gz"
    assert np.array_equal(read_volume(tmp_path / "out" / "case_0.nii.gz"), read_volume(validation))


# --- other ways to start, stop and go on ---


def kill_at(process: Any, file: Path) -> None:
    """Kills a command and its workers as soon as a file exists."""
    end = time.monotonic() + 300
    while not file.exists():
        assert process.poll() is None, process.communicate()[0][-6000:]
        assert time.monotonic() < end, f"{file} did not appear"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def test_killed_and_continued_with_pretrained_weights(trained: Workspace) -> None:
    """DualPath on another fold, from an original adapter's checkpoint that is named on the command line."""
    workspace = trained.derive_copy("FourEpochs", lambda content: content["3d_fullres"]["sam3d"].update(epochs=4))
    file, fold = trained.fold("SAM3DFull", 0) / "checkpoint_final.pth", workspace.fold("SAM3DDualPath", 1)
    process = workspace.start(*workspace.training("SAM3DDualPath", 1, "-pretrained_weights", file))
    kill_at(process, fold / "checkpoint_latest.pth")
    assert not (fold / "checkpoint_final.pth").exists()
    reached = read_checkpoint(fold / "checkpoint_latest.pth")["current_epoch"]
    assert 1 <= reached < 4
    output = workspace.train("SAM3DDualPath", 1, "--c")
    epochs = [line.split()[-1] for line in output.splitlines() if ": Epoch " in line and "time" not in line]
    assert epochs == [str(epoch) for epoch in range(reached, 4)]
    checkpoint = final(workspace, "SAM3DDualPath", 1)
    assert checkpoint["current_epoch"] == len(checkpoint["logging"]["train_losses"]) == 4
    steps = {state["step"].item() for state in checkpoint["optimizer_state"]["state"].values()}
    assert steps == {8.0}  # the optimizer went on as well
    start = read_checkpoint(file)["network_weights"]
    last = "mask_decoder.seg_layers.0.weight"
    assert torch.equal(checkpoint["network_weights"][last], start[last])  # nnU-Net's own loader would leave it random
    assert checkpoint["sam3d"]["provenance"]["last convolution"]["sha256"] == sha256(file)
    assert (fold / "validation" / "summary.json").exists()


def test_converted_checkpoint_of_the_reference_as_pretrained_weights(
    trained: Workspace, tmp_path: Path, reference_content: Callable[[Any], dict[str, Any]]
) -> None:
    network = load_model(trained.fold("SAM3DFull", 0) / "checkpoint_final.pth")
    torch.save(reference_content(network), tmp_path / "best.pth.tar")
    converted = tmp_path / "original.pth"
    trained.run("nnUNetv2_sam3d", "weights", "convert", tmp_path / "best.pth.tar", "-o", converted)
    like = replace(trained, plans="LikePlans")  # the file's sizes, the decoder's scale among them, are not vit_tiny's
    options = trained.plan_options[trained.plan_options.index("--token-stride") :]
    like.run("nnUNetv2_sam3d", "plan", "-d", like.number, "--like", converted, *options, "-o", like.plans)
    _, *arguments = like.training("SAM3DOriginal", 2, "-pretrained_weights", converted)
    like.run("python", "-m", "nnunetv2.run.run_training", *arguments)  # the command, by its module
    checkpoint = final(like, "SAM3DOriginal", 2)
    names = set(checkpoint["sam3d"]["trained"])
    frozen = [name for name in checkpoint["network_weights"] if name not in names]
    assert frozen and all(name.startswith("encoder.") for name in frozen)
    state = network.state_dict()
    assert all(torch.equal(checkpoint["network_weights"][name], state[name]) for name in frozen)
    assert not any(torch.equal(checkpoint["network_weights"][name], state[name]) for name in names)
    record = checkpoint["sam3d"]["provenance"]["SAM encoder"]
    assert (record["file"], record["sha256"]) == (str(converted), sha256(converted))
    assert "3dsam-adapter" in str(record["made_from"])
    assert sha256(tmp_path / "best.pth.tar") in str(record["made_from"])


def test_validation_again_with_probabilities(trained: Workspace, read_volume: ReadVolume) -> None:
    folder = trained.fold("SAM3DOriginalEval", 0) / "validation"
    before = read_volume(folder / "case_0.nii.gz"), json.loads((folder / "summary.json").read_text())
    checkpoint = sha256(folder.parent / "checkpoint_final.pth")
    (folder / "case_0.nii.gz").unlink()
    (folder / "summary.json").unlink()
    output = trained.train("SAM3DOriginalEval", 0, "--val", "--npz")
    assert "predicting case_0" in output and "Mean Validation Dice" in output  # asked for: not taken over
    assert np.array_equal(read_volume(folder / "case_0.nii.gz"), before[0])
    assert json.loads((folder / "summary.json").read_text())["mean"] == before[1]["mean"]
    probabilities = np.load(folder / "case_0.npz")["probabilities"]
    assert probabilities.shape == (3, *before[0].shape)
    assert np.allclose(probabilities.sum(0), 1, atol=1e-3)
    assert np.array_equal(probabilities.argmax(0), before[0])
    assert sha256(folder.parent / "checkpoint_final.pth") == checkpoint


# --- other data sets ---


def test_regions_and_ignore_label(planned: Workspace, both_at_once: BothAtOnce, read_volume: ReadVolume) -> None:
    def one_step(configurations: dict[str, Any]) -> None:
        configurations["3d_fullres"]["sam3d"].update(epochs=1, iterations_per_epoch=1)

    regions, ignore = (replace(planned, number=number).derive_copy("Once", one_step) for number in (992, 993))
    both_at_once([lambda: regions.train("SAM3DFull", 0), lambda: ignore.train("SAM3DFull", 0)])
    folders = [workspace.fold("SAM3DFull", 0) for workspace in (regions, ignore)]
    for folder, labels in zip(folders, [{0, 1, 2, 3}, {0, 1, 2}], strict=True):
        losses = read_checkpoint(folder / "checkpoint_final.pth")["logging"]
        assert np.isfinite([losses["train_losses"], losses["val_losses"]]).all()
        assert set(np.unique(read_volume(folder / "validation" / "case_0.nii.gz"))) <= labels
    mean = [set(json.loads((folder / "validation" / "summary.json").read_text())["mean"]) for folder in folders]
    assert mean == [{"(1, 2, 3)", "(2, 3)", "2"}, {"1", "2"}]
    heads = [load_model(folder / "checkpoint_final.pth").config.num_classes for folder in folders]
    assert heads == [3, 3]  # three regions; background and two labels


# --- a trainer of the user's ---


def test_users_own_trainer_works_beside_ours(users_trainer: Path, planned: Workspace, tmp_path: Path) -> None:
    stock = replace(planned, plans="nnUNetPlans")
    assert (stock.fold("Users", 0) / "validation" / "summary.json").exists()
    variables = {"nnUNet_extTrainer": str(users_trainer)}
    # with the same variable ours is found, too, and gets as far as its file
    output = planned.fails(*planned.training("SAM3DFull", 4, "-pretrained_weights", "absent.pth"), variables=variables)
    assert "WeightsError: weights file absent.pth does not exist" in output


# --- several folds and trainers ---


@pytest.mark.slow
def test_cross_validation_and_ensembles(
    trained: Workspace, tmp_path: Path, both_at_once: BothAtOnce, read_volume: ReadVolume
) -> None:
    trainers, folds = ("SAM3DFull", "SAM3DDualPath"), (0, 1)
    trained.train("SAM3DFull", 1, "--npz")
    both_at_once([
        lambda: trained.train("SAM3DDualPath", 1, "--npz"),
        *(lambda trainer=trainer: trained.train(trainer, 0, "--val", "--npz") for trainer in trainers),
    ])  # fmt: skip
    common = ("-p", trained.plans, "-f", *folds)
    trained.run(
        "nnUNetv2_accumulate_crossval_results", trained.number, "-c", "3d_fullres", "-tr",
        "nnUNetTrainer_SAM3DDualPath", *common,
    )  # fmt: skip
    accumulated = trained.model("SAM3DDualPath") / "crossval_results_folds_0_1"
    assert {path.name for path in accumulated.glob("*.nii.gz")} == {"case_0.nii.gz", "case_1.nii.gz"}
    trained.run(
        "nnUNetv2_find_best_configuration", trained.number, "-c", "3d_fullres", "-np", 1,
        "-tr", *(f"nnUNetTrainer_{trainer}" for trainer in trainers), *common,
    )  # fmt: skip
    best = json.loads((trained.results / "inference_information.json").read_text())
    assert all(f"nnUNetTrainer_{trainer}" in json.dumps(best) for trainer in trainers)
    images = trained.validation_case(0, tmp_path / "images")
    both_at_once([
        lambda trainer=trainer: trained.predict(trainer, 0, images, tmp_path / trainer, "--save_probabilities")
        for trainer in trainers
    ])  # fmt: skip
    folders = [tmp_path / trainer for trainer in trainers]
    trained.run("nnUNetv2_ensemble", "-i", *folders, "-o", tmp_path / "both", "-np", 1)
    parts = [np.load(folder / "case_0.npz")["probabilities"] for folder in folders]
    assert np.array_equal(read_volume(tmp_path / "both" / "case_0.nii.gz"), np.mean(parts, 0).argmax(0))
