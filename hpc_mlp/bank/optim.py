"""One optimizer for a whole bank: torch's fused kernels, and `rules`, over slices of the stacked
tensors.

State tensors have the shape of their parameter, so a member's state is a row, like its weights. On
a CPU the large weight gradients of stacked layers are formed here, block by block, each just before
its update (see `StackedLinear`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from hpc_mlp.bank.bank import Bank, ParamGroup, param_group_of, stream_of
from hpc_mlp.bank.clip import Clipping
from hpc_mlp.bank.linear import StackedLinear
from hpc_mlp.bank.rules import Rate, lion, muon
from hpc_mlp.bank.stack import StackedMLP
from hpc_mlp.config.plan import RunSpec
from hpc_mlp.config.sections import OptimConfig
from hpc_mlp.machine.device import branch

# The best of 0.4–25 MB for 12288×512 weights on 2 cores with 1 MB of L2 each (10.1 ms a step;
# undivided 12.0).
BLOCK_BYTES = 3 << 20

# Floats in the widest vector register (AVX-512).
VECTOR = 16


@dataclass
class _Update:
    """Slices of tensors that one kernel call updates: parallel lists."""

    # Position in `BankOptimizer.param_groups`.
    param_group: int
    optim: OptimConfig
    # Of `optim.name`; "adamw" for what Muon leaves to it.
    rule: str
    decay: float
    parameters: list[Tensor] = field(default_factory=list)
    first: list[Tensor] = field(default_factory=list)
    second: list[Tensor] = field(default_factory=list)
    # (tensor, rows)
    gradients: list[tuple[str, slice | None]] = field(default_factory=list)

    def apply(self, gradients: list[Tensor], counts: list[Tensor], rate: Rate) -> None:
        optim = self.optim
        if self.rule in ("lion", "muon"):
            function = lion if self.rule == "lion" else muon
            function(self.parameters, gradients, self.first, optim, self.decay, rate)
            return
        if self.rule == "sgd":
            torch._fused_sgd_(
                self.parameters,
                gradients,
                self.first if optim.momentum else [],
                weight_decay=self.decay,
                momentum=optim.momentum,
                lr=rate,
                dampening=0.0,
                nesterov=optim.nesterov,
                maximize=False,
                is_first_step=False,
            )
            return
        kernel = torch._fused_adamw_ if self.rule == "adamw" else torch._fused_adam_
        kernel(
            self.parameters,
            gradients,
            self.first,
            self.second,
            [],
            counts,
            lr=rate,
            beta1=optim.betas[0],
            beta2=optim.betas[1],
            weight_decay=self.decay,
            eps=optim.eps,
            amsgrad=False,
            maximize=False,
        )


@dataclass
class _WeightBlock:
    """A part of a stacked weight, small enough that its gradient stays in the cache until it is
    used."""

    layer: StackedLinear
    members: slice
    rows: slice
    update: _Update
    # [v, rows, D], shared between blocks
    scratch: Tensor


def _laid_out_as(parameter: Tensor, gradient: Tensor | None) -> Tensor:
    """The fused kernels go through memory and heed no strides, which a gradient (of a convolution,
    say) may have."""
    if gradient is None:
        return torch.zeros_like(parameter)
    if gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)


def _together(layer: StackedLinear, spec: RunSpec) -> tuple[ParamGroup, object]:
    """Members of equal keys share a block: one update; their gradients' factors stand together."""
    apart = (stream_of(spec), spec.config.model.batchnorm) if layer.reads_images else None
    return param_group_of(spec), apart


def hidden_weights(bank: Bank) -> set[str]:
    """The weights that Muon updates, by the advice of its author: of each model's own order all but
    the first, which reads images, and the last, which gives the logits."""
    names: set[str] = set()
    for i, block in enumerate(bank.blocks):
        least = 3 if isinstance(block, StackedMLP) else 2
        weights = [f"blocks.{i}.{name}" for name, p in block.named_parameters() if p.dim() >= least]
        names.update(weights[1:-1])
    return names


class BankOptimizer:
    """Adam, AdamW, SGD, Lion and Muon; rate, decay and clipping belong to the member.

    `states`: the members' optimizer state (as `member_states` gives it) after `count` steps.
    `reduce` sums a list of gradients over the processes of data-parallel training, in place."""

    def __init__(
        self,
        bank: Bank,
        *,
        count: int = 0,
        states: Sequence[dict[str, Tensor]] | None = None,
        reduce: Callable[[list[Tensor]], None] | None = None,
    ) -> None:
        self.bank = bank
        self.reduce = reduce
        self.parameters = dict(bank.named_parameters())
        self.param_groups = list(dict.fromkeys(param_group_of(spec) for spec in bank.specs))
        device = next(iter(self.parameters.values())).device
        # One for all: members start together.
        self.count = torch.full((), float(count), device=device)
        self.moments: dict[str, dict[str, Tensor]] = {"first": {}, "second": {}}
        for held in self.moments.values():
            for name, parameter in self.parameters.items():
                held[name] = torch.zeros_like(parameter, requires_grad=False)
        if states is not None:
            for mine, given in zip(self.member_states(), states, strict=True):
                for key, tensor in mine.items():
                    tensor.copy_(given[key])
        self.factored = {
            f"blocks.{i}.linears.{j}.weight": linear
            for i, block in enumerate(bank.blocks)
            if isinstance(block, StackedMLP)
            for j, linear in enumerate(block.linears)
            if isinstance(linear, StackedLinear)
        }
        self.hidden = hidden_weights(bank)
        self.clip = Clipping(bank, self.parameters, device)
        # Clipping needs the whole gradient at once; GPUs have no use for small blocks.
        blockwise = not self.clip.blocks and branch(device) == "cpu"
        self.full = (
            {} if blockwise else {n: torch.zeros_like(self.parameters[n]) for n in self.factored}
        )
        self.small = [name for name in self.parameters if name not in self.factored]
        self.updates: dict[tuple[int, str, float], _Update] = {}
        self.blocks = list(self._make_blocks()) if blockwise else []
        for name in self.parameters:
            if not (blockwise and name in self.factored):
                for param_group, rows in bank.member_slices(name, param_group_of):
                    self._add(name, param_group, rows)

    def member_states(self) -> list[dict[str, Tensor]]:
        """Each member's optimizer state, "first/<key>" and "second/<key>", as views."""
        states: list[dict[str, Tensor]] = [{} for _ in self.bank.specs]
        for kind, tensors in self.moments.items():
            for state, member in zip(states, self.bank.member_states(tensors), strict=True):
                state.update({f"{kind}/{key}": tensor for key, tensor in member.items()})
        return states

    @torch.no_grad()
    def backward(self, loss: Tensor) -> dict[str, Tensor]:
        """The gradients of the summed loss of all members, by parameter. Those that are formed
        block by block in `update` are not among them: their factors wait in the layers."""
        wanted = [self.parameters[name] for name in self.small]
        with torch.enable_grad():
            found = torch.autograd.grad(loss, wanted, allow_unused=True)
        gradients = {
            name: _laid_out_as(self.parameters[name], gradient)
            for name, gradient in zip(self.small, found, strict=True)
        }
        for name, full in self.full.items():
            self.factored[name].full_gradient(full)
            gradients[name] = full
        if self.reduce is not None:
            self.reduce([g for name, g in gradients.items() if not self.bank.is_summed(name)])
        return gradients

    @torch.no_grad()
    def update(self, gradients: dict[str, Tensor], rates: Sequence[Rate]) -> None:
        """Clip what `backward` gave and update every member once; `rates` are of `param_groups`."""
        self.clip(gradients)
        self.count += 1
        for update in self.updates.values():
            own = [
                gradients[n] if part is None else gradients[n][part] for n, part in update.gradients
            ]
            update.apply(own, [self.count] * len(own), rates[update.param_group])
        # There and back: what was updated last is still in the cache.
        self.blocks.reverse()
        for block in self.blocks:
            gradient = block.layer.weight_gradient(block.members, block.rows, block.scratch)
            block.update.apply([gradient], [self.count], rates[block.update.param_group])
        for layer in self.factored.values():
            layer.pending = []

    def _decay(self, name: str, optim: OptimConfig) -> float:
        # Its biases and norms are [V, H].
        stacked = isinstance(self.bank.block_of[name], StackedMLP)
        vector = self.parameters[name].dim() <= (2 if stacked else 1)
        return 0.0 if vector and not optim.decay_bias_and_norm else optim.weight_decay

    def _new_update(self, name: str, param_group: ParamGroup) -> _Update:
        optim, index = param_group.optim, self.param_groups.index(param_group)
        return _Update(index, optim, self._rule(name, optim), self._decay(name, optim))

    def _rule(self, name: str, optim: OptimConfig) -> str:
        return "adamw" if optim.name == "muon" and name not in self.hidden else optim.name

    def _views(self, name: str, rows: slice | None) -> list[Tensor]:
        tensors = [self.parameters[name].detach(), *(held[name] for held in self.moments.values())]
        return tensors if rows is None else [tensor[rows] for tensor in tensors]

    def _add(self, name: str, param_group: ParamGroup, members: slice) -> None:
        update = self._new_update(name, param_group)
        update = self.updates.setdefault((update.param_group, update.rule, update.decay), update)
        whole = self.parameters[name]
        parts = [None if members in (slice(None), slice(0, len(whole))) else members]
        if members != slice(None) and whole[0].numel() % VECTOR:
            # A kernel rounds what does not fill a vector differently: no member's bits may depend
            # on its neighbours.
            parts = [slice(row, row + 1) for row in range(members.start, members.stop)]
        for rows in parts:
            parameter, first, second = self._views(name, rows)
            if update.rule == "muon" and name not in self.factored:
                parameter, first = (t.view(1, len(t), -1) for t in (parameter, first))
            update.parameters.append(parameter)
            update.first.append(first)
            update.second.append(second)
            update.gradients.append((name, rows))

    def _make_blocks(self) -> Iterator[_WeightBlock]:
        scratch = torch.empty(0)
        for name, layer in self.factored.items():
            height, width = layer.weight.shape[1:]
            parts = self.bank.member_slices(name, partial(_together, layer))
            for (param_group, _), together in parts:
                # Of whole matrices alone: what is orthogonal is not its rows.
                whole = self._rule(name, param_group.optim) == "muon"
                rows = height if whole else max(1, min(height, BLOCK_BYTES // (4 * width)))
                several = BLOCK_BYTES // (4 * width * height) if width * height % VECTOR == 0 else 1
                members = max(1, several)
                if scratch.numel() < members * rows * width:
                    scratch = torch.empty(members * rows * width)
                for start in range(together.start, together.stop, members):
                    own = slice(start, min(start + members, together.stop))
                    for top in range(0, height, rows):
                        part = slice(top, min(top + rows, height))
                        update = self._new_update(name, param_group)
                        update.parameters, update.first, update.second = (
                            [view[:, part]] for view in self._views(name, own)
                        )
                        shape = update.parameters[0].shape
                        gradient = scratch[: shape.numel()].view(shape)
                        yield _WeightBlock(layer, own, part, update, gradient)
