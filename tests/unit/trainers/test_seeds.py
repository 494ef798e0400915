"""What trainings of the same repeat and fold share, and what those of others do not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from trainer_kit import NAME, MakeTrainer, finish, same, train, values

from nnunetv2_sam3d.trainers.seeds import seed_of_run
from nnunetv2_sam3d.trainers.training_clicks import seed_of
from nnunetv2_sam3d.weights.checkpoint_file import read_checkpoint
from nnunetv2_sam3d.weights.reading import METADATA_KEY


@pytest.fixture
def data(folders: Path) -> Path:
    """Three preprocessed cases of noise, and a fold."""
    folder = folders / "preprocessed" / NAME
    rng = np.random.default_rng(0)
    for case in ("case_0", "case_1", "case_2"):
        (folder / "nnUNetPlans_3d_fullres" / f"{case}.b2nd").unlink(missing_ok=True)
        segmentation = rng.integers(0, 3, (1, 20, 24, 16)).astype(np.int8)
        where = {label: np.argwhere(segmentation == label) for label in (1, 2)}
        nnUNetDatasetBlosc2.save_case(
            rng.normal(size=segmentation.shape).astype(np.float32), segmentation, {"class_locations": where},
            str(folder / "nnUNetPlans_3d_fullres" / case),
        )  # fmt: skip
    split = [{"train": ["case_0", "case_1"], "val": ["case_2"]}]
    (folder / "splits_final.json").write_text(str(split * 2).replace("'", '"'))
    return folder


def initial(make_trainer: MakeTrainer, **options: Any) -> dict[str, torch.Tensor]:
    torch.randn(7)  # what was drawn before counts for nothing
    return values(make_trainer("Full", reproducible=True, initialize=True, **options))


def test_initial_weights_are_those_of_repeat_and_fold(make_trainer: MakeTrainer) -> None:
    first = initial(make_trainer)
    assert same(first, initial(make_trainer))
    for other in ({"repeat": 2}, {"fold": 1}):
        drawn = initial(make_trainer, **other)
        assert not same(first, drawn)
        assert same(drawn, initial(make_trainer, **other))


def test_seed_is_kept_and_told(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("Full", reproducible=True, initialize=True, repeat=2, fold=1)
    metadata = read_checkpoint(finish(trainer))[METADATA_KEY]
    assert (metadata["repeat"], metadata["seed"]) == (2, seed_of_run(2, 1))


def test_clicks_of_repeats_differ() -> None:
    assert len({seed_of(fold, repeat) for fold in range(5) for repeat in (1, 2, 3)}) == 15
    assert seed_of(0) == seed_of(0, 1) == 155798205  # those of the trainings before there were repeats


def test_clicks_of_the_trainer_are_the_repeats(make_trainer: MakeTrainer) -> None:
    seeds = [make_trainer("Full", repeat=repeat).clicks.simulated.seed for repeat in (1, 2)]
    assert seeds == [seed_of(0), seed_of(0, 2)]


@pytest.fixture
def loaders(data: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A function that makes a trainer's two loaders, with a number of workers."""
    made = []

    def make(trainer: Any, workers: int) -> Any:
        monkeypatch.setenv("nnUNet_n_proc_DA", str(workers))
        np.random.rand(3)
        both = trainer.get_dataloaders()
        made.extend(both)
        return both

    yield make
    for loader in made:
        getattr(loader, "_finish", lambda: None)()


@pytest.mark.parametrize("workers", [0, 1])
def test_trainers_of_a_repeat_see_the_same_batches(
    workers: int, make_trainer: MakeTrainer, loaders: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def batches(kind: str, **options: Any) -> list[dict[str, Any]]:
        trainer = make_trainer(kind, reproducible=True, initialize=True, **options)
        training, validation = loaders(trainer, workers)
        seen = [next(training) for _ in range(3)]
        train(trainer, 1)  # draws nothing that the next batch would miss
        return [*seen, next(training), next(validation)]

    def equal(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> bool:
        return all(torch.equal(one["data"], two["data"]) for one, two in zip(first, second, strict=True))

    full = batches("Full")
    assert not torch.equal(full[0]["data"], full[1]["data"])
    assert equal(full, batches("DualPath"))
    assert not torch.equal(full[0]["data"], batches("Full", repeat=2)[0]["data"])


def test_a_training_that_goes_on_sees_other_batches(make_trainer: MakeTrainer, loaders: Any) -> None:
    trainer = make_trainer("Full", reproducible=True, initialize=True)
    first = next(loaders(trainer, 0)[0])
    trainer.current_epoch = 4
    assert not torch.equal(first["data"], next(loaders(trainer, 0)[0])["data"])


def test_workers_draw_different_batches(make_trainer: MakeTrainer, loaders: Any) -> None:
    training, _ = loaders(make_trainer("Full", reproducible=True, initialize=True), 2)
    assert len(set(training.seeds)) == 2
    assert not torch.equal(next(training)["data"], next(training)["data"])
