"""The devices of a run: each takes one step at a time."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Device:
    """Where a step runs.

    Attributes:
        kind: ``cpu``, ``cuda`` or ``mps``.
        indices: of the GPUs, among those that are visible to this process; all of them if empty.
        num_gpus: how many GPUs a training uses at once, nnU-Net's ``-num_gpus``.
    """

    kind: str
    indices: tuple[int, ...] = ()
    num_gpus: int = 1

    @property
    def arguments(self) -> tuple[str, ...]:
        """For nnU-Net's commands."""
        several = ("-num_gpus", str(self.num_gpus)) if self.num_gpus > 1 else ()
        return ("-device", self.kind, *several)

    def environment(self, base: Mapping[str, str]) -> dict[str, str]:
        """The base with this device's GPUs alone visible."""
        if not self.indices:
            return dict(base)
        seen = base.get(VISIBLE)
        names = (
            [str(index) for index in range(max(self.indices) + 1)] if seen is None else seen.split(",") if seen else []
        )
        if max(self.indices) >= len(names):
            raise ValueError(
                f"cuda:{max(self.indices)} does not exist: {VISIBLE}={seen} leaves {len(names)} GPUs, from cuda:0 on"
            )
        return {**base, VISIBLE: ",".join(names[index] for index in self.indices)}

    def __str__(self) -> str:
        return "+".join(f"{self.kind}:{index}" for index in self.indices) or self.kind


def parse_devices(names: Sequence[str], num_gpus: int = 1) -> tuple[Device, ...]:
    """``["cuda:0", "cuda:1"]`` -> two devices, or one of two GPUs if ``num_gpus`` is 2.

    Raises:
        ValueError: for other names, or GPUs that do not make whole groups.
    """
    if num_gpus < 1:
        raise ValueError(f"a training needs at least one GPU, got --num-gpus {num_gpus}")
    devices, numbered = [], []
    for name in names:
        match = re.fullmatch(r"(cpu|mps|cuda)|cuda:(\d+)", name)
        if match is None:
            raise ValueError(f"there is no device {name!r}; give cpu, mps, cuda, or cuda:0 cuda:1 ... for several GPUs")
        if match[2]:
            numbered.append(int(match[2]))
        elif name != "cuda" and num_gpus > 1:
            raise ValueError(f"--num-gpus {num_gpus} needs GPUs, but {name} is among the devices")
        else:
            devices.append(Device(name, num_gpus=num_gpus))
    if len(numbered) % num_gpus:
        raise ValueError(f"{len(numbered)} GPUs cannot be shared out {num_gpus} to a training (--num-gpus)")
    groups = [tuple(numbered[first : first + num_gpus]) for first in range(0, len(numbered), num_gpus)]
    return (*(Device("cuda", group, num_gpus) for group in groups), *devices)


def child_environment(processes: int) -> dict[str, str]:
    """The environment of nnU-Net's commands: worker counts that fit the machine, unless the user has set them."""
    environment = dict(os.environ)
    for name in ("nnUNet_n_proc_DA", "nnUNet_def_n_proc"):
        environment.setdefault(name, str(processes))
    # Waiting threads give their core to nnU-Net's workers; spinning ones slow a CPU training down several times. Most
    # waits within a step are shorter than going to sleep is, though, so they spin for a moment (docs/performance.md).
    if "OMP_WAIT_POLICY" not in environment:
        environment["OMP_WAIT_POLICY"] = "passive"
        environment.setdefault("GOMP_SPINCOUNT", "3000")
    return environment


def share_of_cores(environment: Mapping[str, str], commands: int) -> Mapping[str, str]:
    """The environment of one of several commands at once: as many threads as fit, unless the user has set them.

    Threads of two trainings on the same cores wait for each other, and both take several times as long.
    """
    if commands < 2 or "OMP_NUM_THREADS" in environment:
        return environment
    return {**environment, "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // commands))}
