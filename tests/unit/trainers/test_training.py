"""What the trainers train, and how."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from trainer_kit import (
    RECIPES,
    TOY,
    MakeTrainer,
    batch,
    in_optimizer,
    plans_of,
    train,
    trained_names,
    values,
    with_each_that_trains,
)

from nnunetv2_sam3d.trainers import preflight

# --- the optimizer ---


@with_each_that_trains
@pytest.mark.parametrize("prompt_encoder", [True, False])
def test_one_adamw_holds_exactly_what_is_trained(kind: str, prompt_encoder: bool, make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(kind, prompt_encoder=prompt_encoder, initialize=True)
    assert type(trainer.optimizer) is torch.optim.AdamW
    groups = in_optimizer(trainer)
    parts = {"Original": 3, "DualPath": 1, "Full": 3}[kind] - (kind != "DualPath" and not prompt_encoder)
    assert len(groups) == parts
    assert sum(map(len, groups)) == len(set.union(*groups))
    assert set.union(*groups) == trained_names(trainer)
    if kind == "DualPath":
        assert all(name.startswith("encoder.") for name in trained_names(trainer))
    for group in trainer.optimizer.param_groups:
        assert (group["lr"], group["weight_decay"]) == (4e-4, 0)


def test_shares_of_trained_parameters(make_trainer: MakeTrainer) -> None:
    shares = {}
    for kind in RECIPES:
        trainer = make_trainer(kind, initialize=True)
        trained = sum(p.numel() for p in trainer.network.parameters() if p.requires_grad)
        shares[kind] = trained / sum(p.numel() for p in trainer.network.parameters())
        assert f"{trained:,} of " in Path(trainer.log_file).read_text()
    assert shares["Full"] == 1
    assert shares["OriginalEval"] == 0
    assert 0 < shares["DualPath"] < shares["Original"] < 1


def test_original_eval_trains_nothing(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("OriginalEval", initialize=True)
    assert trainer.num_epochs == 0
    assert trained_names(trainer) == set()
    mine = {id(parameter) for parameter in trainer.network.parameters()}
    assert not any(id(parameter) in mine for group in trainer.optimizer.param_groups for parameter in group["params"])


@with_each_that_trains
def test_learning_rate_over_500_epochs(kind: str, make_trainer: MakeTrainer) -> None:
    settings = {key: value for key, value in TOY.items() if key not in ("epochs", "initial_lr")}
    trainer = make_trainer(kind, plans=plans_of(settings), initialize=True)
    assert trainer.num_epochs == 500
    for epoch in (0, 250, 499):
        trainer.current_epoch = epoch
        trainer.on_train_epoch_start()
        expected = pytest.approx(4e-4 * (1 - 0.99 * epoch / 500))
        assert [group["lr"] for group in trainer.optimizer.param_groups] == [expected] * len(in_optimizer(trainer))


def test_settings_of_the_plans_reach_the_trainer(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("Full", epochs=30, iterations_per_epoch=7, val_iterations_per_epoch=5, initial_lr=1e-3)
    assert (trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch) == (30, 7, 5)
    trainer.initialize()
    assert {group["lr"] for group in trainer.optimizer.param_groups} == {1e-3}


@pytest.mark.parametrize(
    ("kind", "epochs"),
    [
        ("Original", 30),
        ("Full", 30),
        ("DualPath", 20),
        ("OriginalContinued", 20),
        ("DualPathFFT", 20),
        ("OriginalEval", 0),
    ],
)
def test_epochs_of_what_starts_from_a_model(kind: str, epochs: int, make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(kind, epochs=30, continued_epochs=20, initialize=True)
    assert trainer.num_epochs == epochs
    assert epochs == 0 or trainer.save_every == epochs // 10
    if epochs:
        trainer.lr_scheduler.step(epochs)
        assert all(group["lr"] == pytest.approx(trainer.initial_lr / 100) for group in trainer.optimizer.param_groups)


# --- steps ---


@with_each_that_trains
@pytest.mark.parametrize("prompt_encoder", [True, False])
def test_steps_change_what_is_trained_and_nothing_else(
    kind: str, prompt_encoder: bool, make_trainer: MakeTrainer
) -> None:
    trainer = make_trainer(kind, prompt_encoder=prompt_encoder, initialize=True)
    before, trained = values(trainer), trained_names(trainer)
    train(trainer, 4)
    after = values(trainer)
    assert {name for name in before if not torch.equal(before[name], after[name])} == trained
    # a trained parameter without a gradient would break training on several GPUs
    assert {name for name, p in trainer.network.named_parameters() if p.grad is not None} == trained


@with_each_that_trains
def test_buffers_stay(kind: str, make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(kind, initialize=True)
    before = {name: buffer.clone() for name, buffer in trainer.network.named_buffers()}
    train(trainer, 2)
    assert before
    assert all(torch.equal(buffer, before[name]) for name, buffer in trainer.network.named_buffers())


@with_each_that_trains
def test_clipping(kind: str, make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(kind, initialize=True)
    for parameter in trainer.network.parameters():
        parameter.grad = torch.full_like(parameter, 1e3) if parameter.requires_grad else None
    trainer.clip_gradients()
    grads = {name: p.grad for name, p in trainer.network.named_parameters() if p.grad is not None}
    assert set(grads) == trained_names(trainer)

    def norm(select: Callable[[str], bool]) -> float:
        return torch.stack([grads[name].norm() for name in grads if select(name)]).norm().item()

    if kind == "DualPath":
        assert norm(lambda name: ".adapter." in name) == pytest.approx(1.0, rel=1e-4)
        assert all((grad == 1e3).all() for name, grad in grads.items() if ".adapter." not in name)
    else:
        for part in ("encoder.", "prompt_encoder.", "mask_decoder."):
            assert norm(lambda name, part=part: name.startswith(part)) == pytest.approx(1.0, rel=1e-4)


def test_small_gradients_are_not_scaled_up(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("DualPath", initialize=True)
    for parameter in trainer.network.parameters():
        parameter.grad = torch.full_like(parameter, 1e-6) if parameter.requires_grad else None
    trainer.clip_gradients()
    assert all((p.grad == 1e-6).all() for p in trainer.network.parameters() if p.grad is not None)


def test_a_step_clips_before_the_optimizer_sees_the_gradients(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer("Full", initialize=True)
    seen = []
    monkeypatch.setattr(trainer, "clip_gradients", lambda: seen.append("clip"))
    trainer.optimizer.register_step_pre_hook(lambda *_: seen.append("step"))
    train(trainer, 2)
    assert seen == ["clip", "step"] * 2


def test_training_and_validation_loss(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("Full", initialize=True, clicks="none")
    data = batch(trainer)
    with torch.no_grad():
        logits = trainer.network(data["data"])
    target = data["target"].long()[:, 0]
    wanted = torch.nn.functional.one_hot(target, 3).movedim(-1, 1)[:, 1:].float()
    probability = logits.softmax(1)[:, 1:]
    overlap, size = (probability * wanted).sum((2, 3, 4)), (probability + wanted).sum((2, 3, 4))
    dice = (1 - ((2 * overlap + 1e-5) / (size + 1e-5)).mean()).item()
    ce = torch.nn.functional.cross_entropy(logits, target).item()
    with torch.no_grad():
        validation = trainer.validation_step(deepcopy(data))
    assert float(validation["loss"]) == pytest.approx(dice, rel=1e-4)
    assert len(validation["tp_hard"]) == 2  # nnU-Net's own scores beside it, for the two labels
    # in whatever order: the loss knows the kind of the step
    assert float(trainer.train_step(deepcopy(data))["loss"]) == pytest.approx(0.5 * dice + 0.5 * ce, rel=1e-4)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_precision_of_the_plans_reaches_training_and_prediction(make_trainer: MakeTrainer, precision: str) -> None:
    """Both build their network in the same way."""
    trainer = make_trainer("Full", initialize=True, precision=precision)
    assert trainer.plain_network.cpu_precision == precision
    seen = set[torch.dtype]()
    layer = trainer.plain_network.encoder.blocks[0].adapter.linear2
    layer.register_forward_hook(lambda module, given, out: seen.add(out.dtype))
    train(trainer, 1)
    assert seen == {getattr(torch, precision)}


# --- mirroring ---


@pytest.mark.parametrize(("chosen", "axes"), [(None, (0, 1, 2)), ([0, 2], (0, 2)), ([], None)])
@pytest.mark.parametrize("kind", ["Full", "OriginalEval"])
def test_mirrored_axes_of_training_are_those_of_prediction(
    kind: str, chosen: list[int] | None, axes: tuple[int, ...] | None, make_trainer: MakeTrainer
) -> None:
    trainer = make_trainer(kind, initialize=True, **({} if chosen is None else {"mirror_axes": chosen}))
    assert trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()[3] == axes
    trainer.save_checkpoint(str(Path(trainer.output_folder) / "c.pth"))
    saved = torch.load(Path(trainer.output_folder) / "c.pth", weights_only=False)
    assert saved["inference_allowed_mirroring_axes"] == axes


# --- checkpointing ---


@pytest.mark.parametrize(("available", "state"), [(10**12, "off"), (10**6, "on"), (None, None)])
def test_checkpointing_only_where_memory_would_not_suffice(
    available: int | None, state: str | None, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "memory_of", lambda device: available)
    trainer = make_trainer("DualPath", initialize=True)
    assert trainer.settings.checkpointing == "auto"
    assert not trainer.plain_network.config.checkpointing  # as nnUNetv2_predict builds it
    preflight.decide_checkpointing(
        trainer.plain_network,
        trainer.recipe,
        patch_size=trainer.configuration_manager.patch_size,
        batch_size=trainer.batch_size,
        batch_dice=trainer.configuration_manager.batch_dice,
        device=trainer.device,
        say=trainer.print_to_log_file,
    )
    assert trainer.plain_network.encoder.checkpointing == (state == "on")
    log = Path(trainer.log_file).read_text()
    assert ("Checkpointing" in log) == (state is not None)
    assert state is None or f"Checkpointing {state}: without it a training step is predicted to take" in log
    train(trainer, 1)


@pytest.mark.parametrize("chosen", [False, True])
def test_checkpointing_as_the_plans_say(chosen: bool, make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("DualPath", checkpointing=chosen, initialize=True)
    assert trainer.plain_network.encoder.checkpointing is chosen
