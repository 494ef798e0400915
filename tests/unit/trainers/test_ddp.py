"""Several GPUs for one fold: the recipes in two processes (gloo, CPU) do what one process does with the whole batch."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.run import run_training
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as nnunet_module
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel
from trainer_kit import CONFIGURATION, TOY, batch, plans_of

from nnunetv2_sam3d.trainers import variants as trainers
from nnunetv2_sam3d.trainers.training_clicks import ClickSteps
from nnunetv2_sam3d.weights.checkpoint_file import read_checkpoint

PROCESSES = 2
# after a step that leaves a parameter without gradient, the next one is the one in which DDP complains
STEPS = {"none": 2, "mixed": 3}
CLICKED = {"network": TOY["network"] | {"signed_clicks": True, "click_maps": True}}
RUNS = [(kind, batch_dice, "none") for kind in ("Full", "Original", "DualPath") for batch_dice in (False, True)]
ARMS = ("OriginalWide", "DualPathNoGate", "DualPathLocalOnly", "DualPathConv", "DualPathFFT")
RUNS += [(kind, False, "none") for kind in ARMS]
RUNS += [("Full", False, "mixed"), ("Original", True, "mixed")]


def build(kind: str, batch_dice: bool, clicks: str = "none") -> Any:
    """An initialized trainer, as `nnUNetv2_train -num_gpus` has it but for the device."""
    trainer = new(kind, batch_dice, clicks)
    trainer.initialize()
    if trainer.clicks is not None:
        trainer.clicks.begin(interesting_epoch(trainer.clicks))
    return trainer


def new(kind: str, batch_dice: bool, clicks: str = "none") -> Any:
    """The same before nnU-Net initializes it."""
    torch.manual_seed(5 + (distributed.get_rank() if distributed.is_initialized() else 0))
    # AdamW's first step is nearly the gradient's sign, which rounding can turn; short steps keep later gradients alike
    settings = TOY | {"clicks": clicks, "initial_lr": 1e-6} | (CLICKED if clicks != "none" else {})
    plans = deepcopy(plans_of(settings, batch_dice=batch_dice)) | {"continue_training": False}
    labels = {"background": 0, "a": 1, "b": 2}
    dataset = {"channel_names": {"0": "MR"}, "labels": labels, "numTraining": 1, "file_ending": ".nii.gz"}
    trainer = getattr(trainers, f"nnUNetTrainer_SAM3D{kind}")(plans, CONFIGURATION, 0, dataset, torch.device("cpu"))
    trainer.device, trainer.grad_scaler = torch.device("cpu"), None  # nnU-Net's DDP takes GPUs only
    return trainer


def interesting_epoch(clicks: ClickSteps) -> int:
    """One that begins with a step with correcting clicks and goes on with an automatic one."""
    drawn = clicks.simulated
    return next(epoch for epoch in range(1000) if drawn.is_corrected(epoch, 0) and drawn.is_automatic(epoch, 1)
                and not drawn.is_automatic(epoch, 2))  # fmt: skip


class BothProcesses:
    """The clicks of both processes' samples, for the one process that has them all."""

    def __init__(self, clicks: ClickSteps) -> None:
        self.processes = [ClickSteps(clicks.simulated, rank) for rank in range(PROCESSES)]
        for process in self.processes:
            process.begin(interesting_epoch(clicks))

    def of_training(self, network: Any, data: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        drawn = [
            process.of_training(network, data[rank : rank + 1], target[rank : rank + 1])
            for rank, process in enumerate(self.processes)
        ]
        return tuple(map(torch.cat, zip(*drawn, strict=True)))


def steps(trainer: Any, samples: slice) -> dict[str, Any]:
    """Gradients (as the optimizer got them) of each step, losses, and the weights in the end."""
    trainer.network.train()
    gradients: list[dict[str, Tensor]] = []
    losses = []
    for step in range(STEPS[trainer.settings.clicks]):
        share = {key: value[samples] for key, value in batch(trainer, seed=step).items()}
        losses.append(float(trainer.train_step(share)["loss"]))
        parameters = trainer.plain_network.named_parameters()
        gradients.append({name: p.grad.clone() for name, p in parameters if p.grad is not None})
    weights = {name: tensor.clone() for name, tensor in trainer.plain_network.state_dict().items()}
    return {"gradients": gradients, "losses": losses, "weights": weights, "batch_size": trainer.batch_size}


def work(rank: int, folder: Path) -> None:
    """One of the two processes."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=PROCESSES)
    # the same wrapper without the GPU's index, which a network on the CPU may not have
    nnunet_module.DDP = lambda network, device_ids: DistributedDataParallel(network)
    for kind, batch_dice, clicks in RUNS:
        trainer = build(kind, batch_dice, clicks)
        assert isinstance(trainer.network, DistributedDataParallel)
        start = folder / f"{kind}_{batch_dice}_{clicks}_start.pth"
        if rank == 0:
            torch.save(trainer.plain_network.state_dict(), start)
        torch.save(steps(trainer, slice(rank, rank + 1)), folder / f"{kind}_{batch_dice}_{clicks}_{rank}.pth")
    evaluated = build("OriginalEval", False)
    assert not isinstance(evaluated.network, DistributedDataParallel)  # DDP refuses a network that nothing trains
    assert evaluated.is_ddp  # the validation shares out its cases
    take_pretrained_weights(folder / "full.pth")
    distributed.destroy_process_group()


def take_pretrained_weights(file: Path) -> None:
    """What nnU-Net's `run_ddp` does with `-pretrained_weights`; it cannot be called itself, since it wants GPUs."""
    full = build("Full", False)
    full.save_checkpoint(str(file))  # nnU-Net's: the first process writes
    distributed.barrier()
    trainer = new("DualPath", False)
    run_training.maybe_load_checkpoint(trainer, False, False, str(file))
    assert isinstance(trainer.network, DistributedDataParallel)
    stored, state = read_checkpoint(file)["network_weights"], trainer.plain_network.state_dict()
    last = "mask_decoder.seg_layers.0.weight"
    assert torch.equal(state[last], stored[last])  # nnU-Net's own loader would leave it random
    trained = {name for name, parameter in trainer.plain_network.named_parameters() if parameter.requires_grad}
    assert trained and all(name.startswith("encoder.") for name in trained)
    assert trainer.start.provenance["last convolution"]["file"] == str(file)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes leave, all recipes in one start of them."""
    folder = tmp_path_factory.mktemp("ddp")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("raw", "preprocessed", "results"):
            patch.setenv(f"nnUNet_{name}", str(folder / name))
        data = folder / "preprocessed" / "Dataset991_Toy" / "nnUNetPlans_3d_fullres"
        data.mkdir(parents=True)
        (data / "case_0.b2nd").touch()
        torch.multiprocessing.spawn(work, args=(folder,), nprocs=PROCESSES)
    return folder


@pytest.mark.parametrize(("kind", "batch_dice", "clicks"), RUNS)
def test_two_processes_do_what_one_does(kind: str, batch_dice: bool, clicks: str, results: Path) -> None:
    first, second = (torch.load(results / f"{kind}_{batch_dice}_{clicks}_{rank}.pth") for rank in range(PROCESSES))
    assert (first["batch_size"], second["batch_size"]) == (1, 1)
    alone = build(kind, batch_dice, clicks)
    if clicks != "none":
        alone.clicks = BothProcesses(alone.clicks)
    alone.network.load_state_dict(torch.load(results / f"{kind}_{batch_dice}_{clicks}_start.pth"))
    joint = steps(alone, slice(None))
    assert joint["batch_size"] == 2
    trained = {name for name, p in alone.network.named_parameters() if p.requires_grad}
    for step in range(STEPS[clicks]):
        ours, theirs, expected = (result["gradients"][step] for result in (first, second, joint))
        assert set(ours) == set(theirs) == set(expected) == trained
        for name, gradient in expected.items():
            assert torch.equal(ours[name], theirs[name])
            if name.endswith("bias") and gradient.norm() < 1e-4 * expected[name.replace("bias", "weight")].norm():
                continue  # in front of a norm, which removes it: its gradient is rounding
            error = (ours[name] - gradient).norm() / (gradient.norm() + 1e-6)
            # a wrong share of a process would be an error of 1; what rounding turned in the first step is left
            assert error < (1e-4 if step == 0 else 5e-2), (name, step)
        losses = (first["losses"][step] + second["losses"][step]) / 2
        assert losses == pytest.approx(joint["losses"][step], rel=1e-4)
    assert all(torch.equal(first["weights"][name], second["weights"][name]) for name in joint["weights"])
    assert all(gradient.isfinite().all() for gradient in joint["gradients"][0].values())
