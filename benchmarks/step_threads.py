"""Prints what further threads are worth to a training step on a CPU: ``python benchmarks/step_threads.py``.

One process measures all, in turn, some steps in a row, so that the ratios hold whatever else the machine does. The
steps are the trainers': forward, loss, backward, clipping, AdamW, with the samples of a batch side by side where the
trainers do that.

The last row is what the cores can do: as many processes as threads, each with one thread, one sample and a network of
its own. Where they gain less than their number, the machine's cores are in each other's way.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection

import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import nn
from torch.multiprocessing import get_context

from nnunetv2_sam3d.network_architecture.config import VARIANTS
from nnunetv2_sam3d.network_architecture.sam3d import SAM3D
from nnunetv2_sam3d.trainers.cpu_process import keep_large_tensors, prepare_process
from nnunetv2_sam3d.trainers.cpu_samples import sample_threads
from nnunetv2_sam3d.trainers.losses import DiceCELoss
from nnunetv2_sam3d.trainers.recipes import RECIPES, apply_freezing, clip_groups
from nnunetv2_sam3d.trainers.schedule import adamw

STEPS = 7  # in a row, as in a training


def step_of(options: argparse.Namespace, recipe: str, threads: int) -> Callable[[], None]:
    """A step of a recipe; it sets the number of threads itself."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    config = replace(VARIANTS[options.variant], adapter=RECIPES[recipe].adapter, num_classes=3)
    network = SAM3D(config).prepare(options.patch_size).train()
    optimizer = adamw(apply_freezing(network, RECIPES[recipe]), 1e-4, RECIPES[recipe].weight_decay)
    clipped = clip_groups(network, RECIPES[recipe])
    loss = DiceCELoss(LabelManager({"background": 0, "kidney": 1, "tumour": 2}, None), batch_dice=False).train()
    image = torch.randn(options.batch_size, 1, *options.patch_size)
    target = torch.randint(0, 3, image.shape).float()
    samples = sample_threads(network, loss, options.batch_size, torch.device("cpu"))

    def step() -> None:
        torch.set_num_threads(threads)
        optimizer.zero_grad(set_to_none=True)
        if samples is None:
            loss(network(image), target).backward()
        else:
            samples.backward(network, loss, target, image)
        for parameters in clipped:
            nn.utils.clip_grad_norm_(parameters, RECIPES[recipe].max_grad_norm)
        optimizer.step()

    return step


def seconds_of(step: Callable[[], None]) -> list[float]:
    """Of some steps in a row, without the first ones, which find the caches of others."""
    seconds = []
    for _ in range(STEPS):
        begin = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - begin)
    return seconds[2:]


def prepare() -> None:
    """What a training asks of its process."""
    prepare_process(torch.device("cpu"))
    keep_large_tensors(torch.device("cpu"), True)


def measure_on_demand(options: argparse.Namespace, recipe: str, pipe: Connection) -> None:
    """A process of its own: some steps each time that it is asked."""
    prepare()
    step = step_of(options, recipe, 1)
    while pipe.recv():
        pipe.send(seconds_of(step))


class SeparateProcesses:
    """Trainings with one thread and one sample each, at once."""

    def __init__(self, options: argparse.Namespace, recipe: str, number: int) -> None:
        context = get_context("spawn")
        job = argparse.Namespace(**{**vars(options), "batch_size": 1})
        self.pipes = []
        for _ in range(number):
            pipe, other_end = context.Pipe()
            context.Process(target=measure_on_demand, args=(job, recipe, other_end), daemon=True).start()
            self.pipes.append(pipe)

    def seconds(self) -> list[float]:
        """Of each step, the slowest process's: a batch waits for its last sample."""
        for pipe in self.pipes:
            pipe.send(True)
        return [max(step) for step in zip(*(pipe.recv() for pipe in self.pipes), strict=True)]

    def end(self) -> None:
        """Lets them go."""
        for pipe in self.pipes:
            pipe.send(False)


def measure(options: argparse.Namespace, recipe: str) -> None:
    """Prints the rows of a recipe."""
    most = max(options.threads)
    steps = {threads: step_of(options, recipe, threads) for threads in options.threads}
    seconds: dict[int, list[float]] = {threads: [] for threads in steps}
    processes, of_processes = SeparateProcesses(options, recipe, most), []
    processes.seconds()  # they have begun
    for _ in range(options.repeats):
        for threads, step in steps.items():
            seconds[threads] += seconds_of(step)
        of_processes += processes.seconds()
    processes.end()
    rows = [(f"batch {options.batch_size}, {number} threads", options.batch_size, seconds[number]) for number in steps]
    rows.append((f"{most} processes, a sample and a thread each", most, of_processes))
    first = statistics.median(seconds[options.threads[0]]) / options.batch_size
    fastest = min(seconds[options.threads[0]]) / options.batch_size
    for name, samples, measured in rows:
        middle = statistics.median(measured)
        print(
            f"{recipe}, {name}: {middle:.3f} s ({min(measured):.3f} to {max(measured):.3f}), "
            f"{first * samples / middle:.2f} x, by the fastest steps {fastest * samples / min(measured):.2f} x"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", choices=sorted(VARIANTS), default="vit_tiny")
    parser.add_argument("--recipe", nargs="+", choices=sorted(RECIPES), default=["Full", "DualPath"])
    parser.add_argument("--patch-size", type=int, nargs=3, default=[32, 64, 64], metavar=("D", "H", "W"))
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    prepare()
    for recipe in options.recipe:
        measure(options, recipe)


if __name__ == "__main__":
    main()
