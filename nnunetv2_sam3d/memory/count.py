"""Counts the tensors that a training step keeps alive, on tensors without content: no memory, no arithmetic."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nnunetv2_sam3d.network_architecture.config import SAM3DConfig
from nnunetv2_sam3d.network_architecture.cpu import as_on_gpus
from nnunetv2_sam3d.network_architecture.sam3d import SAM3D

Freeze = Callable[[nn.Module], Sequence[Sequence[nn.Parameter]]]
Loss = Callable[[Tensor, Tensor], Tensor]


class Counted(NamedTuple):
    """Bytes of a training step.

    Attributes:
        peak: of all tensors that live at once, at most.
        widest: of the tensors that one operation reads and writes, at most; what kernels take for
            themselves follows it.
    """

    peak: int
    widest: int


class LiveBytes(TorchDispatchMode):
    """Bytes of the tensors that live, and the most there ever were, while the mode is active.

    Attributes:
        live: bytes now.
        peak: the most so far.
        widest: the most that one operation read and wrote so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = self.widest = 0
        self._known: dict[int, weakref.finalize] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        touched: dict[int, int] = {}
        for value in tree_leaves((args, kwargs, out)):
            if isinstance(value, Tensor):
                storage = value.untyped_storage()
                touched[storage._cdata] = min(storage.nbytes(), value.numel() * value.element_size())
        self.widest = max(self.widest, sum(touched.values()))
        for value in tree_leaves(out):
            if isinstance(value, Tensor):
                self._add(value.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        place = storage._cdata
        if place not in self._known:
            self._known[place] = weakref.finalize(storage, self._free, place, storage.nbytes())
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)

    def _free(self, place: int, size: int) -> None:
        del self._known[place]
        self.live -= size


def step_bytes(
    config: SAM3DConfig,
    freeze: Freeze,
    loss: Loss,
    *,
    patch_size: Sequence[int],
    batch_size: int = 1,
    precision: str = "float32",
    device: str = "cpu",
) -> Counted:
    """Tensors of a training step: weights, gradients, AdamW's state, activations, targets.

    What a kernel takes for itself and gives back, and what the allocator wastes, is not seen; see
    :mod:`nnunetv2_sam3d.memory.model`.

    Args:
        config: the network, with or without checkpointing.
        freeze: sets ``requires_grad`` and returns the trained parameters.
        loss: of logits and target (B, 1, D, H, W).
        patch_size: voxels (D, H, W).
        batch_size: samples.
        precision: of the matrix products: ``float32``, ``bfloat16`` or ``float16``.
        device: ``cpu`` or ``cuda``, which differ in what is computed at once.
    """
    dtype = None if precision == "float32" else getattr(torch, precision)
    with torch.device("meta"):  # the first weights are drawn with functions that look at values
        network = SAM3D(config)
    with FakeTensorMode(allow_non_fake_inputs=True), LiveBytes() as counted:
        network.to_empty(device="cpu").prepare(patch_size)
        groups = freeze(network)
        trained = [parameter for group in groups for parameter in group]
        state = [torch.empty_like(parameter) for parameter in trained for _ in range(2)]  # AdamW's two moments
        image = torch.empty(batch_size, config.in_channels, *patch_size)
        target = torch.zeros(batch_size, 1, *patch_size)
        with as_on_gpus() if device == "cuda" else nullcontext():
            with torch.autocast("cpu", dtype, enabled=dtype is not None):
                logits = network(image).float()
            loss(logits, target).backward()
        del logits, state
    return Counted(counted.peak, counted.widest)
