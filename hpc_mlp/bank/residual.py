"""Residual MLPs (see `models.mlp`) of equal widths, blocks and activation as one stacked module.

Legend: V members, B images of a batch, H width."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hpc_mlp.bank.fused_hidden import hidden
from hpc_mlp.bank.linear import StackedLinear, StreamMembers
from hpc_mlp.bank.matmul import column_sums
from hpc_mlp.bank.parts import BatchParts
from hpc_mlp.bank.stack import StackedMLP

# The dropout layer of the first block, as of the first nn.Dropout of any model that is no MLP.
FIRST_DRAWS = 1000


class StackedLayerNorm(nn.Module):
    """`nn.LayerNorm` of V members (Ba et al., arXiv 1607.06450)"""

    def __init__(self, norms: Sequence[nn.LayerNorm]) -> None:
        super().__init__()
        self.members = list(range(len(norms)))
        self.eps = norms[0].eps
        # [V, H] each
        self.weight = nn.Parameter(torch.stack([norm.weight.detach() for norm in norms]))
        self.bias = nn.Parameter(torch.stack([norm.bias.detach() for norm in norms]))
        # With several processes: the gradients of weight and bias are those of the whole batch.
        self.parts: BatchParts | None = None

    def forward(self, x: Tensor) -> Tensor:
        """[V, B, H] → [V, B, H] of x's dtype"""
        return cast(Tensor, _LayerNorm.apply(x, self.weight, self.bias, self))


class _LayerNorm(torch.autograd.Function):
    """torch's kernels for the rows, each of which is one thread's. Weight and bias are the members'
    own, and the order of torch's sums for their gradients depends on the threads."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, norm: StackedLayerNorm
    ) -> Tensor:
        wide = x.float()
        normed, mean, inverse_std = torch.native_layer_norm(
            wide, wide.shape[2:], None, None, norm.eps
        )
        ctx.save_for_backward(wide, weight, normed, mean, inverse_std)
        ctx.parts = norm.parts
        return (normed * weight.unsqueeze(1)).add_(bias.unsqueeze(1)).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, normed, mean, inverse_std = ctx.saved_tensors
        parts: BatchParts | None = ctx.parts
        wide = dy.float()
        dx, _, _ = torch.ops.aten.native_layer_norm_backward(
            wide * weight.unsqueeze(1),
            x,
            x.shape[2:],
            mean,
            inverse_std,
            None,
            None,
            [True, False, False],
        )
        dw, db = (
            column_sums(part if parts is None else parts.gather(part))
            for part in (wide * normed, wide)
        )
        return dx.to(dy.dtype), dw, db, None


class StackedResidualMLP(StackedMLP):
    """V residual MLPs; dropout rates differ by member."""

    def __init__(self, modules: Sequence[nn.Module], activation: str) -> None:
        blocks = [
            f"blocks.{i}" for i, _ in enumerate(modules[0].get_submodule("blocks").children())
        ]
        inner = [f"{block}.{layer}" for block in blocks for layer in ("up", "down")]
        linears = ["embed", *inner, "head"]
        super().__init__(modules, activation, [[name] * len(modules) for name in linears])
        for name in [*(f"{block}.norm" for block in blocks), "norm"]:
            norms = [cast(nn.LayerNorm, module.get_submodule(name)) for module in modules]
            self.add_norm(StackedLayerNorm(norms), [name] * len(modules))
        for i, block in enumerate(blocks):
            drops = [module.get_submodule(f"{block}.dropout") for module in modules]
            width = cast(StackedLinear, self.linears[0]).bias.shape[1]
            self.add_dropout(FIRST_DRAWS + i, width, [cast(nn.Dropout, d).p for d in drops])

    def forward(
        self,
        images: Tensor,
        streams: Sequence[StreamMembers],
        draws: dict[int, Tensor] | None = None,
    ) -> Tensor:
        """As `StackedMLP.forward`"""
        embed, *inner, head = self.linears
        *norms, last = self.norms
        x = embed(images.flatten(2), streams)
        for i, norm in enumerate(norms):
            up, down = inner[2 * i : 2 * i + 2]
            y = down(hidden(up(norm(x)), None, self.activation))
            if masks := self.masks(FIRST_DRAWS + i, draws, streams):
                factors = torch.ones_like(y)
                for members, values in masks:
                    factors[members] = values
                y = y * factors
            x = x + y
        return cast(Tensor, head(last(x)))
