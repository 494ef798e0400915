"""Fits the memory model to measurements: ``python benchmarks/fit_memory.py FILE.json`` (about 10 minutes on two cores).

Measures training steps with the package's benchmark, each in a process of its own, counts their tensors, and prints
the coefficients for ``nnunetv2_sam3d/memory/model.py`` and how far each measurement lies from them. FILE keeps the
measurements; the same command goes on where it was.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nnunetv2_sam3d.benchmark.case import Case
from nnunetv2_sam3d.benchmark.run import run
from nnunetv2_sam3d.memory.choice import counted_bytes

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


def fit(counted: Iterable[float], measured: Iterable[float]) -> tuple[float, float]:
    """Base and factor of ``measured = base + factor * counted`` with the smallest sum of squared relative errors."""
    peaks = np.array(list(measured))
    terms = np.stack([np.ones_like(peaks), np.array(list(counted))], 1)
    base, factor = np.linalg.lstsq(terms / peaks[:, None], np.ones_like(peaks), rcond=None)[0]
    return float(base), float(factor)


def tensors_of(case: Case) -> int:
    """Tensors of a case, in bytes."""
    return counted_bytes(case.config(), case.recipe, case.patch_size, case.batch_size, case.precision)


def main(file: Path) -> None:
    """Measures, fits, prints."""
    cases = [
        Case("step", "ours", variant, patch, depth, precision, recipe, checkpointing)
        for precision in PRECISIONS
        for variant, depth, patch, recipe, checkpointing in SIZES
    ]
    say = partial(print, flush=True)
    records: list[dict[str, Any]] = run(cases, json_file=file, repeats=1, say=say)["records"]
    for precision in PRECISIONS:
        found = [record for record in records if record["precision"] == precision and "failed" not in record]
        counts = [tensors_of(Case.from_dict(record)) for record in found]
        peaks = [record["peak_rss_bytes"] for record in found]
        base, factor = fit(counts, peaks)
        print(f'"{precision}": Coefficients(base_bytes={base:.3g}, factor={factor:.3g}),')
        for record, count, peak in zip(found, counts, peaks, strict=True):
            rest = [index for index in range(len(found)) if found[index] is not record]
            alone = fit([counts[index] for index in rest], [peaks[index] for index in rest])
            print(
                f"  {Case.from_dict(record).label()}: counted {count / 1e9:.3f} GB, measured {peak / 1e9:.3f} GB, "
                f"predicted {100 * ((base + factor * count) / peak - 1):+.1f} %, "
                f"from the others {100 * ((alone[0] + alone[1] * count) / peak - 1):+.1f} %"
            )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
