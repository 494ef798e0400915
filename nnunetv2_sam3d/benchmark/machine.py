"""The machine: what it is, how much memory a process has used, how fast it multiplies matrices."""

from __future__ import annotations

import hashlib
import platform
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

MATRIX = {"cpu": 1024, "cuda": 8192}  # edge of the matrices of the rate; nothing but the product counts at that size
ATTEMPTS = 20
SLOW_S = 20.0


def environment(device: str) -> dict[str, Any]:
    """What decides the measurements: CPU or GPU, threads, versions, and the code that is measured."""
    import torch

    from nnunetv2_sam3d import __version__

    found: dict[str, Any] = {
        "device": device,
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "nnunetv2_sam3d": __version__,
        "code": code_digest(),
    }
    if device == "cuda":
        found["gpu"] = torch.cuda.get_device_name()
    return found


def processor() -> str:
    """Name of the processor, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def code_digest() -> str:
    """Twelve digits that change with the package's code."""
    digest = hashlib.sha256()
    root = Path(__file__).parents[1]
    for folder in ("network_architecture", "benchmark", "trainers"):
        for file in sorted((root / folder).glob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def peak_rss_bytes() -> int:
    """The most resident memory that this process ever had.

    On Linux from the kernel's high-water mark of the address space: ``getrusage`` also counts what the parent had.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def limit_memory(limit: int) -> None:
    """Makes this process fail with an error of its own where it would drive the machine out of memory."""
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def product_rate(device: str, precision: str) -> float:
    """Floating point operations per second of a large matrix product (2 n^3 in its time), the median of twenty."""
    import torch

    def seconds(size: int, attempts: int) -> float:
        a, b = (torch.randn(size, size, device=device).to(getattr(torch, precision)) for _ in range(2))
        a @ b
        times = []
        for _ in range(attempts):
            synchronise(device)
            begin = time.perf_counter()
            a @ b
            synchronise(device)
            times.append(time.perf_counter() - begin)
        return statistics.median(times)

    size = MATRIX[device]
    # CPUs without the precision emulate it: the whole size would take them minutes
    if seconds(size // 4, 3) * 4**3 * ATTEMPTS > SLOW_S:
        size //= 4
    return 2 * size**3 / seconds(size, ATTEMPTS)


def synchronise(device: str) -> None:
    """Waits for the GPU."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
