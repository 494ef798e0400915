"""From counted tensors to the memory of a process, by coefficients that were fitted to measurements."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from nnunetv2_sam3d.memory.count import Counted

GB = 10**9


@dataclass(frozen=True)
class Coefficients:
    """``base_bytes + factor * counted.peak + kernels * counted.widest``.

    Attributes:
        base_bytes: of a process before it has any tensors: Python, torch, nnU-Net.
        factor: bytes taken for each one of tensors: what allocators waste.
        kernels: bytes that kernels take for themselves, for each one that the widest operation reads and writes.
    """

    base_bytes: float
    factor: float
    kernels: float


# By device and precision. Those of CPUs are from benchmarks/fit_memory.py. Of GPUs there are two measurements, on
# an H100: vit_b, 128^3, batch 1, Full 20.2 GB and DualPath 18.7 GB allocated, where 19.2 and 17.4 GB of tensors are
# counted. So a tenth is added, and 1.5 GB for the CUDA context and the libraries' workspaces.
COEFFICIENTS = {
    ("cpu", "float32"): Coefficients(1.04e9, 1.29, 0.29),
    ("cpu", "bfloat16"): Coefficients(1.11e9, 1.16, 0.35),
    ("cuda", "float16"): Coefficients(1.5e9, 1.10, 0.0),
}


def peak_bytes(counted: Counted, device: str, precision: str) -> int:
    """Memory that a training step takes at most, in bytes.

    Args:
        counted: from :func:`nnunetv2_sam3d.memory.count.step_bytes`.
        device: ``cpu`` or ``cuda``.
        precision: of the matrix products.
    """
    fitted = COEFFICIENTS[device, precision]
    return round(fitted.base_bytes + fitted.factor * counted.peak + fitted.kernels * counted.widest)


def memory_of(device: torch.device) -> int | None:
    """Bytes that a training on the device may take: all of a GPU, what is free of a machine; ``None`` if unknown."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return available_bytes() if device.type == "cpu" else None


def available_bytes() -> int | None:
    """Memory that can be taken without swapping, or ``None`` where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None
    try:  # a container may have less
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        return min(free, limit - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    except (OSError, ValueError):
        return free
