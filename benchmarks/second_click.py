"""Prints what a second click costs beside the first one: ``python benchmarks/second_click.py --variant vit_tiny``.

A volume of one and a half patches along each axis, random weights, one fold. The first click computes all it needs:
nnU-Net's automatic prediction of the volume, the encoder's features of the window around the click, and the decoding.
The second one, in the same window, only decodes. Wall time and processor time; the latter tells more where other
processes want the cores.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

from nnunetv2_sam3d.inference.window_predictor import WindowPredictor
from nnunetv2_sam3d.network_architecture.config import VARIANTS
from nnunetv2_sam3d.network_architecture.sam3d import SAM3D

Times = tuple[float, float]


def timed(function: Callable[[], object], device: torch.device) -> Times:
    """Wall and processor seconds."""
    wall, processor = time.perf_counter(), time.process_time()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - wall, time.process_time() - processor


def measure(options: argparse.Namespace, again: int) -> dict[str, Times]:
    """One run with an image of its own."""
    device = torch.device(options.device)
    torch.manual_seed(again)
    network = SAM3D(VARIANTS[options.variant], options.precision).prepare(options.patch_size)
    axes = (0, 1, 2) if options.mirroring else None
    predictor = WindowPredictor([network], options.patch_size, mirror_axes=axes, device=device)
    size = [length * 3 // 2 for length in options.patch_size]
    predictor.set_image(torch.randn(1, *size))
    first = torch.tensor([[length / 2 for length in size]])
    clicks, signs = torch.cat([first, first + 3]), torch.ones(2)
    return {
        "automatic prediction": timed(predictor.automatic, device),
        "first click, that aside": timed(lambda: predictor.logits(first, signs[:1]), device),
        "second click": timed(lambda: predictor.logits(clicks, signs), device),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", choices=sorted(VARIANTS), default="vit_b")
    parser.add_argument("--patch-size", type=int, nargs=3, default=[128, 128, 128], metavar=("D", "H", "W"))
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--mirroring", action="store_true", help="nnU-Net's test-time augmentation, for both clicks")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    runs = [measure(options, again) for again in range(options.repeats + 1)][1:]  # the first one warms up
    best = {step: tuple(min(run[step][kind] for run in runs) for kind in (0, 1)) for step in runs[0]}
    for step, (wall, processor) in best.items():
        print(f"{step:25} {wall:8.2f} s wall, {processor:8.2f} s processor")
    automatic, first, second = (torch.tensor(times) for times in best.values())
    for name, whole in (("first click", automatic + first), ("first click, automatic prediction aside", first)):
        wall, processor = (second / whole).tolist()
        print(f"second / {name}: {wall:.3f} by wall time, {processor:.3f} by processor time")


if __name__ == "__main__":
    main()
