"""bfloat16 on processors: nnU-Net computes in float32 on them, which some of them do several times slower."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

PRECISIONS = ("auto", "float32", "bfloat16")


def cpu_has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 matrices in hardware (AMX or AVX512-BF16)."""
    probes = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in probes)


def cpu_precision(choice: str) -> str:
    """What a choice of precision means for inference on this processor: ``float32`` or ``bfloat16``.

    ``auto`` asks what the processor can do and times nothing: results must not depend on what else the machine was
    doing.

    Raises:
        ValueError: for another choice than ``auto``, ``float32`` and ``bfloat16``.
    """
    if choice not in PRECISIONS:
        raise ValueError(f"precision must be one of {PRECISIONS}, got {choice!r}")
    if choice != "auto":
        return choice
    return "bfloat16" if cpu_has_bfloat16() else "float32"


def in_bfloat16(x: Tensor) -> bool:
    """Whether autocast makes products of this tensor in bfloat16 on a CPU; it has 8 bits, GPUs' float16 has 11."""
    on_cpu = x.device.type == "cpu" and torch.is_autocast_enabled("cpu")
    return on_cpu and torch.get_autocast_dtype("cpu") == torch.bfloat16


def in_float32(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``layer(x)``, on CPUs in float32 where autocast would take bfloat16."""
    if not in_bfloat16(x):
        return layer(x)
    with torch.autocast("cpu", enabled=False):
        return layer(x.float())
