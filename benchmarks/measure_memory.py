"""Peak memory of the report's measuring against the number of large cases.

    python benchmarks/measure_memory.py --cases 2 8 --processes 2

One pair of masks of 512x512x200 voxels (kidneys with a tumour and a cyst; the prediction is shifted) is written, and
linked under the names of as many cases as are asked for. Numbers of cases ascend, so that the peak so far shows growth.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunetv2_sam3d.results.collect import Item
from nnunetv2_sam3d.results.measure import measure_all
from nnunetv2_sam3d.results.structures import structures_of

SHAPE = (200, 512, 512)
SPACING_MM = (2.5, 0.78, 0.78)  # z, y, x
DATASET = {"labels": {"background": 0, "kidney": 1, "tumour": 2, "cyst": 3}}
# label, centre and radii in mm (z, y, x)
BODIES = (
    (1, (250, 220, 130), (65, 30, 28)),
    (1, (245, 220, 270), (65, 30, 28)),
    (2, (285, 225, 120), (30, 30, 30)),
    (3, (205, 215, 275), (12, 12, 12)),
)


def labels(shift_mm: float) -> np.ndarray:
    """Ellipsoids of a size as in KiTS."""
    found = np.zeros(SHAPE, np.uint8)
    z, y, x = (np.arange(size, dtype=np.float32) * mm for size, mm in zip(SHAPE, SPACING_MM, strict=True))
    for label, (cz, cy, cx), (rz, ry, rx) in BODIES:
        depth = ((z - cz) / rz)[:, None, None] ** 2 + ((y - cy) / ry)[:, None] ** 2
        found[depth + ((x - cx - shift_mm) / rx) ** 2 < 1] = label
    return found


def write(array: np.ndarray, file: Path) -> None:
    """As nnU-Net writes masks."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(SPACING_MM[::-1])
    sitk.WriteImage(image, str(file), useCompression=True)


def main() -> None:
    """A line of Markdown for each number of cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, nargs="+", default=[2, 8], help="numbers of cases (default: 2 8)")
    parser.add_argument("--processes", type=int, default=2, help="default: %(default)s")
    options = parser.parse_args()
    structures = structures_of(DATASET)
    print("| cases | processes | s a case and process | peak of a worker [MiB] | peak of the main process [MiB] |")
    print("| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pair = folder / "prediction.nii.gz", folder / "reference.nii.gz"
        write(labels(3.0), pair[0])
        write(labels(0.0), pair[1])
        for count in sorted(options.cases):
            items = []
            for case in range(count):
                files = [file.with_name(f"{count}_{case}_{file.name}") for file in pair]
                for file, link in zip(pair, files, strict=True):
                    os.link(file, link)
                items.append(Item("model", 0, f"case_{case}", *files))
            start = time.perf_counter()
            measure_all(items, structures, [0, 1, 2, 3], store=folder / f"{count}.jsonl", processes=options.processes)
            seconds = (time.perf_counter() - start) * min(options.processes, count) / count
            worker, main = (
                f"{resource.getrusage(who).ru_maxrss / 1024:.0f}"
                for who in (resource.RUSAGE_CHILDREN, resource.RUSAGE_SELF)
            )
            print(f"| {count} | {options.processes} | {seconds:.1f} | {worker} | {main} |", flush=True)


if __name__ == "__main__":
    main()
