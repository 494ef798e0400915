"""One block of the encoder on CPUs, a chunk of the tokens at a time, and its recomputation in the backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from nnunetv2_sam3d.network_architecture.adapters import Adapter3d
from nnunetv2_sam3d.network_architecture.cpu import on_cpu, per_chunk
from nnunetv2_sam3d.network_architecture.cpu_adapters import adapt_
from nnunetv2_sam3d.network_architecture.cpu_attention import attend_, chunks_of_windows, slots_of
from nnunetv2_sam3d.network_architecture.cpu_memory import Scratch
from nnunetv2_sam3d.network_architecture.cpu_mlp import add_mlp
from nnunetv2_sam3d.network_architecture.windows import WindowLayout


class Block(Protocol):
    """What is used of ``image_encoder.Block3d``."""

    adapter: Adapter3d
    norm1: nn.LayerNorm
    attn: Any  # WindowAttention3d
    norm2: nn.LayerNorm
    mlp: Any  # MLP

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...


def forward(block: Block, x: Tensor, layout: WindowLayout, scratch: Scratch | None) -> Tensor:
    """``block(x, layout)`` without gradients, (B, D, H, W, C) -> the same.

    Args:
        block: of the encoder.
        x: replaced by the result if there is scratch memory, and left alone otherwise.
        layout: of the windows.
        scratch: that the blocks of a pass share.
    """
    if scratch is None:
        x, scratch = x.clone(memory_format=torch.contiguous_format), Scratch()
    for sample in x:
        adapt_(block.adapter, sample, scratch)
        tokens = sample.flatten(0, 2)
        attend_(tokens, block.norm1, block.attn, layout, scratch)
        add_mlp(tokens, block.norm2, block.mlp, scratch)
    return x


def recomputed(block: Block, x: Tensor, layout: WindowLayout) -> Tensor:
    """``block(x, layout)`` that keeps little of what its gradient needs, and computes it again in the backward pass."""
    if not on_cpu(x):
        return checkpoint(block, x, layout, use_reentrant=False)
    assert isinstance(block, nn.Module)
    trained = [parameter for parameter in block.parameters() if parameter.requires_grad]
    return _RecomputedInChunks.apply(block, layout, x, *trained)


class _RecomputedInChunks(torch.autograd.Function):
    """A block that works in chunks in both directions, for the reasons in ``cpu.py``.

    The adapter's backward pass sees all tokens at once: its norms and convolutions reach beyond a part.

    Only the block's input is kept. Attention's forward pass is computed twice again: for what the MLP reads, and for
    its own gradient, which needs the MLP's first.
    """

    @staticmethod
    def forward(ctx: Any, block: Block, layout: WindowLayout, x: Tensor, *trained: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        ctx.block, ctx.layout, ctx.trained = block, layout, trained
        ctx.autocast = torch.get_autocast_dtype("cpu"), torch.is_autocast_enabled("cpu")
        return block(x, layout)  # without gradients, and so in chunks

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        """From the block's end to its start: MLP, attention, adapter."""
        block: Block = ctx.block
        layout: WindowLayout = ctx.layout
        (x,) = ctx.saved_tensors
        gradients = _Gradients(ctx.trained)
        with torch.enable_grad(), torch.autocast("cpu", *ctx.autocast):
            x = x.detach().requires_grad_()
            adapted = block.adapter(x)
            tokens = adapted.detach().flatten(1, 3)
            middle = tokens.clone()
            with torch.no_grad():
                for sample in middle:
                    attend_(sample, block.norm1, block.attn, layout, Scratch())
            grad = grad.clone(memory_format=torch.contiguous_format)
            of_tokens = grad.flatten(1, 3)
            for part, of_part in zip(middle.split(per_chunk(), 1), of_tokens.split(per_chunk(), 1), strict=True):
                part = part.detach().requires_grad_()
                of_part += gradients.through(block.mlp(block.norm2(part)), part, of_part)
            del middle
            _attention(block, layout, tokens, of_tokens, gradients)
            of_x = gradients.through(adapted, x, grad)
        return None, None, of_x, *gradients.sums


def _attention(block: Block, layout: WindowLayout, tokens: Tensor, of_tokens: Tensor, gradients: _Gradients) -> None:
    """Adds the gradient of ``tokens`` through ``attn(norm1(tokens))`` to that of its result."""
    of_slots = tokens.new_empty(len(tokens), len(layout.gather), tokens.shape[2])
    for windows in chunks_of_windows(layout):
        slots = slots_of(windows, layout)
        gather = layout.gather[slots]
        part = tokens[:, gather].requires_grad_()
        of_attended = of_tokens[:, gather]
        if layout.region is not None:  # padding has none
            of_attended *= layout.region[windows].sum(-1).view(-1, 1)
        attended = block.attn(block.norm1(part.unflatten(1, (-1, layout.tokens))), layout, windows)
        of_slots[:, slots] = gradients.through(attended, part, of_attended.view_as(attended))
    for part, slots in zip(of_tokens.split(per_chunk(), 1), layout.scatter.split(per_chunk()), strict=True):
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
