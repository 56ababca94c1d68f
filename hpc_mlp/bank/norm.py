"""Batch normalisation with PyTorch's semantics, stacked or over several processes.

One exception: PyTorch refuses to train on a batch with one value per channel, which a last batch of
one image is. Here such a batch is normalised with the running statistics, and leaves them as they
are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from hpc_mlp.bank import batchnorm
from hpc_mlp.bank.parts import BatchParts, slices_of_equal


@dataclass(frozen=True)
class Normed:
    """Neighbouring members, normalised, and what the gradient needs. `y` [v, b, H] are this
    process's images; the rest is of the whole batch."""

    # Of the parameters.
    rows: slice
    y: Tensor
    saved: batchnorm.Saved


class StackedBatchNorm(nn.Module):
    """`nn.BatchNorm1d` for the members in `members` (positions in a stack of V, ascending).

    With `parts`, statistics are those of the global batch, of which each process holds some rows:
    they gather it, so that all compute what one process would, bit for bit."""

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, norms: Sequence[nn.BatchNorm1d], members: Sequence[int], size: int) -> None:
        super().__init__()
        self.members = list(members)
        self.parts: BatchParts | None = None
        self.eps = norms[0].eps
        self.momentum = norms[0].momentum or 0.1
        # [R, H] each
        self.weight = nn.Parameter(torch.stack([norm.weight.detach() for norm in norms]))
        self.bias = nn.Parameter(torch.stack([norm.bias.detach() for norm in norms]))
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, torch.stack([getattr(norm, name) for norm in norms]))
        # Neighbouring members, and whether they are normalised.
        self.spans = slices_of_equal(v in self.members for v in range(size))

    def normalise(self, h: Tensor, members: slice) -> Normed:
        """h [v, b, H] of these members. No gradient is recorded."""
        first = self.members.index(members.start)
        rows = slice(first, first + len(h))
        parts = self.parts if self.training else None
        whole = h if parts is None else parts.gather(h)
        learning = self.training and whole.shape[1] > 1
        if learning:
            _rows(self.num_batches_tracked, rows).add_(1)
        running = batchnorm.Running(
            _rows(self.running_mean, rows), _rows(self.running_var, rows), self.momentum
        )
        y, saved = batchnorm.forward(
            whole, _rows(self.weight, rows), _rows(self.bias, rows), running, learning, self.eps
        )
        return Normed(rows, y if parts is None else parts.mine(y), saved)

    def gradient(self, dy: Tensor, normed: Normed) -> tuple[Tensor, Tensor, Tensor]:
        """dy [v, b, H] → gradients of the input [v, b, H], and of weight and bias [v, H] over the
        whole batch."""
        parts = self.parts if self.training else None
        whole = dy if parts is None else parts.gather(dy)
        dx, dw, db = batchnorm.backward(whole, _rows(self.weight, normed.rows), normed.saved)
        return dx if parts is None else parts.mine(dx), dw, db


def _rows(tensor: Tensor, rows: slice) -> Tensor:
    """Rows of [R, …]. Mostly these are all: every view costs a microsecond."""
    return tensor if rows.stop - rows.start == len(tensor) else tensor[rows]


class _AllSum(torch.autograd.Function):
    """Sum over processes; the gradient of a sum that all read is the sum of all gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0].contiguous().clone()
        dist.all_reduce(grad)
        return grad


class BankNorm(nn.modules.batchnorm._BatchNorm):
    """Any BatchNorm layer; with `sync`, statistics are those of the global batch, also on CPUs."""

    sync = False

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        """[b, F, …] → [b, F, …]"""
        if not self.training or not self.track_running_stats:
            return super().forward(input)
        rows = input.movedim(1, -1).reshape(-1, self.num_features)
        count: Tensor | None = None
        if self.sync:
            count = torch.tensor(float(len(rows)), device=rows.device)
            dist.all_reduce(count)
        # Of one row no statistics can be taken. A device is asked only where that can be.
        if len(rows) <= 1 and (count is None or int(count.item()) <= 1):
            fixed = self.running_mean, self.running_var, self.weight, self.bias
            return F.batch_norm(input, *fixed, False, 0.0, self.eps)
        if count is None:
            return super().forward(input)
        flat = self._normalised(rows, count)
        return flat.view(input.movedim(1, -1).shape).movedim(-1, 1)

    def _normalised(self, x: Tensor, count: Tensor) -> Tensor:
        """This process's part [b, F] (b may be 0) of a global batch of `count` rows. Two passes, so
        that the variance does not cancel."""
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        x32, momentum = x.float(), self.momentum or 0.1
        mean = _AllSum.apply(x32.sum(0)) / count
        centred = x32 - mean
        var = _AllSum.apply(centred.square().sum(0)) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(var * (count / (count - 1)), momentum)
        y = centred * torch.rsqrt(var + self.eps) * self.weight + self.bias
        return cast(Tensor, y.to(x.dtype))


def replace_norms(module: nn.Module) -> list[BankNorm]:
    """Replace the BatchNorm layers inside `module`, in place; parameters and buffers stay the same
    tensors."""
    replaced: list[BankNorm] = []
    for name, child in list(module.named_modules()):
        if type(child) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d) and name:
            shape, tracked = (child.num_features, child.eps), child.track_running_stats
            new = BankNorm(*shape, child.momentum, child.affine, tracked)
            new._parameters, new._buffers = child._parameters, child._buffers
            module.set_submodule(name, new.train(child.training))
            replaced.append(new)
    return replaced
