"""Batch normalisation with PyTorch's semantics, stacked or over several processes.

One exception: PyTorch refuses to train on a batch with one value per channel, which a last batch of one image is. Here
such a batch is normalised with the running statistics, and leaves them as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from hpc_mlp.models.parts import BatchParts


class StackedBatchNorm(nn.Module):
    """`nn.BatchNorm1d` for the members in `members` (positions in a stack of V); the others pass through.

    With `parts`, statistics are those of the global batch, of which each process holds some rows: they gather it, so
    that all compute what one process would, bit for bit.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    rows: Tensor

    def __init__(self, norms: Sequence[nn.BatchNorm1d], members: Sequence[int], size: int) -> None:
        super().__init__()
        self.members = list(members)
        self.size = size
        self.parts: BatchParts | None = None
        self.eps = norms[0].eps
        self.momentum = norms[0].momentum or 0.1
        self.register_buffer("rows", torch.tensor(self.members), persistent=False)
        self.weight = nn.Parameter(torch.stack([norm.weight.detach() for norm in norms]))  # [R, H]
        self.bias = nn.Parameter(torch.stack([norm.bias.detach() for norm in norms]))  # [R, H]
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, torch.stack([getattr(norm, name) for norm in norms]))

    def forward(self, h: Tensor) -> Tensor:
        """[V, B, H] → [V, B, H]"""
        if len(self.members) == self.size:
            return self._normalise(h)
        first, last = self.members[0], self.members[-1] + 1
        if last - first == len(self.members):
            # split, not three slices: its backward is one concatenation instead of three sums with zeros
            before, normed, after = torch.split(h, [first, last - first, self.size - last])
            return torch.cat([before, self._normalise(normed), after])
        some = self._normalise(h.index_select(0, self.rows))
        return h.index_copy(0, self.rows, some.to(h.dtype))

    def _normalise(self, h: Tensor) -> Tensor:
        """[R, B, H] → [R, B, H], as one BatchNorm1d of R·H features"""
        if self.parts is not None and self.training:
            normed: Tensor = _GatheredNorm.apply(h, self.weight, self.bias, self)
            return normed
        return self.plain(h)

    def plain(self, h: Tensor) -> Tensor:
        """[R, B, H] → [R, B, H], of the whole batch"""
        members, batch, width = h.shape
        # Contiguous: other strides take another kernel, slower and with other rounding.
        flat = h.transpose(0, 1).reshape(batch, members * width).contiguous()
        weight, bias = self.weight.flatten(), self.bias.flatten()
        mean, var = self.running_mean.view(-1), self.running_var.view(-1)
        learning = self.training and batch > 1
        if learning:
            self.num_batches_tracked += 1
        y = F.batch_norm(flat, mean, var, weight, bias, learning, self.momentum, self.eps)
        return y.view(batch, members, width).transpose(0, 1)


class _GatheredNorm(torch.autograd.Function):
    """This process's rows of the batch normalisation of the gathered batch. Parameter gradients are global."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, weight: Tensor, bias: Tensor, norm: StackedBatchNorm) -> Tensor:
        assert norm.parts is not None
        ctx.parts, ctx.leaves = norm.parts, None
        ctx.whole = norm.parts.gather(h.detach()).requires_grad_()
        with torch.enable_grad():
            ctx.y = norm.plain(ctx.whole)
        ctx.parameters = (weight, bias)
        return norm.parts.mine(ctx.y.detach()).clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dy = ctx.parts.gather(grads[0])
        dh, dw, db = torch.autograd.grad(ctx.y, (ctx.whole, *ctx.parameters), dy)
        return ctx.parts.mine(dh), dw, db, None


class _AllSum(torch.autograd.Function):
    """Sum over processes; the gradient of a sum that everybody reads is the sum of everybody's gradients."""

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


def global_count(x: Tensor) -> Tensor:
    """Rows of x [b, F] over all processes."""
    count = torch.tensor(float(x.shape[0]), device=x.device)
    dist.all_reduce(count)
    return count


def single_value(x: Tensor, count: Tensor | None) -> bool:
    """Whether the (global) batch has one row: no statistics can be taken. Reads `count` only where that can be."""
    return x.shape[0] <= 1 and (count is None or int(count.item()) <= 1)


def sync_batch_norm(
    x: Tensor,
    count: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    momentum: float,
    eps: float,
) -> Tensor:
    """Batch normalisation of this process's part [b, F] (b may be 0) of a global batch of `count` rows; updates the
    running statistics `mean` and `var` [F] in place. Two passes, so that the variance does not cancel."""
    x32 = x.float()
    batch_mean = _AllSum.apply(x32.sum(0)) / count
    centred = x32 - batch_mean
    batch_var = _AllSum.apply(centred.square().sum(0)) / count
    with torch.no_grad():
        mean.lerp_(batch_mean, momentum)
        var.lerp_(batch_var * (count / (count - 1)), momentum)
    y = centred * torch.rsqrt(batch_var + eps) * weight + bias
    return cast(Tensor, y.to(x.dtype))


class BankNorm(nn.modules.batchnorm._BatchNorm):
    """Any BatchNorm layer; with `sync`, statistics are those of the global batch, also on CPUs."""

    sync = False

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        """[b, F, …] → [b, F, …]"""
        if not self.training or not self.track_running_stats:
            return super().forward(input)
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None
        rows = input.movedim(1, -1).reshape(-1, self.num_features)
        count = global_count(rows) if self.sync else None
        if single_value(rows, count):
            return F.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        if count is None:
            return super().forward(input)
        self.num_batches_tracked += 1
        flat = sync_batch_norm(
            rows,
            count,
            self.weight,
            self.bias,
            self.running_mean,
            self.running_var,
            self.momentum or 0.1,
            self.eps,
        )
        return flat.view(input.movedim(1, -1).shape).movedim(-1, 1)


def replace_norms(module: nn.Module) -> list[BankNorm]:
    """Replace the BatchNorm layers inside `module`, in place; parameters and buffers stay the same tensors."""
    replaced: list[BankNorm] = []
    for name, child in list(module.named_modules()):
        if type(child) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d) and name:
            new = BankNorm(
                child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats
            )
            new._parameters, new._buffers = child._parameters, child._buffers
            module.set_submodule(name, new.train(child.training))
            replaced.append(new)
    return replaced
