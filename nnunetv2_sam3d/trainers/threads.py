"""The user's limit on threads, which nnU-Net's training command overrides on CPUs with one thread for every core."""

from __future__ import annotations

import os

import torch


def keep_thread_limit(device: torch.device) -> None:
    """Gives CPU training the threads of ``OMP_NUM_THREADS`` where it names fewer than nnU-Net takes.

    Two trainings at once on a small machine, each with a thread for every core, would wait for each other.
    """
    limit = os.environ.get("OMP_NUM_THREADS", "")
    if device.type == "cpu" and limit.isdecimal() and 0 < int(limit) < torch.get_num_threads():
        torch.set_num_threads(int(limit))
