"""Every epoch's figures of the adapters' paths in nnU-Net's log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from trainer_kit import MakeTrainer, batch, finish

from nnunetv2_sam3d.network_architecture.adapter_paths import LOG_KEY, recorded_paths
from nnunetv2_sam3d.trainers.adapter_log import AdapterLog
from nnunetv2_sam3d.weights.checkpoint_file import read_checkpoint


def epoch(trainer: Any, number: int) -> None:
    """What nnU-Net does after the training steps of an epoch."""
    trainer.current_epoch = number
    trainer.on_validation_epoch_start()
    trainer.on_validation_epoch_end([trainer.validation_step(batch(trainer, 10 * number + step)) for step in range(2)])


def logging(trainer: Any) -> dict[str, Any]:
    return trainer.logger.local_logger.my_fantastic_logging


def test_each_epoch_has_the_metrics_of_its_first_batch(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("DualPath", initialize=True)
    for number in range(2):
        epoch(trainer, number)
        with torch.no_grad(), recorded_paths(trainer.plain_network) as records:
            trainer.plain_network(batch(trainer, 10 * number)["data"])
        assert logging(trainer)[LOG_KEY][number] == [record.metrics._asdict() for record in records.values()]
    assert [len(blocks) for blocks in logging(trainer)[LOG_KEY]] == [4, 4]
    text = Path(trainer.log_file).read_text()
    share = logging(trainer)[LOG_KEY][0][3]["local_share"]
    assert f"local path {share:.3f} of the sum" in text
    assert text.count("Adapter of block 3: gate") == 2


def test_a_resumed_training_goes_on_and_one_that_began_without_is_filled_up(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("DualPath", initialize=True)
    epoch(trainer, 0)
    file = finish(trainer)
    assert read_checkpoint(file)["logging"][LOG_KEY] == logging(trainer)[LOG_KEY]
    resumed = make_trainer("DualPath")
    resumed.load_checkpoint(str(file))
    epoch(resumed, 1)
    assert logging(resumed)[LOG_KEY][0] == logging(trainer)[LOG_KEY][0]
    del logging(resumed)[LOG_KEY]
    epoch(resumed, 2)
    assert [len(blocks) for blocks in logging(resumed)[LOG_KEY]] == [0, 0, 4]


def test_it_disturbs_neither_chance_nor_results(make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer("DualPath", initialize=True)
    trainer.on_validation_epoch_start()
    before = torch.get_rng_state()
    found = trainer.validation_step(batch(trainer))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in trainer.plain_network.parameters())
    monkeypatch.setattr(trainer, "adapter_log", AdapterLog(active=False))
    assert trainer.validation_step(batch(trainer))["loss"] == found["loss"]


@pytest.mark.parametrize("kind", ["Full", "Original"])
def test_adapters_of_one_path_and_other_processes_log_nothing(kind: str, make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(kind, initialize=True)
    epoch(trainer, 0)
    assert LOG_KEY not in logging(trainer)  # a list that stays behind would stop nnU-Net's progress plot
    other = make_trainer("DualPath", initialize=True)
    other.adapter_log = AdapterLog(active=False)
    epoch(other, 0)
    assert LOG_KEY not in logging(other)
