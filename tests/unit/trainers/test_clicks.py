"""Clicks in the trainers' steps: which steps have them, what is trained by them, and what validation says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from trainer_kit import TOY, MakeTrainer, batch, finish, train, trained_names, values, with_each_that_trains

from nnunetv2_sam3d.network_architecture.prompt_encoder import is_addition
from nnunetv2_sam3d.trainers.sam3d_trainer import nnUNetTrainer_SAM3D
from nnunetv2_sam3d.trainers.training_clicks import AUTOMATIC_LOSSES, CLICKED_LOSSES

BEYOND: dict[str, Any] = {"network": TOY["network"] | {"signed_clicks": True, "click_maps": True}}
LABELS = {"background": 0, "organ": 1, "tumour": 2}


def calls_of(trainer: nnUNetTrainer_SAM3D) -> list[tuple[Tensor, ...]]:
    """What the network is called with from now on, beside whether gradients are wanted."""
    seen: list[tuple[Tensor, ...]] = []
    trainer.network.register_forward_pre_hook(
        lambda module, args: seen.append((torch.tensor(torch.is_grad_enabled()), *args))
    )
    return seen


def run_epoch(trainer: nnUNetTrainer_SAM3D, data: Callable[[nnUNetTrainer_SAM3D, int], dict] = batch) -> None:
    """As nnU-Net runs it."""
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    trainer.on_train_epoch_end([trainer.train_step(data(trainer, step)) for step in range(2)])
    with torch.no_grad():
        trainer.on_validation_epoch_start()
        trainer.on_validation_epoch_end([trainer.validation_step(data(trainer, step)) for step in range(2)])
    trainer.on_epoch_end()


def log_of(trainer: nnUNetTrainer_SAM3D) -> dict[str, list]:
    return trainer.logger.local_logger.my_fantastic_logging


# --- training steps ---


def test_half_of_the_steps_are_automatic(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("Full", initialize=True, labels=LABELS)
    calls = calls_of(trainer)
    train(trainer, 12)
    target = [batch(trainer, step)["target"][:, 0] for step in range(12)]
    shapes = {(points.shape, signs.shape) for _, _, points, signs in calls}
    assert shapes == {((2, 10, 3), (2, 10))}  # one shape for a compiled network
    automatic = [not signs.any() for _, _, _, signs in calls]
    assert automatic == [trainer.clicks.simulated.is_automatic(0, step) for step in range(12)]
    assert 2 < sum(automatic) < 10
    for mask, (_, _, points, signs) in zip(target, calls, strict=True):
        for sample, place in signs.nonzero().tolist():
            assert mask[sample][tuple(points[sample, place].long())] == 2


def test_each_epoch_has_its_own_clicks(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("Full", initialize=True, automatic_share=0.0)
    calls = calls_of(trainer)
    for _ in range(2):
        trainer.on_train_epoch_start()
        train(trainer, 2)
        trainer.current_epoch += 1
    assert len({points.numpy().tobytes() for _, _, points, _ in calls}) == 4


@with_each_that_trains
@pytest.mark.parametrize("settings", [{"clicks": "none"}, {"prompt_encoder": False}])
def test_without_clicks_the_network_gets_the_image_alone(
    kind: str, settings: dict[str, Any], make_trainer: MakeTrainer
) -> None:
    trainer = make_trainer(kind, initialize=True, **settings)
    calls = calls_of(trainer)
    run_epoch(trainer)
    assert {len(call) for call in calls} == {2} and len(calls) == 4
    assert AUTOMATIC_LOSSES not in log_of(trainer)
    assert "crops" not in Path(trainer.log_file).read_text()


def test_an_automatic_step_is_a_step_without_clicks(make_trainer: MakeTrainer) -> None:
    """Room for clicks that is not used makes no difference to what is learned."""
    trainer = make_trainer("Full", initialize=True, **BEYOND)
    plain = make_trainer("Full", initialize=True, clicks="none")
    plain.network.load_state_dict(
        {name: value for name, value in trainer.network.state_dict().items() if not is_addition(name)}
    )
    trainer.clicks.begin(next(epoch for epoch in range(99) if trainer.clicks.simulated.is_automatic(epoch, 0)))
    losses = [one.train_step(batch(one))["loss"] for one in (trainer, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for name, parameter in plain.network.named_parameters():
        torch.testing.assert_close(trainer.network.get_parameter(name).grad, parameter.grad, rtol=1e-2, atol=1e-5)


@with_each_that_trains
def test_no_step_leaves_a_trained_parameter_without_gradient(kind: str, make_trainer: MakeTrainer) -> None:
    """Training on several GPUs would stop there; frozen zeros could never be learned."""
    finish(make_trainer("Full", initialize=True), 0)
    trainer = make_trainer(kind, initialize=True, **BEYOND)
    trained = trained_names(trainer)
    additions = {name for name in trained if is_addition(name)}
    assert additions == {"prompt_encoder.background", "prompt_encoder.click_maps.to_taps.weight"}
    kinds = set()
    before = values(trainer)
    for step in range(10):
        kinds.add((trainer.clicks.simulated.is_automatic(0, step), trainer.clicks.simulated.is_corrected(0, step)))
        train(trainer, 1)
        gradients = {name for name, p in trainer.network.named_parameters() if p.grad is not None}
        assert gradients == trained
    assert kinds == {(True, False), (False, False), (False, True)}
    assert {name for name in before if not torch.equal(values(trainer)[name], before[name])} == trained


def test_correcting_steps_look_at_the_networks_error_first(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("Full", initialize=True, automatic_share=0.0, labels=LABELS, **BEYOND)
    calls = calls_of(trainer)
    corrected = [trainer.clicks.simulated.is_corrected(0, step) for step in range(6)]
    assert 0 < sum(corrected) < 6
    train(trainer, 6)
    rounds = iter(calls)
    for step, with_correction in enumerate(corrected):
        gradients, image, points, signs = next(rounds)
        assert bool(gradients) != with_correction
        if with_correction:
            assert not signs[:, -1].any()
            _, again, more, signs_after = next(rounds)
            assert again is image and torch.equal(more[:, :-1], points[:, :-1])
            assert signs_after[:, -1].all()  # on random crops, something always is wrong
            truth = batch(trainer, step)["target"][:, 0] == 2
            for sample in range(2):  # missed target, or no target
                assert truth[sample][tuple(more[sample, -1].long())] == (signs_after[sample, -1] > 0)
        else:
            assert not signs[:, -1].any()
    assert next(rounds, None) is None


def test_clicks_on_a_region(make_trainer: MakeTrainer) -> None:
    regions = {"background": 0, "organ": [1, 2], "tumour": 2}
    trainer = make_trainer("Full", initialize=True, labels=regions, regions_class_order=[1, 2], automatic_share=0.0)
    calls = calls_of(trainer)
    tumour = torch.rand(2, 1, 8, 16, 16, generator=torch.Generator().manual_seed(0)) > 0.9
    target = torch.cat([tumour | (torch.arange(16) < 8), tumour], 1)
    trainer.network.train()
    trainer.train_step({"data": torch.randn(2, 1, 8, 16, 16), "target": target})
    _, _, points, signs = calls[0]
    assert signs.any(1).all()
    for sample, place in signs.nonzero().tolist():
        assert tumour[sample, 0][tuple(points[sample, place].long())]


def test_unknown_targets_are_refused_before_anything_is_made(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no target 'liver' in dataset.json. It has: organ = 1, tumour = 2"):
        make_trainer("Full", labels=LABELS, click_targets=["liver"])
    assert not list((tmp_path / "results").rglob("*"))
    trainer = make_trainer("Full", labels=LABELS, click_targets=["organ", "tumour"])
    assert trainer.clicks.simulated.target.labels == (1, 2)


# --- validation ---


def test_validation_logs_both_losses_apart(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("Full", initialize=True, labels=LABELS)
    run_epoch(trainer)
    losses = {name: log_of(trainer)[name] for name in (AUTOMATIC_LOSSES, CLICKED_LOSSES)}
    assert {len(values) for values in losses.values()} == {1}
    automatic, clicked = (values[0] for values in losses.values())
    assert automatic != clicked
    # every random crop has some tumour: the automatic loss is nnU-Net's own
    assert automatic == pytest.approx(log_of(trainer)["val_losses"][0], rel=1e-5)
    text = Path(trainer.log_file).read_text()
    line = f"Dice loss of validation crops with tumour: {automatic:.4f} automatic, {clicked:.4f} with 1 click"
    assert line in text
    assert (Path(trainer.output_folder) / "progress.png").is_file()


def test_crops_without_target_are_left_out(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("Full", initialize=True, labels=LABELS)

    def half(trainer: nnUNetTrainer_SAM3D, seed: int) -> dict[str, Tensor]:
        data = batch(trainer, seed)
        data["target"][1 if seed else slice(None)].clamp_(max=1)  # no tumour in the first step, one in the second
        return data

    run_epoch(trainer, half)
    shown = half(trainer, 1)
    trainer.loss.eval()
    with torch.no_grad():
        expected = trainer.loss(trainer.network(shown["data"][:1]), shown["target"][:1])
    assert log_of(trainer)[AUTOMATIC_LOSSES][0] == pytest.approx(expected.item(), rel=1e-4)


def test_an_epoch_whose_crops_show_no_target(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("Full", initialize=True, labels=LABELS)
    run_epoch(trainer, lambda trainer, seed: batch(trainer, seed) | {"target": torch.ones(2, 1, 8, 16, 16)})
    assert np.isnan(log_of(trainer)[CLICKED_LOSSES][0])
    assert "nan automatic, nan with 1 click" in Path(trainer.log_file).read_text()
    run_epoch(trainer)
    assert np.isfinite(log_of(trainer)[CLICKED_LOSSES][1])


def test_ignored_voxels_in_validation(make_trainer: MakeTrainer) -> None:
    """nnU-Net's validation changes the target where it is ignored; the losses apart come before that."""
    trainer = make_trainer("Full", initialize=True, labels=LABELS | {"ignore": 3})

    def ignored(trainer: nnUNetTrainer_SAM3D, seed: int) -> dict[str, Tensor]:
        data = batch(trainer, seed)
        data["target"][..., :8] = 3
        return data

    run_epoch(trainer, ignored)
    assert log_of(trainer)[AUTOMATIC_LOSSES][0] == pytest.approx(log_of(trainer)["val_losses"][0], rel=1e-5)


def test_losses_go_on_in_a_training_that_began_without(make_trainer: MakeTrainer) -> None:
    before = make_trainer("Full", initialize=True, clicks="none")
    run_epoch(before)
    before.current_epoch -= 1  # nnU-Net saves before it counts
    file = finish(before, 0)
    trainer = make_trainer("Full")
    trainer.load_checkpoint(str(file))
    assert trainer.current_epoch == 1
    run_epoch(trainer)
    losses = log_of(trainer)[CLICKED_LOSSES]
    assert np.isnan(losses[0]) and np.isfinite(losses[1])
    trainer.current_epoch -= 1
    again = make_trainer("Full")
    again.load_checkpoint(str(finish(trainer, 0)))
    assert log_of(again)[CLICKED_LOSSES][1] == losses[1]
    run_epoch(again)
    assert len(log_of(again)[CLICKED_LOSSES]) == len(log_of(again)["val_losses"]) == 3


# --- what a start does not have ---


@pytest.mark.parametrize("how", ["the finished Full", "resumed"])
def test_dualpath_trains_what_its_start_lacks(how: str, make_trainer: MakeTrainer) -> None:
    finish(make_trainer("Full", initialize=True), 0)
    trainer = make_trainer("DualPath", initialize=True, **BEYOND)
    if how == "resumed":
        file = finish(trainer, 3)
        trainer = make_trainer("DualPath", **BEYOND)
        trainer.load_checkpoint(str(file))
    else:
        log = Path(trainer.log_file).read_text()
        assert "the layer of click maps starts at zero, the file has none" in log
    additions = {"prompt_encoder.background", "prompt_encoder.click_maps.to_taps.weight"}
    frozen = {name for name, _ in trainer.network.named_parameters()} - trained_names(trainer)
    assert {name for name in trained_names(trainer) if not name.startswith("encoder.")} == additions
    assert "prompt_encoder.layers.0.global_query" in frozen
    assert (
        f"Trained too, from zero, since the start has none: {', '.join(sorted(additions))}"
        in Path(trainer.log_file).read_text()
    )
    trainer.start.check(trainer.run(), trainer.recipe)


def test_dualpath_freezes_what_its_start_has(make_trainer: MakeTrainer) -> None:
    full = make_trainer("Full", initialize=True, **BEYOND)
    finish(full, 3)
    trainer = make_trainer("DualPath", initialize=True, **BEYOND)
    assert all(name.startswith("encoder.") for name in trained_names(trainer))
    for name, parameter in trainer.network.named_parameters():
        if is_addition(name):
            assert torch.equal(parameter, full.network.get_parameter(name)) and parameter.any()


def test_original_eval_of_a_start_without_is_that_start(make_trainer: MakeTrainer) -> None:
    full = make_trainer("Full", initialize=True)
    finish(full)
    trainer = make_trainer("OriginalEval", initialize=True, **BEYOND)
    trainer.start.check(trainer.run(), trainer.recipe)
    points = torch.tensor([[[3.0, 4.0, 5.0]]] * 2)
    with torch.no_grad():
        for clicks in ((), (points,)):
            given = [one.network.eval()(batch(full)["data"], *clicks) for one in (trainer, full)]
            torch.testing.assert_close(*given, rtol=0, atol=1e-6)


def test_a_start_that_has_more_gives_the_rest(make_trainer: MakeTrainer) -> None:
    finish(make_trainer("Full", initialize=True, **BEYOND))
    trainer = make_trainer("DualPath", initialize=True)
    log = Path(trainer.log_file).read_text()
    assert "the vector of background clicks of the file was left out" in log
    trainer.start.check(trainer.run(), trainer.recipe)
    train(trainer, 2)


def test_a_checkpoint_without_cannot_be_gone_on_with(make_trainer: MakeTrainer) -> None:
    file = finish(make_trainer("Full", initialize=True))
    with pytest.raises(ValueError, match="signed_clicks is False in the file and True here; click_maps is False"):
        make_trainer("Full", **BEYOND).load_checkpoint(str(file))
