"""A linear layer of V members, whose weight gradients are left as two factors.

Legend: V members, S streams (distinct streams of images), B images of a batch, D inputs, H outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hpc_mlp.bank import matmul
from hpc_mlp.bank.parts import BatchParts, slices_of_equal

# Neighbouring members that read the same stream.
StreamMembers = tuple[int, slice]


@dataclass(frozen=True)
class WeightGradFactors:
    """The gradient of the weights of neighbouring members is dyᵀ x."""

    members: slice
    # [B, D], where the members share it, or [v, B, D].
    x: Tensor
    # [v, B, H]
    dy: Tensor


class StackedLinear(nn.Module):
    """y = x Wᵀ + b for V members. The gradient of W, dyᵀ x, is not formed by autograd: backward
    leaves its factors in `pending`, and the optimizer asks for `weight_gradient`, block by block,
    and then empties `pending`. So a block is still in the cache when it is used, and no gradient as
    large as the weights is ever written to memory and read back."""

    def __init__(self, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> None:
        super().__init__()
        # [V, H, D]
        self.weight = nn.Parameter(torch.stack(list(weights)), requires_grad=False)
        # [V, H]
        self.bias = nn.Parameter(torch.stack(list(biases)))
        # 0 for members whose output is batch-normalised: their bias has a gradient of exactly zero,
        # and what rounding leaves of it Adam would blow up to steps of ±lr, different on every
        # device and number of processes.
        self.register_buffer("bias_counts", torch.ones(len(weights), 1), persistent=False)
        # The same holds for pixels that never change, which are biases too. As dy sums to zero over
        # a batch, dyᵀ x is dyᵀ (x − reference) for any image; for a pixel that never changes, that
        # is zero to the bit. Of each stream: [S, 1, D]
        self.reference: Tensor | None = None
        # Then `pending` is apart by stream and by `normed`.
        self.reads_images = False
        self.normed = [False] * len(weights)
        # With several processes: the factors are gathered.
        self.parts: BatchParts | None = None
        self.pending: list[WeightGradFactors] = []

    def forward(self, x: Tensor, streams: Sequence[StreamMembers] | None = None) -> Tensor:
        """x [V, B, D], or of the streams [S, B, D]; `streams` says who reads which → [V, B, H]"""
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            x, weight, bias = x.to(dtype), self.weight.to(dtype), self.bias.to(dtype)
        else:
            weight, bias = self.weight, self.bias
        function = _MemberLinear if streams is None else _StreamLinear
        return cast(Tensor, function.apply(x, weight, bias, self, streams))

    def weight_gradient(self, members: slice, rows: slice, out: Tensor) -> Tensor:
        """d loss / d weight[members, rows] of the last backward, float32 [v, rows, D], in the
        scratch `out` or elsewhere. The members must be among those of one entry of `pending`."""
        for factors in self.pending:
            first = factors.members.start
            if first <= members.start and members.stop <= factors.members.stop:
                own = slice(members.start - first, members.stop - first)
                x = factors.x if factors.x.dim() == 2 else factors.x[own]
                dy = factors.dy[own, :, rows]
                return matmul.weight_gradient(dy, x, out, self.weight[0].numel())
        raise AssertionError(f"no gradient for members {members}")

    def gathered(self, x: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
        """The factors of the global batch: so all processes form the gradient that one process
        would, bit for bit, and the sum over processes is not needed. Small models are what this is
        for: x and dy are smaller than W."""
        return (x, dy) if self.parts is None else (self.parts.gather(x), self.parts.gather(dy))

    def bias_gradient(self, dy: Tensor) -> Tensor:
        """[V, B, H] → [V, H]"""
        return matmul.column_sums(dy) * self.get_buffer("bias_counts")

    def full_gradient(self, out: Tensor) -> None:
        """d loss / d weight of the last backward, written to `out` [V, H, D] float32."""
        for factors in self.pending:
            rows = out[factors.members]
            gradient = self.weight_gradient(factors.members, slice(None), rows)
            if gradient is not rows:
                rows.copy_(gradient)


class _MemberLinear(torch.autograd.Function):
    """Every member has its own input."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, layer: StackedLinear, streams: None
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.layer = layer
        return matmul.own_inputs(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dx = matmul.product(dy, weight) if ctx.needs_input_grad[0] else None
        # Without its history: left over by a step that failed, it would keep the autograd graph
        # alive, whose AccumulateGrad nodes belong to that step's stream and break the capture of a
        # CUDA graph on another one.
        x, dy = ctx.layer.gathered(x.detach(), dy)
        ctx.layer.pending = [WeightGradFactors(slice(0, len(x)), x, dy)]
        return dx, None, ctx.layer.bias_gradient(dy), None, None


class _StreamLinear(torch.autograd.Function):
    """Neighbours share an input: one product with all their weights. Images need no gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        layer: StackedLinear,
        streams: Sequence[StreamMembers],
    ) -> Tensor:
        ctx.save_for_backward(x)
        ctx.layer, ctx.streams = layer, streams
        outputs = [
            matmul.shared_input(x[stream], weight[members], bias[members])
            for stream, members in streams
        ]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        layer: StackedLinear = ctx.layer
        x, dy = layer.gathered(x, dy)
        shifted = x
        if layer.reference is not None and any(layer.normed):
            shifted = x - layer.reference.to(x.dtype)
        layer.pending = [
            WeightGradFactors(part, (shifted if normed else x)[stream], dy[part])
            for stream, members in ctx.streams
            for normed, part in slices_of_equal(layer.normed[members], members.start or 0)
        ]
        return None, None, layer.bias_gradient(dy), None, None
