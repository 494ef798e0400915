"""Prints what further threads are worth to a training step on a CPU: ``python benchmarks/step_threads.py``.

One process measures all, in turn, some steps in a row, so that the ratios hold whatever else the machine does. The
steps are the trainers': forward, loss, backward, clipping, AdamW, with the samples of a batch side by side where the
trainers do that.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import nn

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", choices=sorted(VARIANTS), default="vit_tiny")
    parser.add_argument("--recipe", nargs="+", choices=sorted(RECIPES), default=["Full", "DualPath"])
    parser.add_argument("--patch-size", type=int, nargs=3, default=[32, 64, 64], metavar=("D", "H", "W"))
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    prepare_process(torch.device("cpu"))
    keep_large_tensors(torch.device("cpu"), True)
    for recipe in options.recipe:
        steps = {threads: step_of(options, recipe, threads) for threads in options.threads}
        seconds: dict[int, list[float]] = {threads: [] for threads in steps}
        for _ in range(options.repeats):
            for threads, step in steps.items():
                for number in range(STEPS):
                    begin = time.perf_counter()
                    step()
                    if number > 1:  # the first ones find the caches of others
                        seconds[threads].append(time.perf_counter() - begin)
        first = statistics.median(seconds[options.threads[0]])
        for threads, measured in seconds.items():
            middle = statistics.median(measured)
            print(
                f"{recipe}, batch {options.batch_size}, {threads} threads: {middle:.3f} s "
                f"({min(measured):.3f} to {max(measured):.3f}), {first / middle:.2f} x"
            )


if __name__ == "__main__":
    main()
