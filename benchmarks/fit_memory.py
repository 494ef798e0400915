"""Fits the memory model to measurements: ``python benchmarks/fit_memory.py FILE.json`` (about 10 minutes on two cores).

Measures training steps with the package's benchmark, each in a process of its own, counts their tensors, and prints
the coefficients for ``nnunetv2_sam3d/memory/model.py`` and how far each measurement lies from them. FILE keeps the
measurements; the same command goes on where it was.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nnunetv2_sam3d.benchmark.case import BenchmarkCase
from nnunetv2_sam3d.benchmark.run import run
from nnunetv2_sam3d.memory.count import Counted
from nnunetv2_sam3d.memory.model import Coefficients
from nnunetv2_sam3d.planning.memory_choice import counted_bytes

# what -> depth, patch, recipe, checkpointing: small steps in which each kind of memory has its turn as the largest
SIZES: tuple[tuple[str, int, tuple[int, int, int], str, bool], ...] = (
    ("vit_tiny", 4, (64, 64, 64), "DualPath", False),
    ("vit_tiny", 4, (128, 96, 96), "Original", False),
    ("vit_b", 4, (32, 32, 32), "DualPath", False),
    ("vit_b", 4, (32, 64, 64), "Full", False),
    ("vit_b", 4, (64, 64, 64), "DualPath", True),
    ("vit_b", 4, (64, 64, 64), "Original", False),
)
PRECISIONS = ("float32", "bfloat16")


def fit(counted: Sequence[Counted], measured: Sequence[float]) -> Coefficients:
    """The coefficients with the smallest sum of squared relative errors."""
    peaks = np.array(measured)
    terms = np.array([(1, tensors.peak, tensors.widest) for tensors in counted]) / peaks[:, None]
    return Coefficients(*np.linalg.lstsq(terms, np.ones_like(peaks), rcond=None)[0].tolist())


def error(fitted: Coefficients, counted: Counted, measured: float) -> float:
    """Of a prediction, in percent."""
    predicted = fitted.base_bytes + fitted.factor * counted.peak + fitted.kernels * counted.widest
    return 100 * (predicted / measured - 1)


def tensors_of(case: BenchmarkCase) -> Counted:
    """Tensors of a case."""
    return counted_bytes(case.config(), case.recipe, case.patch_size, case.batch_size, case.precision)


def main(file: Path) -> None:
    """Measures, fits, prints."""
    cases = [
        BenchmarkCase("step", "ours", variant, patch, depth, precision, recipe, checkpointing)
        for precision in PRECISIONS
        for variant, depth, patch, recipe, checkpointing in SIZES
    ]
    say = partial(print, flush=True)
    records: list[dict[str, Any]] = run(cases, json_file=file, repeats=1, say=say)["records"]
    for precision in PRECISIONS:
        found = [record for record in records if record["precision"] == precision and "failed" not in record]
        counts = [tensors_of(BenchmarkCase.from_dict(record)) for record in found]
        peaks = [record["peak_rss_bytes"] for record in found]
        together = fit(counts, peaks)
        print(
            f'("cpu", "{precision}"): Coefficients({together.base_bytes:.3g}, {together.factor:.2f}, '
            f"{together.kernels:.2f}),"
        )
        for index, (record, tensors, peak) in enumerate(zip(found, counts, peaks, strict=True)):
            others = fit(counts[:index] + counts[index + 1 :], peaks[:index] + peaks[index + 1 :])
            print(
                f"  {BenchmarkCase.from_dict(record).label()}: tensors {tensors.peak / 1e9:.3f} GB, "
                f"measured {peak / 1e9:.3f} GB, predicted {error(together, tensors, peak):+.1f} %, "
                f"from the others {error(others, tensors, peak):+.1f} %"
            )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
