"""Batch normalisation for some of the members of a stack, with PyTorch's semantics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


class StackedBatchNorm(nn.Module):
    """`nn.BatchNorm1d` for the members in `members` (positions in a stack of V); the others pass through.

    With `sync`, statistics are those of the global batch over all processes, of which each holds a part.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    rows: Tensor

    def __init__(self, norms: Sequence[nn.BatchNorm1d], members: Sequence[int], size: int) -> None:
        super().__init__()
        self.members = list(members)
        self.size = size
        self.sync = False
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
            return torch.cat([h[:first], self._normalise(h[first:last]), h[last:]])
        normed = self._normalise(h.index_select(0, self.rows))
        return h.index_copy(0, self.rows, normed.to(h.dtype))

    def _normalise(self, h: Tensor) -> Tensor:
        """[R, B, H] → [R, B, H], as one BatchNorm1d of R·H features"""
        members, batch, width = h.shape
        flat = h.transpose(0, 1).reshape(batch, members * width)
        weight, bias = self.weight.flatten(), self.bias.flatten()
        mean, var = self.running_mean.view(-1), self.running_var.view(-1)
        if self.training:
            self.num_batches_tracked += 1
        if self.training and self.sync:
            y = sync_batch_norm(flat, weight, bias, mean, var, self.momentum, self.eps)
        else:
            y = F.batch_norm(flat, mean, var, weight, bias, self.training, self.momentum, self.eps)
        return y.view(batch, members, width).transpose(0, 1)


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


def sync_batch_norm(
    x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, momentum: float, eps: float
) -> Tensor:
    """Batch normalisation of this process's part [b, F] (b may be 0) of a global batch; updates the running
    statistics `mean` and `var` [F] in place. Two passes, so that the variance does not cancel."""
    x32 = x.float()
    count = torch.tensor(float(x.shape[0]), device=x.device)
    dist.all_reduce(count)
    batch_mean = _AllSum.apply(x32.sum(0)) / count
    centred = x32 - batch_mean
    batch_var = _AllSum.apply(centred.square().sum(0)) / count
    with torch.no_grad():
        mean.lerp_(batch_mean, momentum)
        var.lerp_(batch_var * (count / (count - 1)), momentum)
    y = centred * torch.rsqrt(batch_var + eps) * weight + bias
    return cast(Tensor, y.to(x.dtype))


class _SyncNorm(nn.modules.batchnorm._BatchNorm):
    """Any BatchNorm layer with statistics over the global batch, also on CPUs."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        """[b, F, …] → [b, F, …]"""
        if not self.training:
            return super().forward(input)
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        rows = input.movedim(1, -1)
        flat = sync_batch_norm(
            rows.reshape(-1, self.num_features), self.weight, self.bias,
            self.running_mean, self.running_var, self.momentum or 0.1, self.eps,
        )  # fmt: skip
        return flat.view(rows.shape).movedim(-1, 1)


def make_sync(module: nn.Module) -> None:
    """Replace the BatchNorm layers inside `module`, in place; parameters and buffers stay the same tensors."""
    for name, child in list(module.named_modules()):
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d) and name:
            new = _SyncNorm(child.num_features, child.eps, child.momentum)
            new.weight, new.bias = child.weight, child.bias
            new.running_mean, new.running_var = child.running_mean, child.running_var
            new.num_batches_tracked = child.num_batches_tracked
            module.set_submodule(name, new.train(child.training))
