"""The samples of a batch side by side are the same step as the batch at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import Tensor
from trainer_kit import MakeTrainer, batch, values

from nnunetv2_sam3d.network_architecture.config import VARIANTS
from nnunetv2_sam3d.network_architecture.sam3d import SAM3D
from nnunetv2_sam3d.trainers.cpu_samples import SampleThreads, sample_threads
from nnunetv2_sam3d.trainers.losses import DiceCELoss
from nnunetv2_sam3d.trainers.recipes import RECIPES, apply_freezing

PATCH = (8, 40, 24)
LABELS = LabelManager({"background": 0, "kidney": 1, "tumour": 2}, None)
IGNORING = LabelManager({"background": 0, "kidney": 1, "ignore": 2}, None)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "2")  # which the trainers keep to
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def network_of(recipe: str, **changes: object) -> SAM3D:
    torch.manual_seed(0)
    config = replace(VARIANTS["vit_tiny"], num_classes=3, adapter=RECIPES[recipe].adapter, **changes)
    network = SAM3D(config).prepare(PATCH)
    with torch.no_grad():
        for parameter in network.parameters():  # what starts at zero would hide half of the network
            parameter += 0.02 * torch.randn(parameter.shape)
    apply_freezing(network, RECIPES[recipe])
    return network.train()


def gradients(network: SAM3D) -> dict[str, Tensor | None]:
    return {name: parameter.grad for name, parameter in network.named_parameters()}


@pytest.mark.parametrize("recipe", ["Full", "Original", "DualPath", "DualPathFFT"])
@pytest.mark.parametrize(("size", "threads"), [(2, 2), (3, 2), (2, 5)])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_same_loss_and_gradients(recipe: str, size: int, threads: int, checkpointing: bool) -> None:
    torch.set_num_threads(threads)
    # in float32, rounding turns single units of a ReLU on or off
    network = network_of(recipe, checkpointing=checkpointing, signed_clicks=recipe == "Full").double()
    loss = DiceCELoss(LABELS, batch_dice=False).train()
    image = torch.randn(size, 1, *PATCH, dtype=torch.float64)
    target = torch.randint(0, 3, (size, 1, *PATCH)).double()
    clicks = (torch.rand(size, 4, 3) * torch.tensor(PATCH), torch.ones(size, 4)) if recipe == "Full" else ()
    expected = loss(network(image, *clicks), target)
    expected.backward()
    before = gradients(network)
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, torch.nan) if parameter.requires_grad else None

    found = SampleThreads(size).backward(network, loss, target, image, *clicks)
    assert torch.get_num_threads() == threads
    assert torch.allclose(found, expected, rtol=1e-6)  # float32 in part
    after = gradients(network)
    assert {name for name, value in after.items() if value is None} == {
        name for name, value in before.items() if value is None
    }
    largest = max(float(value.abs().max()) for value in before.values() if value is not None)
    for name, value in before.items():
        if value is not None:
            assert torch.allclose(after[name], value, rtol=1e-8, atol=1e-10 * largest), name


def test_workers_keep_their_share_of_the_threads() -> None:
    torch.set_num_threads(4)
    threads = SampleThreads(2)
    assert list(threads._pool.map(lambda _: torch.get_num_threads(), range(8))) == [2] * 8
    torch.ones(100, 100) @ torch.ones(100, 100)
    assert torch.get_num_threads() == 4


def test_only_where_the_function_is_the_same() -> None:
    network, loss = network_of("Full"), DiceCELoss(LABELS, batch_dice=False)
    assert sample_threads(network, loss, 2, CPU) is not None
    assert sample_threads(network, loss, 1, CPU) is None
    assert sample_threads(network, loss, 2, torch.device("cuda")) is None
    assert sample_threads(network, DiceCELoss(LABELS, batch_dice=True), 2, CPU) is None
    assert sample_threads(network, DiceCELoss(IGNORING, batch_dice=False), 2, CPU) is None
    assert sample_threads(torch.compile(network, backend="eager"), loss, 2, CPU) is None
    torch.set_num_threads(1)
    assert sample_threads(network, loss, 2, CPU) is None
    torch.set_num_threads(2)
    network.encoder.blocks[0].adapter.norm = torch.nn.BatchNorm3d(4)
    assert sample_threads(network, loss, 2, CPU) is None


def test_an_error_in_a_sample_ends_the_step() -> None:
    network, loss = network_of("Full"), DiceCELoss(LABELS, batch_dice=False)
    with pytest.raises(ValueError, match="expected an image of shape"):
        SampleThreads(2).backward(network, loss, torch.zeros(2, 1, *PATCH), torch.zeros(2, 3, *PATCH))


@pytest.mark.parametrize("kind", ["Full", "DualPath"])
def test_trainers_take_the_same_step(kind: str, make_trainer: MakeTrainer) -> None:
    results = []
    for side_by_side in (False, True):
        trainer = make_trainer(kind, initialize=True, reproducible=True)
        trained = [parameter for parameter in trainer.network.parameters() if parameter.requires_grad]
        trainer.optimizer = torch.optim.SGD(trained, lr=0.1)  # its step is as large as the gradient
        if side_by_side:
            trainer.sample_threads = sample_threads(trainer.network, trainer.loss, 2, trainer.device)
            assert trainer.sample_threads is not None
        trainer.network.train()
        before = values(trainer)
        loss = trainer.train_step(batch(trainer))["loss"]
        results.append((loss, {name: value - before[name] for name, value in values(trainer).items()}))
    (expected_loss, expected), (loss, found) = results
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    largest = max(float(step.abs().max()) for step in expected.values())
    assert largest > 1e-3
    assert all(torch.allclose(found[name], expected[name], rtol=1e-3, atol=5e-4 * largest) for name in expected)
