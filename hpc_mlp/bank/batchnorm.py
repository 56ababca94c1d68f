"""Batch normalisation of a stack's members (Ioffe and Szegedy, arXiv 1502.03167) and its gradient.

On a CPU the sums are taken in an order that depends neither on the number of threads nor on the
other members, so that a run's bits are the same on any number of cores and in any company. torch's
kernel gives each thread a part of the batch, whose number shows in the last bits; its speed is
about the same. On a GPU it is torch's kernel.

Legend: v members, B images of a batch, H width."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hpc_mlp.bank.matmul import column_sums
from hpc_mlp.machine.device import branch


@dataclass(frozen=True)
class Running:
    """What evaluation normalises with, [v, H] each; updated in place."""

    mean: Tensor
    var: Tensor
    momentum: float

    def flat(self) -> tuple[Tensor, Tensor]:
        """[v·H] each"""
        return self.mean.view(-1), self.var.view(-1)


@dataclass(frozen=True)
class Saved:
    """What the gradient needs: x − mean [v, B, H] (on a GPU: x [B, v·H]), mean and 1 / σ [v, H] (on
    a GPU [v·H])"""

    x: Tensor
    mean: Tensor
    inverse_std: Tensor
    running: Running
    learning: bool
    eps: float


def forward(
    x: Tensor, weight: Tensor, bias: Tensor, running: Running, learning: bool, eps: float
) -> tuple[Tensor, Saved]:
    """x [v, B, H] → (x − mean) / σ · weight + bias of x's dtype. `learning`: with the batch's
    statistics, of which the running ones take their share; else with the running ones."""
    if branch(x) == "cuda":
        return _native_forward(x, weight, bias, running, learning, eps)
    wide = x.float()
    batch = x.shape[1]
    if learning:
        mean = column_sums(wide).div_(batch)
        centred = wide - mean.unsqueeze(1)
        squares = column_sums(centred.square())
        inverse_std = squares.div(batch).add_(eps).rsqrt_()
        # Not lerp: where a kernel multiplies and adds at once, what does not fill a vector is
        # rounded differently.
        running.mean.mul_(1 - running.momentum).add_(mean.mul(running.momentum))
        running.var.mul_(1 - running.momentum).add_(squares.mul_(running.momentum / (batch - 1)))
    else:
        mean = running.mean
        centred = wide - mean.unsqueeze(1)
        inverse_std = running.var.add(eps).rsqrt_()
    y = (centred * (inverse_std * weight).unsqueeze(1)).add_(bias.unsqueeze(1))
    return y.to(x.dtype), Saved(centred, mean, inverse_std, running, learning, eps)


def backward(dy: Tensor, weight: Tensor, saved: Saved) -> tuple[Tensor, Tensor, Tensor]:
    """dy [v, B, H] → gradients of x [v, B, H] in dy's dtype, of weight and of bias [v, H]"""
    if branch(dy) == "cuda":
        return _native_backward(dy, weight, saved)
    wide = dy.float()
    batch, centred, inverse_std = dy.shape[1], saved.x, saved.inverse_std
    db = column_sums(wide)
    dot = column_sums(wide * centred)
    dw = dot * inverse_std
    scale = (inverse_std * weight).unsqueeze(1)
    if not saved.learning:
        return (wide * scale).to(dy.dtype), dw, db
    dx = centred * (dw * inverse_std).div_(-batch).unsqueeze(1)
    dx.add_(wide).sub_(db.div(batch).unsqueeze(1)).mul_(scale)
    return dx.to(dy.dtype), dw, db


def _native_forward(
    x: Tensor, weight: Tensor, bias: Tensor, running: Running, learning: bool, eps: float
) -> tuple[Tensor, Saved]:
    members, batch, width = x.shape
    flat = x.transpose(0, 1).reshape(batch, members * width).contiguous()
    affine, statistics = (weight.view(-1), bias.view(-1)), running.flat()
    y, mean, inverse_std = torch.native_batch_norm(
        flat, *affine, *statistics, learning, running.momentum, eps
    )
    saved = Saved(flat, mean, inverse_std, running, learning, eps)
    return y.view(batch, members, width).transpose(0, 1), saved


def _native_backward(dy: Tensor, weight: Tensor, saved: Saved) -> tuple[Tensor, Tensor, Tensor]:
    members, batch, width = dy.shape
    flat = dy.transpose(0, 1).reshape(batch, members * width).contiguous()
    dx, dw, db = torch.ops.aten.native_batch_norm_backward(
        flat,
        saved.x,
        weight.view(-1),
        *saved.running.flat(),
        saved.mean,
        saved.inverse_std,
        saved.learning,
        saved.eps,
        [True, True, True],
    )
    return (
        dx.view(batch, members, width).transpose(0, 1),
        dw.view(members, width),
        db.view(members, width),
    )
