"""Gradients of a batch on CPUs, several samples at once, each on threads of its own.

A small network's step is thousands of short operations. Threads that share each of them wait for each other at the end
of each, and longer where another process wants a core. Threads that have a sample each wait once a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nnunetv2_sam3d.network_architecture.sam3d import SAM3D
from nnunetv2_sam3d.trainers.losses import DiceCELoss


def sample_threads(network: nn.Module, loss: nn.Module, batch_size: int, device: torch.device) -> SampleThreads | None:
    """Threads for a training of this network, where they compute the same function faster.

    That is on CPUs, with several threads and samples, a loss that is the mean over the samples, no wrapper of DDP or
    torch.compile around the network, and no batch norm in it, which somebody's own adapter may have.
    """
    several = device.type == "cpu" and batch_size > 1 and torch.get_num_threads() > 1
    apart = isinstance(network, SAM3D) and not any(isinstance(part, _BatchNorm) for part in network.modules())
    is_mean = isinstance(loss, DiceCELoss) and loss.is_mean_of_samples
    return SampleThreads(batch_size) if several and apart and is_mean else None


class SampleThreads:
    """As many samples at once as there are threads.

    Args:
        samples: of a batch; further threads are shared out among them.
    """

    def __init__(self, samples: int) -> None:
        threads = torch.get_num_threads()
        self.workers = max(1, min(samples, threads))
        self._pool = ThreadPoolExecutor(self.workers, thread_name_prefix="sample")
        everyone = Barrier(self.workers)

        def prepare(_: int) -> None:
            everyone.wait()  # so that each of the pool's threads comes by
            torch.get_num_threads()  # the first call in a thread takes over the process's number
            torch.set_num_threads(threads // self.workers)

        list(self._pool.map(prepare, range(self.workers)))
        torch.set_num_threads(threads)  # the last call also decides for threads that begin later

    def backward(self, network: nn.Module, loss: nn.Module, target: Tensor, *inputs: Tensor) -> Tensor:
        """What ``loss(network(*inputs), target).backward()`` does, up to the order of sums.

        Args:
            network: whose samples do not see each other. The ``grad`` of its trained parameters is replaced.
            loss: whose value for a batch is the mean of its samples' values.
            target: (B, ...).
            inputs: of the network, each (B, ...).

        Returns:
            the loss, detached.
        """
        batch = len(target)
        parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]

        def of_some(first: int) -> tuple[Tensor, list[Tensor | None]]:
            value = target.new_zeros(())
            sums: list[Tensor | None] = [None] * len(parameters)
            for index in range(first, batch, self.workers):
                sample = slice(index, index + 1)
                part = loss(network(*(tensor[sample] for tensor in inputs)), target[sample]) / batch
                _add(sums, torch.autograd.grad(part, parameters, allow_unused=True))
                value = value + part.detach()
            return value, sums

        (total, gradients), *others = self._pool.map(of_some, range(min(self.workers, batch)))
        for value, more in others:
            total = total + value
            _add(gradients, more)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        return total


def _add(sums: list[Tensor | None], more: Sequence[Tensor | None]) -> None:
    """Adds gradients to sums, ``None`` being zero; not in place, since two parameters may share a gradient's memory."""
    for index, value in enumerate(more):
        if value is not None:
            known = sums[index]
            sums[index] = value if known is None else known + value
