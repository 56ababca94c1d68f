"""What stands between two linear layers of a stack: batch normalisation, activation and dropout as
one function, with its gradient. One buffer is written instead of one for each of the three, for
each of the members that need it.

Legend: V members, B images of a batch, H width."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hpc_mlp.bank.norm import Normed, StackedBatchNorm
from hpc_mlp.machine.device import branch

aten = torch.ops.aten

# Elements that torch does not divide among threads (at::internal::GRAIN_SIZE).
_ONE_THREAD = 32768


@dataclass(frozen=True)
class Activation:
    """`forward(x, out)`; `backward(dy, x, out)`, where x is the activation's input. `even`: a
    value's bits do not depend on where it stands; torch's vectors and single values are
    approximated in different ways else."""

    forward: Callable[[Tensor, Tensor], object]
    backward: Callable[[Tensor, Tensor, Tensor], object]
    even: bool = True

    def run(self, function: Callable[..., object], *tensors: Tensor) -> None:
        """`forward` or `backward` of tensors [v, B, H]"""
        if self.even or branch(tensors[0]) == "cuda":
            function(*tensors)
            return
        # Pieces of one member each, which torch gives to one thread: their bits depend on their
        # shape alone.
        rows = max(1, _ONE_THREAD // tensors[0].shape[2])
        for member in zip(*tensors, strict=True):
            for parts in zip(*(tensor.split(rows) for tensor in member), strict=True):
                *given, out = parts
                result = torch.empty(out.shape, dtype=out.dtype)
                function(*(tensor.contiguous() for tensor in given), result)
                out.copy_(result)


ACTIVATIONS = {
    "relu": Activation(
        lambda x, out: aten.relu.out(x, out=out),
        lambda dy, x, out: aten.threshold_backward.grad_input(dy, x, 0, grad_input=out),
    ),
    "gelu": Activation(
        lambda x, out: aten.gelu.out(x, out=out),
        lambda dy, x, out: aten.gelu_backward.grad_input(dy, x, grad_input=out),
        even=False,
    ),
    "silu": Activation(
        lambda x, out: aten.silu.out(x, out=out),
        lambda dy, x, out: aten.silu_backward.grad_input(dy, x, grad_input=out),
        even=False,
    ),
    "tanh": Activation(
        lambda x, out: torch.tanh(x, out=out),
        lambda dy, x, out: aten.tanh_backward.grad_input(dy, x.tanh(), grad_input=out),
    ),
    "leaky_relu": Activation(
        lambda x, out: aten.leaky_relu.out(x, out=out),
        lambda dy, x, out: aten.leaky_relu_backward.grad_input(dy, x, 0.01, False, grad_input=out),
    ),
}


# Dropout of neighbouring members: they are multiplied with values [B, H] or [v, B, H], each of them
# 0 or 1 / (1 − p).
Mask = tuple[slice, Tensor]


def hidden(
    z: Tensor, norm: StackedBatchNorm | None, activation: Activation, masks: Sequence[Mask] = ()
) -> Tensor:
    """dropout(activation(norm(z))), [V, B, H] → contiguous. `norm` says which members it is for."""
    weight, bias = (None, None) if norm is None else (norm.weight, norm.bias)
    return cast(Tensor, _Hidden.apply(z, weight, bias, norm, activation, masks))


class _Hidden(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        norm: StackedBatchNorm | None,
        activation: Activation,
        masks: Sequence[Mask],
    ) -> Tensor:
        y = torch.empty(z.shape, dtype=z.dtype, device=z.device)
        ctx.norm, ctx.activation, ctx.masks = norm, activation, masks
        # Of the activation.
        inputs: list[tuple[slice, Tensor, Normed | None]] = []
        for is_normed, members in [(False, slice(None))] if norm is None else norm.spans:
            x, normed = z[members], None
            if norm is not None and is_normed:
                normed = norm.normalise(x, members)
                x = normed.y
            activation.run(activation.forward, x, y[members])
            inputs.append((members, x, normed))
        ctx.inputs = inputs
        for members, values in masks:
            y[members].mul_(values)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        dz = torch.empty(dy.shape, dtype=dy.dtype, device=dy.device)
        if ctx.masks:
            dy = dy.clone(memory_format=torch.contiguous_format)
            for members, values in ctx.masks:
                dy[members].mul_(values)
        norm: StackedBatchNorm | None = ctx.norm
        activation: Activation = ctx.activation
        # Their gradients.
        weights, biases = [], []
        for members, x, normed in ctx.inputs:
            if norm is None or normed is None:
                activation.run(activation.backward, dy[members], x, dz[members])
                continue
            # Batch first, as the norm wants it.
            before = torch.empty_like(x)
            activation.run(activation.backward, dy[members], x, before)
            dz[members], dw, db = norm.gradient(before, normed)
            weights.append(dw)
            biases.append(db)
        return dz, _joined(weights), _joined(biases), None, None, None


def _joined(parts: list[Tensor]) -> Tensor | None:
    return (parts[0] if len(parts) == 1 else torch.cat(parts)) if parts else None
