"""What depends on weights that do not change is computed once."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor, nn


class FrozenCache:
    """The last value that was computed from some weights, kept until one of them changes.

    Nothing is kept where a gradient has to reach the weights: a trained table is computed in each training step, a
    frozen one only once. Changes are detected by ``_version`` (raised by optimizers and ``load_state_dict``, not by
    writes through ``.data`` and not by PyTorch's fused optimizers), storage address, dtype and device. Only the last
    value is held. It is not part of the state dict.
    """

    def __init__(self) -> None:
        self._kept: tuple[Hashable, Any] = (None, None)  # in one piece, for threads

    def __call__(self, compute: Callable[[], Any], *weights: Tensor, key: Hashable = None) -> Any:
        """``compute()``, or its earlier result.

        Args:
            compute: depends on nothing but the weights and the key.
            weights: what it reads.
            key: what else it depends on, for instance the grid.
        """
        # torch.compile has to trace the arithmetic. Tensors made in inference mode have no version. Tensors without
        # content (meta device, fake tensors, which have a type of their own) have no address.
        if torch.compiler.is_compiling() or any(
            weight.is_inference() or weight.is_meta or type(weight) not in (Tensor, nn.Parameter) for weight in weights
        ):
            return compute()
        if torch.is_grad_enabled() and any(weight.requires_grad for weight in weights):
            return compute()
        now = (key, *((id(w), w.data_ptr(), w._version, w.dtype, w.device) for w in weights))
        before, value = self._kept
        if now != before:
            device = weights[0].device.type
            # a value made while predicting, or under autocast, may meet a training step later
            with torch.inference_mode(False), torch.no_grad(), torch.autocast(device, enabled=False):
                value = compute()
            self._kept = (now, value)
        return value
