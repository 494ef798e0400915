"""Measures one case, in a process of its own: ``python -m nnunetv2_sam3d.benchmark.worker JOB.json``."""

from __future__ import annotations

import json
import statistics
import sys
import time
import zlib
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nnunetv2_sam3d.benchmark import machine
from nnunetv2_sam3d.benchmark.case import BenchmarkCase
from nnunetv2_sam3d.benchmark.plain import PlainSAM3D
from nnunetv2_sam3d.network_architecture.sam3d import SAM3D

MIRRORING_AXES = (0, 1, 2)


class InPrecision(nn.Module):
    """A network under autocast, for nnU-Net's predictor as well, which brings its own on GPUs."""

    def __init__(self, network: nn.Module, case: BenchmarkCase) -> None:
        super().__init__()
        self.network = network
        self.device_type = case.device
        self.dtype = None if case.precision == "float32" else getattr(torch, case.precision)

    def forward(self, image: Tensor, points: Tensor | None = None) -> Tensor:
        with torch.autocast(self.device_type, self.dtype, enabled=self.dtype is not None):
            return self.network(image, points).float()


def build(case: BenchmarkCase) -> nn.Module:
    """The case's network."""
    return SAM3D(case.config()) if case.form == "ours" else PlainSAM3D(case.config())


def fill(network: nn.Module) -> None:
    """Gives every weight a value that depends on its name alone, so that both forms have the same."""
    with torch.no_grad():
        for name, value in network.state_dict().items():
            noise = torch.empty(value.shape).normal_(generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
            if name.endswith(".attn.lr"):
                value.fill_(1.0)  # as in every published checkpoint
            elif value.ndim < 2:
                value.copy_(0.05 * noise + (1.0 if name.endswith("weight") else 0.0))
            elif "rel_pos" in name or "embed" in name.split(".")[-1]:
                value.copy_(0.2 * noise)
            else:
                value.copy_(noise * (value.shape[0] / value.numel()) ** 0.5)


def measure_case(case: BenchmarkCase, repeats: int, time_limit_s: float, logits_file: str | None) -> dict[str, Any]:
    """Time, memory and sizes of one case.

    Args:
        case: what to measure.
        repeats: timed runs after one that warms up.
        time_limit_s: no further run begins after this time, once there is one.
        logits_file: where the logits of a forward pass go, to be compared with other cases'.

    Returns:
        what a record holds beside the case.
    """
    if case.what == "step":
        prepare_training(case)
    network = build(case)
    fill(network)
    network.to(case.device)
    if isinstance(network, SAM3D):
        network.prepare(case.patch_size)
    generator = torch.Generator().manual_seed(0)
    shape = case.volume if case.volume is not None else case.patch_size
    image = torch.randn(case.batch_size, 1, *shape, generator=generator).to(case.device)
    points = torch.rand(case.batch_size, case.points, 3, generator=generator) * torch.tensor(case.patch_size)
    before = machine.peak_rss_bytes()
    if case.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    prepare = {"forward": prepare_forward, "step": prepare_step, "predict": prepare_predict}[case.what]
    work, describe = prepare(case, network, image, points.to(case.device))

    rates: list[float] = []

    def measure_rate() -> None:
        """Beside each run, since processors are not always as fast; its three matrices are 12 MB."""
        if case.device == "cpu":
            rates.append(machine.product_rate(case.device, case.precision))

    begin = time.perf_counter()
    result = work()  # warms up: memory, caches, the optimizer's state
    machine.synchronise(case.device)
    if logits_file is not None:
        np.save(logits_file, result.cpu().numpy())
    del result
    measure_rate()
    seconds = timed(work, case.device, repeats, time_limit_s - (time.perf_counter() - begin), measure_rate)
    record: dict[str, Any] = {
        "seconds": statistics.median(seconds),
        "seconds_spread": max(seconds) - min(seconds),
        "seconds_all": seconds,
        "peak_rss_bytes": machine.peak_rss_bytes(),
        "rss_before_bytes": before,
        "points": case.points,
    }
    if case.device == "cuda":
        record["peak_cuda_bytes"] = torch.cuda.max_memory_allocated()
        record["reserved_cuda_bytes"] = torch.cuda.max_memory_reserved()
        rates.append(machine.product_rate(case.device, case.precision))  # 400 MB and more, so after the peak is read
    record |= describe()
    record["operations"] = count_operations(case) * record.get("passes", 1)
    record["products_per_second"] = statistics.fmean(rates)
    record["products_per_second_all"] = rates
    record["floor_seconds"] = record["operations"] / record["products_per_second"]
    return record


def prepare_training(case: BenchmarkCase) -> None:
    """What a training asks of its process, before there are other threads than the first."""
    from nnunetv2_sam3d.trainers.cpu_process import keep_large_tensors, prepare_process

    prepare_process(torch.device(case.device))
    keep_large_tensors(torch.device(case.device), not case.checkpointing)


def timed(
    work: Callable[[], Any],
    device: str,
    repeats: int,
    time_limit_s: float,
    after_each: Callable[[], None] = lambda: None,
) -> list[float]:
    """Seconds of each run; none begins after the time limit, which ``after_each`` uses, too."""
    seconds: list[float] = []
    end = time.perf_counter() + time_limit_s
    while not seconds or (len(seconds) < repeats and time.perf_counter() < end):
        begin = time.perf_counter()
        work()
        machine.synchronise(device)
        seconds.append(time.perf_counter() - begin)
        after_each()
    return seconds


Prepared = tuple[Callable[[], Any], Callable[[], dict[str, Any]]]


def prepare_forward(case: BenchmarkCase, network: nn.Module, image: Tensor, points: Tensor) -> Prepared:
    """Network with points, no gradients."""
    network = InPrecision(network, case).eval()

    def work() -> Tensor:
        with torch.inference_mode():
            return network(image, points)

    return work, dict


def prepare_step(case: BenchmarkCase, network: nn.Module, image: Tensor, points: Tensor) -> Prepared:
    """What the trainer does with a batch, and the sizes that belong to training."""
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    from nnunetv2_sam3d.trainers.cpu_samples import sample_threads
    from nnunetv2_sam3d.trainers.losses import DiceCELoss
    from nnunetv2_sam3d.trainers.recipes import clip_groups
    from nnunetv2_sam3d.trainers.schedule import adamw

    recipe, groups = recipe_and_groups(case, network)
    optimizer = adamw(groups, 4e-4, recipe.weight_decay)
    clipped = clip_groups(network, recipe)
    loss_of = DiceCELoss(LabelManager({"background": 0, "tumour": 1}, None), batch_dice=False).train()
    scaler = torch.amp.GradScaler(case.device, enabled=case.precision == "float16")
    target = (image > 0).float()  # any labels do
    in_precision = InPrecision(network, case).train()
    exact = case.precision == "float32"
    samples = sample_threads(network, loss_of, case.batch_size, torch.device(case.device)) if exact else None

    def work() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        if samples is None:
            loss = loss_of(in_precision(image), target)
            scaler.scale(loss).backward()
        else:
            loss = samples.backward(network, loss_of, target, image)
        scaler.unscale_(optimizer)
        for parameters in clipped:
            nn.utils.clip_grad_norm_(parameters, recipe.max_grad_norm)
        scaler.step(optimizer)
        scaler.update()
        return loss.detach()

    def describe() -> dict[str, Any]:
        parameters = list(network.parameters())
        state = [value for entry in optimizer.state.values() for value in entry.values() if isinstance(value, Tensor)]
        return {
            "parameters": sum(parameter.numel() for parameter in parameters),
            "trained_parameters": sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
            "optimizer_groups": len(groups),
            "optimizer_state_bytes": sum(value.nbytes for value in state),
            "checkpoint_bytes": saved_bytes(
                {"network_weights": network.state_dict(), "optimizer_state": optimizer.state_dict()}
            ),
            "weights_bytes": saved_bytes({"network_weights": network.state_dict()}),
        }

    return work, describe


def prepare_predict(case: BenchmarkCase, network: nn.Module, image: Tensor, points: Tensor) -> Prepared:
    """nnU-Net's sliding window with all mirrorings, and a single pass of the network beside it."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans = PlansManager(
        {
            "dataset_name": "benchmark",
            "plans_name": "benchmark",
            "label_manager": "LabelManager",
            "configurations": {
                "3d_fullres": {
                    "patch_size": list(case.patch_size),
                    "architecture": {"network_class_name": "unused", "arch_kwargs": {}, "_kw_requires_import": []},
                }
            },
        }
    )
    predictor = nnUNetPredictor(
        perform_everything_on_device=case.device == "cuda", device=torch.device(case.device), allow_tqdm=False
    )
    network = InPrecision(network, case).eval()
    labels = {"labels": {"background": 0, "tumour": 1}, "channel_names": {"0": "CT"}, "file_ending": ".nii.gz"}
    predictor.manual_initialization(
        network, plans, plans.get_configuration("3d_fullres"), None, labels, "benchmark", MIRRORING_AXES
    )
    volume = image[0].cpu()
    assert case.volume is not None
    padded = tuple(max(size, edge) for size, edge in zip(case.volume, case.patch_size, strict=True))
    tiles = len(predictor._internal_get_sliding_window_slicers(padded))
    passes = tiles * 2 ** len(MIRRORING_AXES)

    def work() -> Tensor:
        return predictor.predict_sliding_window_return_logits(volume)

    def describe() -> dict[str, Any]:
        tile = torch.randn(1, 1, *case.patch_size, device=case.device)
        with torch.inference_mode():
            network(tile)
            seconds = timed(lambda: network(tile), case.device, 3, 60.0)
        return {
            "tiles": tiles,
            "mirrorings": 2 ** len(MIRRORING_AXES),
            "passes": passes,
            "seconds_of_one_pass": statistics.median(seconds),
        }

    return work, describe


def recipe_and_groups(case: BenchmarkCase, network: nn.Module) -> tuple[Any, list[list[nn.Parameter]]]:
    """Freezes the network by the case's recipe."""
    from nnunetv2_sam3d.trainers import recipes

    recipe = recipes.RECIPES[case.recipe]
    return recipe, recipes.apply_freezing(network, recipe)


def count_operations(case: BenchmarkCase) -> int:
    """Floating point operations of matrix products and convolutions of one pass or step, recomputation not counted.

    Counted by torch on tensors without content, which costs neither time nor memory. Gradients of convolutions are
    counted here: torch (2.14) counts those of depthwise weights as if every channel met every other.
    """
    from dataclasses import replace
    from math import prod

    from torch.utils.flop_counter import FlopCounterMode

    def convolution_backward(of_result: Any, _: Any, weight: Any, *more: Any, **__: Any) -> int:
        return sum(more[-1][:2]) * 2 * prod(of_result) * prod(weight[1:])  # as often as there are gradients

    with torch.device("meta"):
        network = build(replace(case, checkpointing=False))
        image = torch.empty(case.batch_size if case.what != "predict" else 1, 1, *case.patch_size)
        points = torch.empty(len(image), case.points, 3)
        if case.what == "step":
            recipe_and_groups(case, network)
        formulas = {torch.ops.aten.convolution_backward: convolution_backward}
        counter = FlopCounterMode(display=False, custom_mapping=formulas)
        with counter, nullcontext() if case.what == "step" else torch.no_grad():
            logits = network(image, points)
            if case.what == "step":
                logits.sum().backward()
    return counter.get_total_flops()


class _Counter:
    """A file that only counts."""

    def __init__(self) -> None:
        self.size = 0

    def write(self, data: Any) -> int:
        self.size += len(data)
        return len(data)

    def flush(self) -> None:
        """Nothing is kept."""


def saved_bytes(content: Any) -> int:
    """Size of the file that ``torch.save`` would write."""
    counter = _Counter()
    torch.save(content, counter)  # type: ignore[arg-type]
    return counter.size


def main(job_file: str) -> None:
    """Runs the job and writes what was measured, or why not, into the file that it names."""
    job = json.loads(Path(job_file).read_text())
    if job["threads"]:
        torch.set_num_threads(job["threads"])
    if job["memory_limit"]:
        machine.limit_memory(job["memory_limit"])
    try:
        if "case" in job:
            case = BenchmarkCase.from_dict(job["case"])
            result = measure_case(case, job["repeats"], job["time_limit_s"], job["logits_file"])
        else:
            result = machine.environment(job["device"])
    except (RuntimeError, MemoryError, ValueError) as error:  # out of memory above all
        result = {"failed": f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"}
    Path(job["result_file"]).write_text(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1])
