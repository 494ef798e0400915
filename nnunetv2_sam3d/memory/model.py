"""From counted tensors to the memory of a process, by coefficients that were fitted to measurements."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from nnunetv2_sam3d.benchmark.machine import available_bytes

GB = 10**9


@dataclass(frozen=True)
class Coefficients:
    """``peak = base_bytes + factor * counted``.

    Attributes:
        base_bytes: of a process before it has any tensors: Python, torch, nnU-Net.
        factor: bytes taken for each counted one: what kernels take for themselves and what allocators waste.
    """

    base_bytes: float
    factor: float


# By device and precision. Those of processors are from benchmarks/fit_memory.py. GPUs are not measured: the larger of
# the two factors, and a gigabyte for the CUDA context and the libraries' workspaces.
COEFFICIENTS = {
    ("cpu", "float32"): Coefficients(1.06e9, 1.33),
    ("cpu", "bfloat16"): Coefficients(1.13e9, 1.22),
    ("cuda", "float16"): Coefficients(1e9, 1.33),
}


def peak_bytes(counted: int, device: str, precision: str) -> int:
    """Memory that a training step takes at most, in bytes.

    Args:
        counted: from :func:`nnunetv2_sam3d.memory.count.step_bytes`.
        device: ``cpu`` or ``cuda``.
        precision: of the matrix products.
    """
    fitted = COEFFICIENTS[device, precision]
    return round(fitted.base_bytes + fitted.factor * counted)


def memory_of(device: torch.device) -> int | None:
    """Bytes that a training on the device may take: all of a GPU, what is free of a machine; ``None`` if unknown."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return available_bytes() if device.type == "cpu" else None
