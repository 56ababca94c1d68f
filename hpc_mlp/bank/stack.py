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
from typing import cast

import torch
from torch import Tensor, nn

from hpc_mlp.bank.fused_hidden import ACTIVATIONS, Mask, hidden
from hpc_mlp.bank.linear import StackedLinear, StreamMembers
from hpc_mlp.bank.norm import StackedBatchNorm
from hpc_mlp.bank.parts import BatchParts
from hpc_mlp.machine.device import branch


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
        linears = []
        for i in range(depth + 1):
            layers = zip(modules, self.names, strict=True)
            plain = [cast(nn.Linear, module[names.linear[i]]) for module, names in layers]
            weights, biases = [p.weight.detach() for p in plain], [p.bias.detach() for p in plain]
            linears.append(StackedLinear(weights, biases))
        linears[0].reads_images = True
        normed = [v for v, names in enumerate(self.names) if names.norm]
        for linear in linears[:-1]:
            linear.get_buffer("bias_counts")[normed] = 0
            linear.normed = [v in normed for v in range(len(modules))]
        self.linears = nn.ModuleList(linears)
        self.widths = [linear.weight.shape[1] for linear in linears[:-1]]
        self.norms = nn.ModuleList(
            StackedBatchNorm(
                [cast(nn.BatchNorm1d, modules[v][self.names[v].norm[i]]) for v in normed],
                normed,
                len(modules),
            )
            for i in range(depth if normed else 0)
        )
        # Hidden layers in which some member drops units.
        self.dropout_layers = []
        # Hidden layer → member → units dropped of 65536.
        self.dropped: list[list[int]] = []
        for i in range(depth):
            dropped = [min(65535, round(65536 * names.rate(i))) for names in self.names]
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
            dropping = i in self.dropout_layers
            masks = [] if draws is None or not dropping else self.masks(i, draws[i], streams)
            h = self.linears[i + 1](hidden(h, norm, self.activation, masks))
        return cast(Tensor, h)

    def masks(self, layer: int, draws: Tensor, streams: Sequence[StreamMembers]) -> list[Mask]:
        """`draws` int16 [S, B, H] of a hidden layer → the factors of its members' outputs"""
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
        """Stacked tensor's name → for every row: row, member, name in that member's state dict."""
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

    def rate(self, i: int) -> float:
        """Of the dropout between Linear i and Linear i + 1."""
        between = range(self.linear[i], self.linear[i + 1])
        return next((rate for place, rate in self.dropout.items() if place in between), 0.0)


def _layer_names(module: nn.Sequential) -> _LayerNames:
    layers = list(enumerate(module))
    return _LayerNames(
        [i for i, layer in layers if isinstance(layer, nn.Linear)],
        [i for i, layer in layers if isinstance(layer, nn.BatchNorm1d)],
        {i: layer.p for i, layer in layers if isinstance(layer, nn.Dropout)},
    )
