"""MLPs of equal widths as one stacked module: weights [V, out, in], one batched product for all
members.

Why not `torch.func.stack_module_state` and `vmap`? They stack equal modules only, where members
with and without batch normalisation or dropout share a stack here. Their dropout draws the masks of
all members from one generator, so that a run's depend on its company, as do the bits of one product
over all members (see `matmul`); here they are a function of seed and step. Running statistics would
know nothing of the other processes that hold the rest of a batch. And autograd writes every weight
gradient to memory, from where Adam reads it back, which costs more than the products (see
`StackedLinear`). `tools/bench.py train --vmap` measures the difference: docs/performance.md.

Legend: V members, S streams (distinct streams of images), B images of a batch, D inputs, H width, K
classes. Activations are [V, B, H] whatever their strides; the first layer leaves them batch-first
in memory, which is what batch normalisation wants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hpc_mlp.bank import matmul
from hpc_mlp.bank.fused_hidden import ACTIVATIONS, Mask, hidden
from hpc_mlp.bank.norm import StackedBatchNorm
from hpc_mlp.bank.parts import BatchParts, slices_of_equal
from hpc_mlp.machine.device import branch

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
        self.weight = nn.Parameter(torch.stack(list(weights)), requires_grad=False)  # [V, H, D]
        self.bias = nn.Parameter(torch.stack(list(biases)))  # [V, H]
        # 0 for members whose output is batch-normalised: their bias has a gradient of exactly zero,
        # and what rounding leaves of it Adam would blow up to steps of ±lr, different on every
        # device and number of processes.
        self.register_buffer("bias_counts", torch.ones(len(weights), 1), persistent=False)
        # The same holds for pixels that never change, which are biases too. As dy sums to zero over
        # a batch, dyᵀ x is dyᵀ (x − reference) for any image; for a pixel that never changes, that
        # is zero to the bit.
        self.reference: Tensor | None = None  # [D]
        # Then `pending` is apart by stream and by `normed`.
        self.reads_images = False
        self.normed = [False] * len(weights)
        # With several processes: the factors are gathered.
        self.parts: BatchParts | None = None
        self.pending: list[WeightGradFactors] = []

    def forward(self, x: Tensor, streams: Sequence[StreamMembers] | None = None) -> Tensor:
        """x [V, B, D], or of the streams [S, B, D], of which `streams` says who reads which →
        [V, B, H]"""
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
                dy = factors.dy[own, :, rows]  # [v, B, rows]
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
        dx = matmul.input_gradient(dy, weight) if ctx.needs_input_grad[0] else None
        # Without its history: left over by a step that failed, it would keep the autograd graph
        # alive, whose AccumulateGrad nodes belong to that step's stream and break the capture of a
        # CUDA graph on another one.
        x, dy = ctx.layer.gathered(x.detach(), dy)
        ctx.layer.pending = [WeightGradFactors(slice(0, len(x)), x, dy)]
        return dx, None, ctx.layer.bias_gradient(dy), None, None


class _StreamLinear(torch.autograd.Function):
    """Neighbouring members share an input: one product with all their weights side by side. Images
    need no gradient."""

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
        shifted = (
            x - layer.reference.to(x.dtype)
            if layer.reference is not None and any(layer.normed)
            else x
        )
        layer.pending = [
            WeightGradFactors(part, (shifted if normed else x)[stream], dy[part])
            for stream, members in ctx.streams
            for normed, part in slices_of_equal(layer.normed[members], members.start or 0)
        ]
        return None, None, layer.bias_gradient(dy), None, None


class StackedMLP(nn.Module):
    """V MLPs (see `models.mlp`) of equal widths and activation. Dropout rates and batch
    normalisation differ by member.

    `modules` are plain MLPs, whose weights are stacked here; `slots` tells where each of them
    went. What they compute, in plain autograd, is `train_alone` of tests/support/banks.py, which
    the tests hold it to."""

    def __init__(self, modules: Sequence[nn.Sequential], activation: str) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.names = [_layer_names(module) for module in modules]
        depth = len(self.names[0].linear) - 1
        linears = [
            [cast(nn.Linear, module[i]) for i in names.linear]
            for module, names in zip(modules, self.names, strict=True)
        ]
        self.linears = nn.ModuleList(
            StackedLinear(
                [row[i].weight.detach() for row in linears],
                [row[i].bias.detach() for row in linears],
            )
            for i in range(depth + 1)
        )
        cast(StackedLinear, self.linears[0]).reads_images = True
        normed = [v for v, names in enumerate(self.names) if names.norm]
        for linear in list(self.linears)[:-1]:
            assert isinstance(linear, StackedLinear)
            linear.get_buffer("bias_counts")[normed] = 0
            linear.normed = [v in normed for v in range(len(modules))]
        self.norms = nn.ModuleList(
            StackedBatchNorm(
                [cast(nn.BatchNorm1d, modules[v][self.names[v].norm[i]]) for v in normed],
                normed,
                len(modules),
            )
            for i in range(depth if normed else 0)
        )
        self.widths = [
            cast(StackedLinear, linear).weight.shape[1] for linear in list(self.linears)[:-1]
        ]
        # Hidden layers in which some member drops units.
        self.dropout_layers = []
        # Hidden layer → member → units dropped of 65536.
        self.dropped: list[list[int]] = []
        for i in range(depth):
            rates = [
                _rate(module, names, i) for module, names in zip(modules, self.names, strict=True)
            ]
            # Of 65536.
            dropped = [min(65535, round(65536 * rate)) for rate in rates]
            threshold = torch.tensor([n - 32768 for n in dropped], dtype=torch.int16)
            scale = torch.tensor([65536 / (65536 - n) for n in dropped])
            self.register_buffer(f"threshold{i}", threshold.view(-1, 1, 1), persistent=False)
            self.register_buffer(f"scale{i}", scale.view(-1, 1, 1), persistent=False)
            self.dropped.append(dropped)
            if any(dropped):
                self.dropout_layers.append(i)

    def forward(
        self,
        images: Tensor,
        streams: Sequence[StreamMembers],
        draws: dict[int, Tensor] | None = None,
    ) -> Tensor:
        """images float32 [S, B, …] → logits [V, B, K]. `draws`: for every layer of `dropout_layers`
        the `randomness.dropout_draws` of each stream, int16 [S, B, H]; None for evaluation."""
        h = self.linears[0](images.flatten(2), streams)
        for i in range(len(self.widths)):
            norm = cast(StackedBatchNorm, self.norms[i]) if self.norms else None
            masks = (
                self.masks(i, draws[i], streams)
                if draws is not None and i in self.dropout_layers
                else []
            )
            h = self.linears[i + 1](hidden(h, norm, self.activation, masks))
        return cast(Tensor, h)

    def masks(self, layer: int, draws: Tensor, streams: Sequence[StreamMembers]) -> list[Mask]:
        """`draws` int16 [S, B, H] of a hidden layer → what its members' outputs are multiplied
        with"""
        # Few large kernels.
        if branch(draws) == "cuda":
            if draws.shape[0] > 1:
                draws = torch.cat(
                    [draws[stream].expand(m.stop - m.start, -1, -1) for stream, m in streams]
                )
            keep: Tensor = draws >= self.get_buffer(f"threshold{layer}")
            return [(slice(None), keep * self.get_buffer(f"scale{layer}"))]
        masks: list[Mask] = []
        # Members of equal stream and rate drop the same units.
        made: dict[tuple[int, int], Tensor] = {}
        for stream, members in streams:
            for v in range(members.start, members.stop):
                dropped = self.dropped[layer][v]
                if not dropped:
                    continue
                if (stream, dropped) not in made:
                    keep = draws[stream] >= dropped - 32768
                    made[stream, dropped] = keep * (65536 / (65536 - dropped))
                masks.append((slice(v, v + 1), made[stream, dropped]))
        return masks

    def set_reference(self, image: Tensor) -> None:
        """Any normalised image [C, H, W]; the same for all processes (see
        `StackedLinear.reference`)."""
        first = self.linears[0]
        assert isinstance(first, StackedLinear)
        first.reference = image.flatten()

    def share_batches(self, parts: BatchParts) -> None:
        """From here on every process holds a part of each batch."""
        for module in [*self.linears, *self.norms]:
            assert isinstance(module, StackedLinear | StackedBatchNorm)
            module.parts = parts

    def slots(self) -> dict[str, list[tuple[int, int, str]]]:
        """Stacked tensor's name → (row, member, name in that member's own state dict) for every
        row."""
        table: dict[str, list[tuple[int, int, str]]] = {}
        for i in range(len(self.linears)):
            for key in ("weight", "bias"):
                rows = [(v, v, f"{names.linear[i]}.{key}") for v, names in enumerate(self.names)]
                table[f"linears.{i}.{key}"] = rows
        for i, norm in enumerate(self.norms):
            for key in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
                members = cast(StackedBatchNorm, norm).members
                table[f"norms.{i}.{key}"] = [
                    (r, v, f"{self.names[v].norm[i]}.{key}") for r, v in enumerate(members)
                ]
        return table


@dataclass(frozen=True)
class _LayerNames:
    linear: list[int]
    norm: list[int]
    # Position → rate.
    dropout: dict[int, float]


def _layer_names(module: nn.Sequential) -> _LayerNames:
    layers = list(enumerate(module))
    return _LayerNames(
        [i for i, layer in layers if isinstance(layer, nn.Linear)],
        [i for i, layer in layers if isinstance(layer, nn.BatchNorm1d)],
        {i: layer.p for i, layer in layers if isinstance(layer, nn.Dropout)},
    )


def _rate(module: nn.Sequential, names: _LayerNames, i: int) -> float:
    """Dropout rate between Linear i and Linear i + 1."""
    first, last = names.linear[i], names.linear[i + 1]
    return next((rate for place, rate in names.dropout.items() if first < place < last), 0.0)
