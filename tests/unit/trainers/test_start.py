"""Where the trainers' weights come from, what they save, and what they refuse."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.run import run_training
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from trainer_kit import (
    CONFIGURATION,
    NAME,
    PLANS,
    TOY,
    MakeTrainer,
    batch,
    finish,
    in_optimizer,
    plans_of,
    sam_checkpoint,
    train,
    trained_names,
    values,
    with_each_trainer,
    without_local_path,
)

from nnunetv2_sam3d.network_architecture.sam3d import SAM3D
from nnunetv2_sam3d.trainers import variants as trainers
from nnunetv2_sam3d.trainers.sam3d_trainer import nnUNetTrainer_SAM3D
from nnunetv2_sam3d.weights.errors import WeightsError
from nnunetv2_sam3d.weights.reading import convert, load_model

# --- the start ---


def test_dualpath_starts_from_full_of_the_same_fold(make_trainer: MakeTrainer) -> None:
    full = make_trainer("Full", initialize=True, precision="float32")
    file = finish(full)
    trainer = make_trainer("DualPath", initialize=True, precision="float32")
    trainer.start.check(trainer.run(), trainer.recipe)
    given, own = values(full), values(trainer)
    for name, value in given.items():
        assert torch.equal(own[name.replace(".adapter.conv.", ".adapter.global_conv.")], value), name
    assert "Starting from the finished nnUNetTrainer_SAM3DFull of fold 0" in Path(trainer.log_file).read_text()
    for part in ("adapters", "SAM encoder", "prompt encoder", "mask decoder", "last convolution"):
        assert trainer.start.provenance[part]["file"] == str(file)
    assert trainer.start.provenance["adapters"]["adapter_start"] == "published"
    assert "adapter_start" not in trainer.start.provenance["mask decoder"]
    without_local_path(trainer)
    with torch.no_grad():
        image = batch(trainer)["data"]
        torch.testing.assert_close(trainer.network.eval()(image), full.network.eval()(image), atol=1e-5, rtol=1e-5)


def test_original_is_preferred_to_full(make_trainer: MakeTrainer) -> None:
    finish(make_trainer("Full", initialize=True))
    file = finish(make_trainer("Original", initialize=True))
    for kind in ("DualPath", "OriginalEval"):
        assert make_trainer(kind, initialize=True).start.provenance["mask decoder"]["file"] == str(file)


@pytest.mark.parametrize("kind", ["DualPath", "OriginalEval"])
def test_another_folds_model_is_not_taken(kind: str, make_trainer: MakeTrainer) -> None:
    finish(make_trainer("Full", initialize=True, fold=1))
    trainer = make_trainer(kind, initialize=True, fold=0)
    with pytest.raises(WeightsError) as caught:
        trainer.start.check(trainer.run(), trainer.recipe)
    message = str(caught.value)
    assert "frozen" in message and "mask decoder" in message and "prompt encoder" in message
    for name in ("nnUNetTrainer_SAM3DOriginal", "nnUNetTrainer_SAM3DFull"):
        assert f"nnUNetv2_train {NAME} {CONFIGURATION} 0 -tr {name} -p {PLANS}" in message
    assert "-pretrained_weights" in message


def test_an_evaluation_without_a_model_asks_for_one_and_nothing_else(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("DualPathEval", initialize=True)
    with pytest.raises(WeightsError, match=r"(?s)It validates a trained model.*-pretrained_weights") as refused:
        trainer.start.check(trainer.run(), trainer.recipe)
    assert "SAM3DFull" not in str(refused.value) and "sam_checkpoint" not in str(refused.value)


def test_original_needs_sams_weights_and_takes_them(
    make_trainer: MakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = make_trainer("Original", initialize=True)
    with pytest.raises(WeightsError, match=r"(?s)SAM encoder.*no weights are published.*SAM3DFull.*sam_checkpoint="):
        without.start.check(without.run(), without.recipe)
    given = sam_checkpoint(without, tmp_path / "sam.pth")
    monkeypatch.setenv("nnUNet_sam_checkpoint", str(tmp_path / "sam.pth"))
    trainer = make_trainer("Original", initialize=True)
    trainer.start.check(trainer.run(), trainer.recipe)
    own = values(trainer)
    assert all(torch.equal(own[name], value) for name, value in given.items())
    frozen = set(own) - trained_names(trainer)
    assert frozen <= set(given)
    assert trainer.start.provenance["SAM encoder"]["kind"] == "sam"
    assert trainer.start.provenance["mask decoder"] == {"kind": "random"}
    monkeypatch.delenv("nnUNet_sam_checkpoint")
    noted = make_trainer("Original", initialize=True, sam_checkpoint=str(tmp_path / "sam.pth"))
    noted.start.check(noted.run(), noted.recipe)


def test_sams_weights_do_not_do_for_dualpath(
    make_trainer: MakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sam_checkpoint(make_trainer("Full", initialize=True), tmp_path / "sam.pth")
    monkeypatch.setenv("nnUNet_sam_checkpoint", str(tmp_path / "sam.pth"))
    trainer = make_trainer("DualPath", initialize=True)
    with pytest.raises(WeightsError) as caught:
        trainer.start.check(trainer.run(), trainer.recipe)
    assert "prompt encoder" in str(caught.value)
    assert "SAM encoder" not in str(caught.value)


def test_full_needs_nothing(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("Full", initialize=True)
    trainer.start.check(trainer.run(), trainer.recipe)


@with_each_trainer
def test_network_without_prompt_encoder(kind: str, make_trainer: MakeTrainer) -> None:
    finish(make_trainer("Full", initialize=True, prompt_encoder=False))
    trainer = make_trainer(kind, initialize=True, prompt_encoder=False)
    assert trainer.network.prompt_encoder is None
    if kind != "Original":  # which has no SAM encoder here
        trainer.start.check(trainer.run(), trainer.recipe)
    assert "prompt encoder" not in trainer.start.provenance
    train(trainer, 1 if trained_names(trainer) else 0)
    reloaded = load_model(finish(trainer, 0))
    assert reloaded.config.prompt_encoder is False


# --- nnUNetv2_train -pretrained_weights ---


def start_with(trainer: nnUNetTrainer_SAM3D, file: Path) -> None:
    """What ``nnUNetv2_train -pretrained_weights`` does."""
    run_training.maybe_load_checkpoint(trainer, False, False, str(file))


@with_each_trainer
def test_converted_file_as_pretrained_weights(kind: str, make_trainer: MakeTrainer, tmp_path: Path) -> None:
    full = make_trainer("Full", initialize=True)
    convert(finish(full), tmp_path / "converted.pth")
    trainer = make_trainer(kind, fold=3)
    stock = run_training.load_pretrained_weights
    start_with(trainer, tmp_path / "converted.pth")
    assert run_training.load_pretrained_weights is stock
    own = values(trainer)
    for name, value in values(full).items():  # the last convolution, which nnU-Net never takes, included
        name = name.replace(".conv.", ".global_conv.") if kind == "DualPath" and ".adapter." in name else name
        assert torch.equal(own[name], value), name
    trainer.start.check(trainer.run(), trainer.recipe)


def test_pretrained_weights_come_before_a_finished_model(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    convert(finish(make_trainer("Full", initialize=True, fold=1)), tmp_path / "other.pth")
    finish(make_trainer("Full", initialize=True))
    trainer = make_trainer("DualPath")
    start_with(trainer, tmp_path / "other.pth")
    assert trainer.start.provenance["mask decoder"]["file"] == str(tmp_path / "other.pth")


def test_last_convolution_is_trained_if_the_start_has_other_classes(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    convert(finish(make_trainer("Full", initialize=True, classes=2)), tmp_path / "two_classes.pth")
    trainer = make_trainer("DualPath", classes=4)
    start_with(trainer, tmp_path / "two_classes.pth")
    trainer.start.check(trainer.run(), trainer.recipe)
    last = {name for name in values(trainer) if ".seg_layers." in name}
    assert last and in_optimizer(trainer)[1:] == [last]
    assert trainer.start.provenance["last convolution"] == {"kind": "random"}
    before = values(trainer)
    train(trainer, 2)
    changed = {name for name, value in values(trainer).items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if name.startswith("encoder.") and name in trained_names(trainer)} | last
    # and a training that goes on knows it, too
    file = finish(trainer, 0)
    again = make_trainer("DualPath", classes=4)
    again.load_checkpoint(str(file))
    assert in_optimizer(again)[1:] == [last]
    assert again.start.provenance == trainer.start.provenance


def test_original_eval_refuses_a_random_last_convolution(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    convert(finish(make_trainer("Full", initialize=True, classes=2)), tmp_path / "two_classes.pth")
    trainer = make_trainer("OriginalEval", classes=4)
    start_with(trainer, tmp_path / "two_classes.pth")
    with pytest.raises(WeightsError, match="last convolution"):
        trainer.start.check(trainer.run(), trainer.recipe)


@pytest.mark.parametrize("kind", ["Original", "Full", "OriginalEval"])
def test_dualpath_weights_are_refused_by_trainers_of_the_original(
    kind: str, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    finish(make_trainer("Full", initialize=True))
    convert(finish(make_trainer("DualPath", initialize=True)), tmp_path / "dualpath.pth")
    with pytest.raises(WeightsError, match="has dualpath adapters, which give nothing to this trainer's original ones"):
        start_with(make_trainer(kind, fold=1), tmp_path / "dualpath.pth")


def test_weights_of_another_size_are_refused(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    convert(finish(make_trainer("Full", initialize=True)), tmp_path / "small.pth")
    larger = TOY["network"] | {"embed_dim": 64}
    with pytest.raises(WeightsError, match=r"embed_dim is 32 in the file and 64 in the plans"):
        start_with(make_trainer("Full", fold=1, network=larger), tmp_path / "small.pth")


class _Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def test_malicious_pretrained_weights_do_not_run(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    for number, save in enumerate((torch.save, lambda content, file: file.write_bytes(pickle.dumps(content, 2)))):
        file, marker = tmp_path / f"evil_{number}.pth", tmp_path / f"it_ran_{number}"
        save({"network_weights": _Bomb(marker)}, file)
        with pytest.raises(WeightsError, match=file.name):
            start_with(make_trainer("Full"), file)
        assert not marker.exists()


def test_a_refused_file_leaves_nnunets_loader_in_its_place(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    """Otherwise the next trainer of the process, a stock one perhaps, would silently start at random."""
    with pytest.raises(WeightsError):
        start_with(make_trainer("Full"), tmp_path / "absent.pth")
    assert run_training.load_pretrained_weights.__module__ == "nnunetv2.run.load_pretrained_weights"


# --- checkpoints ---


@with_each_trainer
def test_checkpoint_round_trip(kind: str, make_trainer: MakeTrainer) -> None:
    finish(make_trainer("Full", initialize=True))
    trainer = make_trainer(kind, initialize=True)
    file = finish(trainer, 2 if trained_names(trainer) else 0)
    again = make_trainer(kind)
    again.load_checkpoint(str(file))
    for name, value in trainer.network.state_dict().items():
        assert torch.equal(again.network.state_dict()[name], value)
    assert again.start.provenance == trainer.start.provenance
    assert trained_names(again) == trained_names(trainer)
    assert [len(group) for group in again.optimizer.param_groups] == [len(g) for g in trainer.optimizer.param_groups]
    states = [state["step"].item() for state in again.optimizer.state.values()]
    assert states == [2.0] * len(trained_names(trainer))
    assert again.current_epoch == 1


@pytest.mark.parametrize("beyond", [{}, {"signed_clicks": True, "click_maps": True}])
def test_going_on_gives_the_same_as_not_having_stopped(beyond: dict[str, bool], make_trainer: MakeTrainer) -> None:
    settings: dict[str, Any] = {"network": TOY["network"] | beyond, "automatic_share": 0.2}
    trainer = make_trainer("Full", initialize=True, **settings)
    file = finish(trainer, 2)
    again = make_trainer("Full", **settings)
    again.load_checkpoint(str(file))
    trainer.current_epoch += 1  # nnU-Net's end of an epoch
    for one in (trainer, again):
        one.on_train_epoch_start()
        train(one, 4)
    for name, value in values(trainer).items():
        assert torch.equal(values(again)[name], value), name


def test_checkpoint_of_other_classes_is_refused(make_trainer: MakeTrainer) -> None:
    file = finish(make_trainer("Full", initialize=True, classes=3))
    with pytest.raises(WeightsError, match=r"num_classes is 3 in the file and 4 here"):
        make_trainer("Full", classes=4).load_checkpoint(str(file))


def test_checkpoint_of_other_adapters_is_refused(make_trainer: MakeTrainer) -> None:
    file = finish(make_trainer("Full", initialize=True))
    with pytest.raises(WeightsError, match=r"adapter is original in the file and dualpath here"):
        make_trainer("DualPath").load_checkpoint(str(file))


def test_converted_file_is_no_training_to_go_on_with(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    convert(finish(make_trainer("Full", initialize=True)), tmp_path / "converted.pth")
    with pytest.raises(WeightsError, match="-pretrained_weights"):
        make_trainer("Full").load_checkpoint(str(tmp_path / "converted.pth"))


@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.999])
def test_damaged_checkpoint_is_refused(keep: float, make_trainer: MakeTrainer, tmp_path: Path) -> None:
    content = finish(make_trainer("Full", initialize=True)).read_bytes()
    damaged = tmp_path / "damaged.pth"
    damaged.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(WeightsError, match=r"damaged\.pth"):
        make_trainer("Full").load_checkpoint(str(damaged))


def test_disabled_checkpointing_writes_nothing(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = make_trainer("Full", initialize=True)
    trainer.disable_checkpointing = True
    trainer.save_checkpoint(str(tmp_path / "nothing.pth"))
    assert not (tmp_path / "nothing.pth").exists()


# --- what predict does ---


@with_each_trainer
def test_network_is_built_from_the_arguments_alone(
    kind: str, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(make_trainer("Full", initialize=True))
    state = make_trainer(kind, initialize=True).network.state_dict()
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.delenv(f"nnUNet_{name}")
    monkeypatch.setenv("nnUNet_sam_checkpoint", "/nowhere.pth")  # must not matter
    plans = PlansManager(plans_of(TOY))
    trainer = getattr(trainers, f"nnUNetTrainer_SAM3D{kind}")
    network = trainer.build_network_architecture(
        plans, plans.get_configuration(CONFIGURATION), 1, 3, enable_deep_supervision=False
    )
    network.load_state_dict(state)  # strictly
    assert isinstance(network, SAM3D)


def test_signature_is_nnunets() -> None:
    import inspect

    stock = inspect.signature(nnUNetTrainer.__init__).parameters
    build = list(inspect.signature(nnUNetTrainer.build_network_architecture).parameters)
    for name in trainers.__all__:
        trainer = getattr(trainers, name)
        assert list(inspect.signature(trainer.__init__).parameters) == list(stock)
        assert list(inspect.signature(trainer.build_network_architecture).parameters) == build


# --- bad settings ---


@pytest.mark.parametrize(("configuration", "words"), [("2d", "two-dimensional"), ("3d_cascade_fullres", "cascade")])
@with_each_trainer
def test_2d_and_cascade_are_refused_without_a_trace(
    kind: str, configuration: str, words: str, make_trainer: MakeTrainer, folders: Path
) -> None:
    with pytest.raises(NotImplementedError, match=words) as caught:
        make_trainer(kind, configuration=configuration)
    assert "3d_fullres" in str(caught.value)
    assert not (folders / "results").exists()


@pytest.mark.parametrize(
    ("settings", "configuration", "words"),
    [
        ({"epohcs": 3}, {}, r"unknown settings \['epohcs'\]"),
        ({"epochs": 0}, {}, "epochs must be"),
        ({"epochs": "many"}, {}, "epochs must be"),
        ({"iterations_per_epoch": 2.5}, {}, "iterations_per_epoch must be"),
        ({"initial_lr": 0}, {}, "initial_lr"),
        ({"initial_lr": "high"}, {}, "initial_lr"),
        ({"variant": "vit_x"}, {}, "vit_x"),
        ({"token_stride": 3}, {}, "token_stride"),
        ({"token_stride": [4, 4]}, {}, "token_stride"),
        ({"adapter_dim": 0}, {}, "adapter_dim"),
        ({"network": {"embed_dim": 34, "num_heads": 4}}, {}, "embed_dim"),
        ({"network": {"emebd_dim": 32}}, {}, "emebd_dim"),
        ({"token_stride": 16}, {"patch_size": [16, 16, 16]}, "patch"),
    ],
)
def test_impossible_settings_are_refused_without_a_trace(
    settings: dict[str, Any], configuration: dict[str, Any], words: str, make_trainer: MakeTrainer, folders: Path
) -> None:
    with pytest.raises(ValueError, match=words):
        make_trainer("Full", plans=plans_of(TOY | settings, **configuration))
    assert not (folders / "results").exists()


def test_data_set_without_foreground_labels(make_trainer: MakeTrainer, folders: Path) -> None:
    with pytest.raises(ValueError, match=f"{NAME} has no foreground label"):
        make_trainer("Full", labels={"background": 0})
    assert not (folders / "results").exists()


def test_plans_of_stock_nnunet_give_vit_b(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("Full", plans=plans_of(None))
    assert (trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.initial_lr) == (500, 250, 4e-4)
    config = trainer.settings.network_config(adapter="original", in_channels=1, num_classes=3)
    assert (config.embed_dim, config.depth, config.token_stride) == (768, 12, (4, 4, 4))


def test_time_budget_without_a_limit_is_refused(make_trainer: MakeTrainer) -> None:
    plans = plans_of(TOY) | {"continue_training": False}
    with pytest.raises(ValueError, match="--max-seconds"):
        trainers.nnUNetTrainer_TimeBudget(plans, CONFIGURATION, 0, {"labels": {"background": 0, "a": 1}},
                                          torch.device("cpu"))  # fmt: skip
