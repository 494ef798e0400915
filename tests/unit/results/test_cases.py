"""Measuring many cases."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunetv2_sam3d.results.collect import Item
from nnunetv2_sam3d.results.measure import measure_all
from nnunetv2_sam3d.results.structures import structures_of

SHAPE = (48, 128, 128)


def test_memory_does_not_grow_with_the_number_of_cases(tmp_path: Path) -> None:
    """The peak of all arrays; benchmarks/measure_memory.py has masks of whole CTs and the memory of processes."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[10:30, 40:80, 40:80] = 1
    for name, mask in (("prediction", np.roll(labels, 2, 2)), ("reference", labels)):
        sitk.WriteImage(sitk.GetImageFromArray(mask), str(tmp_path / f"{name}.nii.gz"))
    structures = structures_of({"labels": {"background": 0, "organ": 1}})
    peaks = {}
    for count in (1, 2, 12):  # the first one loads modules
        items = []
        for case in range(count):
            files = [tmp_path / f"{count}_{case}_{name}.nii.gz" for name in ("prediction", "reference")]
            for file in files:
                os.link(tmp_path / file.name.split("_")[-1], file)
            items.append(Item("model", 0, f"case_{case}", files[0], files[1]))
        tracemalloc.start()
        rows = measure_all(items, structures, [0, 1], store=tmp_path / f"{count}.jsonl")
        peaks[count] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(rows) == count
    one_mask = int(np.prod(SHAPE))
    assert peaks[12] > one_mask  # the arrays are really seen
    assert peaks[12] - peaks[2] < one_mask / 4
