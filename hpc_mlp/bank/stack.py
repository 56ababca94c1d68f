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
    the tests hold it to.

    Other kinds of MLP extend it, and name their `linears`: of each layer the name in each
    member."""

    def __init__(
        self,
        modules: Sequence[nn.Module],
        activation: str,
        linears: Sequence[Sequence[str]] | None = None,
    ) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.linears, self.norms = nn.ModuleList(), nn.ModuleList()
        # Of each norm: the names in the members that have it.
        self.norm_names: list[list[str]] = []
        # Dropout layer → units; of those in which some member drops units.
        self.widths: dict[int, int] = {}
        # Dropout layer → member → units dropped of 65536.
        self.dropped: dict[int, list[int]] = {}
        found = [] if linears else [_layer_names(cast(nn.Sequential, m)) for m in modules]
        self.linear_names = linears or list(zip(*(names.linear for names in found), strict=True))
        for names in self.linear_names:
            named = zip(modules, names, strict=True)
            plain = [cast(nn.Linear, module.get_submodule(name)) for module, name in named]
            weights, biases = [p.weight.detach() for p in plain], [p.bias.detach() for p in plain]
            self.linears.append(StackedLinear(weights, biases))
        cast(StackedLinear, self.linears[0]).reads_images = True
        if found:
            self._add_between(cast(Sequence[nn.Sequential], modules), found)

    def _add_between(self, modules: Sequence[nn.Sequential], found: Sequence[_LayerNames]) -> None:
        """Batch normalisation and dropout, which some members have."""
        normed = [v for v, names in enumerate(found) if names.norm]
        for i, linear in enumerate(self.linears[:-1]):
            assert isinstance(linear, StackedLinear)
            linear.get_buffer("bias_counts")[normed] = 0
            linear.normed = [v in normed for v in range(len(modules))]
            if normed:
                names = [found[v].norm[i] for v in normed]
                norms = [
                    cast(nn.BatchNorm1d, modules[v].get_submodule(name))
                    for v, name in zip(normed, names, strict=True)
                ]
                self.add_norm(StackedBatchNorm(norms, normed, len(modules)), names)
            self.add_dropout(i, linear.weight.shape[1], [names.rate(i) for names in found])

    def add_norm(self, norm: nn.Module, names: list[str]) -> None:
        """`norm` has `members`."""
        self.norms.append(norm)
        self.norm_names.append(names)

    def add_dropout(self, layer: int, width: int, rates: Sequence[float]) -> None:
        """`layer` is that of `randomness.dropout_draws`."""
        dropped = [min(65535, round(65536 * rate)) for rate in rates]
        if not any(dropped):
            return
        threshold = torch.tensor([n - 32768 for n in dropped], dtype=torch.int16)
        scale = torch.tensor([65536 / (65536 - n) for n in dropped])
        self.register_buffer(f"threshold{layer}", threshold.view(-1, 1, 1), persistent=False)
        self.register_buffer(f"scale{layer}", scale.view(-1, 1, 1), persistent=False)
        self.widths[layer], self.dropped[layer] = width, dropped

    def forward(
        self,
        images: Tensor,
        streams: Sequence[StreamMembers],
        draws: dict[int, Tensor] | None = None,
    ) -> Tensor:
        """images float32 [S, B, …] → logits [V, B, K]. `draws`: for every layer of `widths` the
        `randomness.dropout_draws` of each stream, int16 [S, B, H]; None for evaluation."""
        first, *others = self.linears
        h = first(images.flatten(2), streams)
        for i, linear in enumerate(others):
            norm = cast(StackedBatchNorm, self.norms[i]) if self.norms else None
            h = linear(hidden(h, norm, self.activation, self.masks(i, draws, streams)))
        return cast(Tensor, h)

    def masks(
        self, layer: int, given: dict[int, Tensor] | None, streams: Sequence[StreamMembers]
    ) -> list[Mask]:
        """The draws of `forward` → the factors of the outputs of its members of a dropout layer"""
        if given is None or layer not in self.dropped:
            return []
        draws = given[layer]
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

    def set_reference(self, images: Tensor) -> None:
        """Any image, normalised as in each stream, [S, C, H, W]; the same for all processes (see
        `StackedLinear.reference`)."""
        first = self.linears[0]
        assert isinstance(first, StackedLinear)
        first.reference = images.flatten(1).unsqueeze(1)

    def share_batches(self, parts: BatchParts) -> None:
        """From here on every process holds a part of each batch."""
        for module in [*self.linears, *self.norms]:
            module.parts = parts

    def slots(self) -> dict[str, list[tuple[int, int, str]]]:
        """Stacked tensor's name → for every row: row, member, name in that member's state dict."""
        table: dict[str, list[tuple[int, int, str]]] = {}
        for i, names in enumerate(self.linear_names):
            for key in ("weight", "bias"):
                rows = [(v, v, f"{name}.{key}") for v, name in enumerate(names)]
                table[f"linears.{i}.{key}"] = rows
        for i, (norm, names) in enumerate(zip(self.norms, self.norm_names, strict=True)):
            named = list(zip(cast(StackedBatchNorm, norm).members, names, strict=True))
            for key in norm.state_dict():
                table[f"norms.{i}.{key}"] = [
                    (r, v, f"{name}.{key}") for r, (v, name) in enumerate(named)
                ]
        return table


@dataclass(frozen=True)
class _LayerNames:
    linear: list[str]
    norm: list[str]
    # Position → rate.
    dropout: dict[int, float]

    def rate(self, i: int) -> float:
        """Of the dropout between Linear i and Linear i + 1."""
        between = range(int(self.linear[i]), int(self.linear[i + 1]))
        return next((rate for place, rate in self.dropout.items() if place in between), 0.0)


def _layer_names(module: nn.Sequential) -> _LayerNames:
    layers = list(enumerate(module))
    return _LayerNames(
        [str(i) for i, layer in layers if isinstance(layer, nn.Linear)],
        [str(i) for i, layer in layers if isinstance(layer, nn.BatchNorm1d)],
        {i: layer.p for i, layer in layers if isinstance(layer, nn.Dropout)},
    )
