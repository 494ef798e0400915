"""One block of the encoder, and its recomputation in the backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from nnunetv2_sam3d.network_architecture.adapters import make_adapter
from nnunetv2_sam3d.network_architecture.attention import SAM_GLOBAL_ROWS, SAM_WINDOW_ROWS, WindowAttention3d
from nnunetv2_sam3d.network_architecture.config import SAM3DConfig
from nnunetv2_sam3d.network_architecture.cpu import PART_TOKENS, in_parts, on_processor
from nnunetv2_sam3d.network_architecture.cpu_adapters import adapted
from nnunetv2_sam3d.network_architecture.layers import MLP
from nnunetv2_sam3d.network_architecture.windows import WindowLayout


class Block3d(nn.Module):
    """Adapter, window attention, MLP: ``x = adapter(x); x = x + attn(norm1(x)); x = x + mlp(norm2(x))``.

    Args:
        config: sizes.
        index: position in the encoder; even blocks have shifted windows, global ones longer position tables.

    Shape:
        x: (B, D, H, W, C) -> (B, D, H, W, C)
    """

    def __init__(self, config: SAM3DConfig, index: int) -> None:
        super().__init__()
        width = config.embed_dim
        self.shifted = index % 2 == 0
        rows = SAM_GLOBAL_ROWS if index in config.global_attn_indexes else SAM_WINDOW_ROWS
        self.adapter = make_adapter(config.adapter, width, config.bottleneck, config.adapter_plane)
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = WindowAttention3d(width, config.num_heads, rows)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = MLP(width, 4 * width, nn.GELU)

    def forward(self, x: Tensor, layout: WindowLayout) -> Tensor:
        if in_parts(x):
            x = adapted(self.adapter, x)
            tokens = x.flatten(1, 3)
            self.attend_in_parts(tokens, layout)
            for part in tokens.split(PART_TOKENS, 1):
                part += self.mlp(self.norm2(part))
            return x
        x = self.adapter(x)
        attended = self.attended(x.flatten(1, 3), layout).flatten(1, 2)[:, layout.scatter]
        x = x + attended.view_as(x)
        return x + self.mlp(self.norm2(x))

    def attended(self, tokens: Tensor, layout: WindowLayout, windows: slice = slice(None)) -> Tensor:
        """What attention adds, window by window: (B, D * H * W, C) -> (B, windows, tokens of a window, C)."""
        inside = tokens[:, layout.gather.view(-1, layout.tokens)[windows].flatten()].unflatten(1, (-1, layout.tokens))
        return self.attn(self.norm1(inside), layout, windows)

    def attend_in_parts(self, tokens: Tensor, layout: WindowLayout) -> None:
        """``x = x + attn(norm1(x))`` of (B, D * H * W, C), in parts and into their memory."""
        attended: Tensor | None = None
        for windows in parts_of_windows(layout):
            part = self.attended(tokens, layout, windows)
            if attended is None:
                attended = part.new_empty(len(part), len(layout.gather) // layout.tokens, *part.shape[2:])
            attended[:, windows] = part
        assert attended is not None
        for part, slots in zip(tokens.split(PART_TOKENS, 1), layout.scatter.split(PART_TOKENS), strict=True):
            part += attended.flatten(1, 2)[:, slots]


def parts_of_windows(layout: WindowLayout) -> list[slice]:
    """Windows of about ``PART_TOKENS`` at a time."""
    step, count = max(1, PART_TOKENS // layout.tokens), len(layout.gather) // layout.tokens
    return [slice(first, min(first + step, count)) for first in range(0, count, step)]


def recomputed(block: Block3d, x: Tensor, layout: WindowLayout) -> Tensor:
    """``block(x, layout)`` that keeps little of what its gradient needs, and computes it again in the backward pass."""
    if not on_processor(x):
        return checkpoint(block, x, layout, use_reentrant=False)
    trained = [parameter for parameter in block.parameters() if parameter.requires_grad]
    return _RecomputedInParts.apply(block, layout, x, *trained)


class _RecomputedInParts(torch.autograd.Function):
    """A block that works in parts in both directions, for the reasons in ``parts.py``.

    The adapter's backward pass sees all tokens at once: its norms and convolutions reach beyond a part.

    Only the block's input is kept. Attention's forward pass is computed twice again: for what the MLP reads, and for
    its own gradient, which needs the MLP's first.
    """

    @staticmethod
    def forward(ctx: Any, block: Block3d, layout: WindowLayout, x: Tensor, *trained: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        ctx.block, ctx.layout, ctx.trained = block, layout, trained
        ctx.autocast = torch.get_autocast_dtype("cpu"), torch.is_autocast_enabled("cpu")
        return block(x, layout)  # without gradients, and so in parts

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        """From the block's end to its start: MLP, attention, adapter."""
        block: Block3d = ctx.block
        layout: WindowLayout = ctx.layout
        (x,) = ctx.saved_tensors
        gradients = _Gradients(ctx.trained)
        with torch.enable_grad(), torch.autocast("cpu", *ctx.autocast):
            x = x.detach().requires_grad_()
            adapted = block.adapter(x)
            tokens = adapted.detach().flatten(1, 3)
            middle = tokens.clone()
            with torch.no_grad():
                block.attend_in_parts(middle, layout)
            grad = grad.clone(memory_format=torch.contiguous_format)
            of_tokens = grad.flatten(1, 3)
            for part, of_part in zip(middle.split(PART_TOKENS, 1), of_tokens.split(PART_TOKENS, 1), strict=True):
                part = part.detach().requires_grad_()
                of_part += gradients.through(block.mlp(block.norm2(part)), part, of_part)
            del middle
            _attention(block, layout, tokens, of_tokens, gradients)
            of_x = gradients.through(adapted, x, grad)
        return None, None, of_x, *gradients.sums


def _attention(block: Block3d, layout: WindowLayout, tokens: Tensor, of_tokens: Tensor, gradients: _Gradients) -> None:
    """Adds the gradient of ``tokens`` through ``attn(norm1(tokens))`` to that of its result."""
    of_slots = tokens.new_empty(len(tokens), len(layout.gather), tokens.shape[2])
    for windows in parts_of_windows(layout):
        slots = slice(windows.start * layout.tokens, windows.stop * layout.tokens)
        gather = layout.gather[slots]
        part = tokens[:, gather].requires_grad_()
        of_attended = of_tokens[:, gather]
        if layout.region is not None:  # padding has none
            of_attended *= layout.region[windows].sum(-1).view(-1, 1)
        attended = block.attn(block.norm1(part.unflatten(1, (-1, layout.tokens))), layout, windows)
        of_slots[:, slots] = gradients.through(attended, part, of_attended.view_as(attended))
    for part, slots in zip(of_tokens.split(PART_TOKENS, 1), layout.scatter.split(PART_TOKENS), strict=True):
        part += of_slots[:, slots]


class _Gradients:
    """Sums the gradients of trained parameters over parts.

    Attributes:
        sums: in the order of the parameters; ``None`` where no part had any.
    """

    def __init__(self, trained: Sequence[Tensor]) -> None:
        self.trained = trained
        self.sums: list[Tensor | None] = [None] * len(trained)

    def through(self, result: Tensor, part: Tensor, of_result: Tensor) -> Tensor:
        """The gradient of a part, given that of its result; those of the parameters are added up."""
        of_part, *more = torch.autograd.grad(
            result, [part, *self.trained], of_result.to(result.dtype), allow_unused=True
        )
        for index, gradient in enumerate(more):
            if gradient is not None:
                known = self.sums[index]
                self.sums[index] = gradient if known is None else known.add_(gradient)
        return of_part
