"""Peak memory and time of the export of one volume, by nnU-Net and by this package, each in a process of its own.

    python scripts/export_memory.py
    python scripts/export_memory.py --shape 300 512 512 --spacing 1 0.78 0.78 --classes 8

The logits are smooth random numbers. The masks of both are compared by their SHA-256.
"""

from __future__ import annotations

import argparse
import hashlib
import resource
import subprocess
import sys
import time
from typing import Any

FORMS = ("nnU-Net", "slabs")


def main() -> int:
    """Measures both forms, or in a process of its own one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs=3, type=int, default=(600, 512, 512), metavar="N", help="voxels, z y x")
    parser.add_argument("--spacing", nargs=3, type=float, default=(0.8, 0.61, 0.61), metavar="MM", help="of the image")
    parser.add_argument(
        "--grid-spacing", nargs=3, type=float, default=(1.0, 0.78, 0.78), metavar="MM", help="of KiTS's plans"
    )
    parser.add_argument("--classes", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--form", choices=FORMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.form:
        print(*measure(options))
        return 0
    results = []
    for form in FORMS:
        lines = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--form", form], check=True, stdout=subprocess.PIPE, text=True
        )
        peak, before, seconds, digest = lines.stdout.split()[-4:]
        results.append((int(peak), float(seconds), digest))
        print(
            f"{form}: peak {int(peak) / 1e9:.2f} GB ({int(before) / 1e9:.2f} before), {float(seconds):.1f} s",
            flush=True,
        )
    (stock_peak, stock_s, stock), (peak, seconds, ours) = results
    print(f"slabs take {peak / stock_peak:.2f} of the memory and {seconds / stock_s:.2f} of the time; the masks are "
          f"{'the same' if stock == ours else 'DIFFERENT'}")  # fmt: skip
    return int(stock != ours)


def measure(options: argparse.Namespace) -> tuple[int, int, float, str]:
    """Bytes at the peak and before, seconds, and the mask's SHA-256 of one form."""
    import numpy as np
    import torch
    from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
    from nnunetv2.utilities.label_handling.label_handling import LabelManager
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

    from nnunetv2_sam3d.clicks.geometry import PreprocessedGrid
    from nnunetv2_sam3d.inference.local_resampling import resampling_of
    from nnunetv2_sam3d.inference.slab_export import segmentation_by_slabs

    torch.set_num_threads(options.threads)
    configuration = ConfigurationManager({
        "architecture": {},  # of plans as nnU-Net writes them now; no network is built
        "spacing": list(options.grid_spacing),
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None},
    })  # fmt: skip
    plans = PlansManager({"transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2]})
    labels = LabelManager({"background": 0} | {str(label): label for label in range(1, options.classes)}, None)
    grid_shape = [
        round(n * a / b) for n, a, b in zip(options.shape, options.spacing, options.grid_spacing, strict=True)
    ]
    torch.manual_seed(0)
    logits = torch.empty(options.classes, *grid_shape, dtype=torch.half)  # as the sliding window's
    for one in logits:
        one[...] = torch.nn.functional.interpolate(torch.randn(1, 1, 16, 16, 16), grid_shape, mode="trilinear")[0, 0]
    properties: dict[str, Any] = {
        "spacing": list(options.spacing),
        "shape_before_cropping": tuple(options.shape),
        "shape_after_cropping_and_before_resampling": tuple(options.shape),
        "bbox_used_for_cropping": [[0, length] for length in options.shape],
    }
    before, began = peak_bytes(), time.perf_counter()
    if options.form == FORMS[0]:
        mask = convert_predicted_logits_to_segmentation_with_correct_shape(
            logits, plans, configuration, labels, properties, num_threads_torch=options.threads
        )
    else:
        grid = PreprocessedGrid.from_properties(properties, plans.transpose_forward, grid_shape)
        axes = resampling_of(plans, configuration, options.spacing, grid)
        assert axes is not None
        mask = segmentation_by_slabs(logits, axes, grid, options.shape, labels)
    seconds = time.perf_counter() - began
    return peak_bytes(), before, seconds, hashlib.sha256(np.ascontiguousarray(mask).tobytes()).hexdigest()


def peak_bytes() -> int:
    """Resident memory of this process at its peak."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    sys.exit(main())
