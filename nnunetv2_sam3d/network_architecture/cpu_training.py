"""Attention and MLP of a block in training on CPUs: the functions of inference, and their gradients, chunk by chunk.

What autograd would keep, and make anew in each step, is memory that the system has to clear page by page: it took half
of a step. Kept are what enters, the product with ``qkv``, and the hidden layer of the MLP. What is large lives in
memory that is used again, and is computed twice where that is cheap: norms, GELU, the attention's weights.

Blocks take this form without autocast and without checkpointing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nnunetv2_sam3d.network_architecture.cpu import per_chunk
from nnunetv2_sam3d.network_architecture.cpu_attention import (
    Windows,
    attend_,
    in_windows_,
    position_offsets,
)
from nnunetv2_sam3d.network_architecture.cpu_memory import Scratch, scaled_product
from nnunetv2_sam3d.network_architecture.cpu_mlp import add_mlp
from nnunetv2_sam3d.network_architecture.windows import WindowLayout

# where the trained weights stand among the functions' arguments; biases follow them
NORM = 0
QKV, PROJ = 2, 4
LIN1, LIN2 = 2, 4


def with_attention(x: Tensor, norm: nn.LayerNorm, attn: Any, layout: WindowLayout, scratch: Scratch) -> Tensor:
    """``x + attn(norm(x))`` with gradients, (B, D * H * W, C) -> the same.

    Args:
        x: left as it is.
        norm: before attention.
        attn: a ``WindowAttention3d``.
        layout: of the windows.
        scratch: that the blocks of a pass share, in both directions.
    """
    trained = norm.weight, norm.bias, attn.qkv.weight, attn.qkv.bias, attn.proj.weight, attn.proj.bias
    return _Attention.apply(norm, attn, layout, scratch, x, position_offsets(attn, layout), *trained)


def with_mlp(x: Tensor, norm: nn.LayerNorm, mlp: Any, scratch: Scratch) -> Tensor:
    """``x + mlp(norm(x))`` with gradients, (B, N, C) -> the same; see :func:`with_attention`."""
    trained = norm.weight, norm.bias, mlp.lin1.weight, mlp.lin1.bias, mlp.lin2.weight, mlp.lin2.bias
    return _MLP.apply(norm, mlp, scratch, x, *trained)


class _Sums:
    """Gradients of weights, summed over chunks.

    Attributes:
        all: as the weights are given; ``None`` for those that are frozen.
    """

    def __init__(self, weights: Sequence[Tensor], wanted: Sequence[bool]) -> None:
        self.all = [torch.zeros_like(w) if yes else None for w, yes in zip(weights, wanted, strict=True)]

    def wants(self, index: int) -> bool:
        """Whether that weight is trained."""
        return self.all[index] is not None

    def add_linear(self, index: int, of_y: Tensor, x: Tensor | None) -> None:
        """Of a linear layer, (N, in) -> (N, out), whose weight has that index; ``x`` may be missing if it is frozen."""
        weight, bias = self.all[index : index + 2]
        if weight is not None and x is not None:
            weight.addmm_(of_y.t(), x)
        if bias is not None:
            bias += of_y.sum(0)

    def through_norm(self, norm: nn.LayerNorm, x: Tensor, of_normed: Tensor) -> Tensor:
        """The gradient of what enters the norm."""
        _, mean, deviation = torch.native_layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
        wanted = [True, self.wants(NORM), self.wants(NORM + 1)]
        of_x, of_weight, of_bias = torch.ops.aten.native_layer_norm_backward(
            of_normed, x, norm.normalized_shape, mean, deviation, norm.weight, norm.bias, wanted
        )
        for index, gradient in enumerate((of_weight, of_bias), NORM):
            if self.wants(index):
                self.all[index] += gradient
        return of_x


class _MLP(torch.autograd.Function):
    """``x + mlp(norm(x))``, see :func:`with_mlp`."""

    @staticmethod
    def forward(ctx: Any, norm: nn.LayerNorm, mlp: Any, scratch: Scratch, x: Tensor, *weights: Tensor) -> Tensor:
        hidden = x.new_empty(*x.shape[:2], mlp.lin1.out_features)
        result = x.clone(memory_format=torch.contiguous_format)
        add_mlp(result.flatten(0, 1), norm, mlp, scratch, hidden.flatten(0, 1))
        ctx.save_for_backward(x, hidden, *weights)
        ctx.norm, ctx.scratch = norm, scratch
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_result: Tensor) -> Any:
        x, hidden, *weights = ctx.saved_tensors
        sums = _Sums(weights, ctx.needs_input_grad[4:])
        of_x = of_result.clone(memory_format=torch.contiguous_format)
        every = (t.flatten(0, 1).split(per_chunk()) for t in (x, hidden, of_x))
        for rows, before, of_rows in zip(*every, strict=True):
            sums.add_linear(LIN2, of_rows, F.gelu(before) if sums.wants(LIN2) else None)
            of_hidden = ctx.scratch("wide", *before.shape, dtype=x.dtype)
            torch.mm(of_rows, weights[LIN2], out=of_hidden)
            torch.ops.aten.gelu_backward.grad_input(of_hidden, before, grad_input=of_hidden)
            sums.add_linear(LIN1, of_hidden, ctx.norm(rows) if sums.wants(LIN1) else None)
            of_normed = torch.mm(of_hidden, weights[LIN1], out=ctx.scratch("narrow", *rows.shape, dtype=x.dtype))
            of_rows += sums.through_norm(ctx.norm, rows, of_normed)
        return None, None, None, of_x, *sums.all


class _Attention(torch.autograd.Function):
    """``x + attn(norm(x))``, see :func:`with_attention`."""

    @staticmethod
    def forward(
        ctx: Any,
        norm: nn.LayerNorm,
        attn: Any,
        layout: WindowLayout,
        scratch: Scratch,
        x: Tensor,
        offsets: Tensor,
        *weights: Tensor,
    ) -> Tensor:
        qkv = x.new_empty(len(x), len(layout.gather) + 1, 3 * x.shape[2])
        result = x.clone(memory_format=torch.contiguous_format)
        for sample, kept in zip(result, qkv, strict=True):
            attend_(sample, norm, attn, layout, scratch, offsets, kept[:-1])
        ctx.save_for_backward(x, qkv, offsets, *weights)
        ctx.norm, ctx.attn, ctx.layout, ctx.scratch = norm, attn, layout, scratch
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_result: Tensor) -> Any:
        x, qkv, offsets, *weights = ctx.saved_tensors
        of_x = of_result.clone(memory_format=torch.contiguous_format)
        windows = _WindowGradients(ctx, offsets, weights)
        for sample, of_sample, kept in zip(x, of_x, qkv, strict=True):
            windows.add(sample, of_sample, kept)
        return None, None, None, None, of_x, windows.of_offsets, *windows.sums.all


class _WindowGradients:
    """Gradients of :class:`_Attention`.

    Attributes:
        sums: of the weights.
        of_offsets: of the offsets' rows, ``None`` if no position table is trained.
    """

    def __init__(self, ctx: Any, offsets: Tensor, weights: Sequence[Tensor]) -> None:
        self.norm, self.attn, self.layout, self.scratch = ctx.norm, ctx.attn, ctx.layout, ctx.scratch
        self.windows = Windows(ctx.attn, ctx.layout, offsets, offsets.dtype, ctx.scratch)
        self.of_offsets = torch.zeros_like(offsets) if ctx.needs_input_grad[5] else None
        self.sums = _Sums(weights, ctx.needs_input_grad[6:])

    def add(self, x: Tensor, of_x: Tensor, qkv: Tensor) -> None:
        """Adds to the gradient of a sample's result, (D * H * W, C), what comes through its attention."""
        layout = self.layout
        for part, slots, of_rows in in_windows_(of_x, layout, self.scratch):
            if len(layout.gather) > len(x):  # the copies of a token that stand in padding have none
                of_rows *= layout.region[part].sum(-1).view(-1, 1)
            rows = x[layout.gather[slots]]
            of_normed = self._through_attention(rows, of_rows, qkv[slots], part)
            of_rows += self.sums.through_norm(self.norm, rows, of_normed)

    def _through_attention(self, rows: Tensor, of_rows: Tensor, qkv: Tensor, part: slice) -> Tensor:
        """The gradient of normed tokens, given that of their attention, (windows * tokens, C)."""
        attn, windows, scratch, dtype = self.attn, self.windows, self.scratch, rows.dtype
        q, k, v = windows.extended(qkv, part)
        heads = len(q), attn.num_heads, self.layout.tokens, attn.head_dim
        of_joined = torch.mm(of_rows, windows.proj_weight, out=scratch("narrow", *rows.shape, dtype=dtype))
        of_attended = of_joined.view(len(q), -1, *heads[1::2]).transpose(1, 2)
        attended = torch.empty(heads, dtype=dtype) if self.sums.wants(PROJ) else None
        used = windows.positions.stop  # nobody asks for the gradient of regions
        of_q = scratch("of_q", *heads[:3], used, dtype=dtype)
        of_k, of_v = scratch("of_kv", 2, *heads, dtype=dtype)
        for window, of_values in enumerate(of_attended):
            weights = windows.weights(q[window], k[window])
            if attended is not None:
                torch.bmm(weights, v[window], out=attended[window])
            torch.bmm(weights.transpose(1, 2), of_values, out=of_v[window])
            of_logits = scratch("of_weights", *weights.shape, dtype=dtype)
            torch.bmm(of_values, v[window].transpose(1, 2), out=of_logits)
            torch.ops.aten._softmax_backward_data.out(of_logits, weights, -1, dtype, grad_input=of_logits)
            scaled_product(of_logits, k[window, ..., :used], windows.scale, of_q[window])
            scaled_product(of_logits.transpose(1, 2), q[window, ..., : attn.head_dim], windows.scale, of_k[window])
        self._through_positions(q, of_q)
        of_qkv = scratch("wide", *qkv.shape, dtype=dtype)
        of_each = of_qkv.view(len(q), -1, 3, *heads[1::2]).permute(2, 0, 3, 1, 4)
        for to, gradient in zip(of_each, (of_q[..., : attn.head_dim], of_k, of_v), strict=True):
            to.copy_(gradient)
        joined = None
        if attended is not None:
            joined = (attended + windows.qkv_bias[2]).transpose(1, 2).reshape(rows.shape)
        self.sums.add_linear(PROJ, of_rows, joined)
        self.sums.add_linear(QKV, of_qkv, self.norm(rows) if self.sums.wants(QKV) else None)
        return torch.mm(of_qkv, windows.qkv_weight, out=scratch("narrow", *rows.shape, dtype=dtype))

    def _through_positions(self, q: Tensor, of_q: Tensor) -> None:
        """Adds to the gradient of queries what comes through their position terms, and sums that of the offsets."""
        windows = self.windows
        of_products = self.scratch("offsets", q[..., 0].numel(), len(windows.offsets), dtype=q.dtype).zero_()
        for columns, own in windows.by_axis(of_q, of_products):
            own.copy_(columns)
        queries, of_queries = (t.flatten(0, 2)[:, : self.attn.head_dim] for t in (q, of_q))
        of_queries.addmm_(of_products, windows.offsets)
        if self.of_offsets is not None:
            self.of_offsets.addmm_(of_products.t(), queries)
