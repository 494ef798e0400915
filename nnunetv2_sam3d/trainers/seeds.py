"""The random numbers of a training: decided by its repeat and its fold, not by its trainer.

So the trainers that are compared share what they can, and a repeat differs from another one in all of it.

Seeded are
    - the weights of a new network. Trainers whose networks differ share the stream of random numbers, but not the
      values of the parts that come after the first difference.
    - the cases, crops and augmentation of the batches. With one worker (``nnUNet_n_proc_DA=1``) or none (0) they come
      in the same order in every run. Several workers each have a seed, but whose batch comes next is a matter of speed.
    - the simulated clicks (:mod:`nnunetv2_sam3d.trainers.training_clicks`), which depend on the crops.

Not seeded are the order of a GPU's sums, so that two runs drift apart, and a training that was stopped: it goes on with
batches that depend on the epoch at which it goes on. nnU-Net's own trainers seed nothing.
"""

from __future__ import annotations

import random
from zlib import crc32

import numpy as np
import torch
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter


def seed_of_run(repeat: int, fold: int | str) -> int:
    """Seed of all trainings of a fold in a repeat, 32 bits."""
    return crc32(f"repeat {repeat}, fold {fold}".encode())


def seed_process(*entropy: int) -> None:
    """Seeds what this process draws from Python's, NumPy's and PyTorch's global generators."""
    python, numpy, pytorch = _seeds(entropy, 3)
    random.seed(python)
    np.random.seed(numpy)
    torch.manual_seed(pytorch)


def seed_loaders(loaders: tuple, *entropy: int) -> tuple:
    """Gives nnU-Net's data loaders seeds for their workers, if they have any.

    nnU-Net lets its workers draw their seeds from the system, and starts them before it returns the loaders. They are
    started anew, and the batches that they had prepared are lost.

    Args:
        loaders: for training and validation, as ``nnUNetTrainer.get_dataloaders`` returns them.
        entropy: what the seeds are derived from.
    """
    for number, loader in enumerate(loaders):
        if isinstance(loader, NonDetMultiThreadedAugmenter):
            loader.seeds = _seeds((*entropy, number), loader.num_processes)
            loader.restart()
    return loaders


def _seeds(entropy: tuple[int, ...], count: int) -> list[int]:
    return np.random.SeedSequence(entropy).generate_state(count).tolist()
