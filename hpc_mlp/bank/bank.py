"""The bank: several runs trained together in one process. MLPs of equal widths are stacked, plain
ones and residual ones; other models stand beside them and share their batches.

Legend: V members, S streams, B images of a batch, K classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hpc_mlp.bank.dropout import BatchPosition, StatelessDropout, make_stateless
from hpc_mlp.bank.norm import BankNorm, replace_norms
from hpc_mlp.bank.parts import BatchParts, K, slices_of_equal
from hpc_mlp.bank.residual import StackedResidualMLP
from hpc_mlp.bank.stack import StackedMLP
from hpc_mlp.config.plan import RunSpec
from hpc_mlp.config.sections import AugmentConfig, OptimConfig, ScheduleConfig
from hpc_mlp.machine.device import sendable
from hpc_mlp.machine.processes import Processes
from hpc_mlp.models.registry import BUILT_IN, ImageShape, build_module, count_parameters

STACKS = {"mlp": StackedMLP, "residual_mlp": StackedResidualMLP}


@dataclass(frozen=True)
class StackKey:
    """What models have in common that can be stacked."""

    # One of `STACKS`.
    kind: str
    # Whatever decides the shapes of the weights.
    widths: tuple[int, ...]
    activation: str


@dataclass(frozen=True)
class BatchStream:
    """A stream of training images: members with equal streams see the same pixels in every step."""

    seed: int
    augment: AugmentConfig
    mixup: float
    fold: int | None = None


@dataclass(frozen=True)
class ParamGroup:
    """How a member's weights are updated: members with equal groups are updated together."""

    optim: OptimConfig
    schedule: ScheduleConfig
    ema: float
    # Schedules end with the run.
    epochs: int


def stream_of(spec: RunSpec) -> BatchStream:
    return BatchStream(spec.seed, spec.config.augment, spec.config.train.mixup, spec.fold)


def param_group_of(spec: RunSpec) -> ParamGroup:
    train = spec.config.train
    return ParamGroup(spec.config.optim, spec.config.schedule, train.ema, train.epochs)


def stack_key(spec: RunSpec) -> StackKey | str:
    """Runs of equal keys are stacked; a model that is no MLP stands alone, under its run's name."""
    model = spec.config.model
    if model.kind not in STACKS:
        return spec.name
    residual = (*model.hidden[:1], model.blocks, model.expansion)
    return StackKey(model.kind, model.hidden if model.kind == "mlp" else residual, model.activation)


def is_capturable(spec: RunSpec) -> bool:
    """Whether a training step of this run may be captured as a CUDA graph, and with it those of its
    bank: what a plugin's forward does on the host would happen once, at the capture."""
    return spec.config.model.kind in BUILT_IN


def bank_order(specs: Sequence[RunSpec]) -> list[RunSpec]:
    """The order in which a bank holds its members: side by side those that stack, share a parameter
    group, are batch-normalised, share a stream."""
    stacks, param_groups, streams = (
        list(dict.fromkeys(key(spec) for spec in specs))
        for key in (stack_key, param_group_of, stream_of)
    )

    def place(spec: RunSpec) -> tuple[int, int, bool, int]:
        model = spec.config.model
        return (
            stacks.index(stack_key(spec)),
            param_groups.index(param_group_of(spec)),
            model.batchnorm,
            streams.index(stream_of(spec)),
        )

    return sorted(specs, key=place)


class Bank(nn.Module):
    """`specs` must be in `bank_order`. Blocks are stacks and single modules, in the order of their
    members.

    `states`: the members' state dicts (of `member_states`); without, initial weights by seed."""

    def __init__(
        self,
        specs: Sequence[RunSpec],
        image_shape: ImageShape,
        num_classes: int,
        states: Sequence[dict[str, Tensor]] | None = None,
    ) -> None:
        super().__init__()
        self.specs = list(specs)
        self.streams = list(dict.fromkeys(stream_of(spec) for spec in specs))
        self.stream_index = [self.streams.index(stream_of(spec)) for spec in specs]
        # What members are validated on.
        self.folds = list(dict.fromkeys(spec.fold for spec in specs))
        self.fold_index = [self.folds.index(spec.fold) for spec in specs]
        self.parts: BatchParts | None = None
        self.blocks = nn.ModuleList()
        # Of each block.
        self.members: list[slice] = []
        # Of each member.
        self.num_parameters: list[int] = []
        self.dropouts: list[StatelessDropout] = []
        # Of the single modules.
        self.norms: list[BankNorm] = []
        for key, members in slices_of_equal(stack_key(spec) for spec in specs):
            modules = []
            for i in range(members.start, members.stop):
                state = states[i] if states is not None else None
                modules.append(_module(specs[i], image_shape, num_classes, state))
                self.num_parameters.append(count_parameters(modules[-1]))
            if isinstance(key, StackKey):
                self.blocks.append(STACKS[key.kind](modules, key.activation))
            else:
                self.dropouts += make_stateless(modules[0], specs[members.start].seed)
                self.norms += replace_norms(modules[0])
                self.blocks.append(modules[0])
            self.members.append(members)
        # Of each block: which of its members read which stream.
        self.block_streams = [slices_of_equal(self.stream_index[block]) for block in self.members]
        self.block_folds = [slices_of_equal(self.fold_index[block]) for block in self.members]
        # Of each tensor of the state dict.
        self.block_of = {
            f"blocks.{i}.{name}": block
            for i, block in enumerate(self.blocks)
            for name in block.state_dict()
        }

    def __len__(self) -> int:
        return len(self.specs)

    def prepare(self, position: BatchPosition, device: torch.device) -> list[dict[int, Tensor]]:
        """Set up the step at `position`. → for every block: hidden layer → dropout draws int16 [S,
        b, H] of this process's part of the batch, in the host's memory"""
        cache: dict[tuple[int, int], Tensor] = {}
        for dropout in self.dropouts:
            dropout.prepare(position)
        if self.parts is not None:
            self.parts.total = position.batch_size

        def draws(layer: int, width: int) -> Tensor:
            if (layer, width) not in cache:
                of_seed = {
                    seed: position.draws(seed, layer, width)
                    for seed in dict.fromkeys(stream.seed for stream in self.streams)
                }
                rows = [of_seed[stream.seed] for stream in self.streams]
                together = rows[0].unsqueeze(0) if len(rows) == 1 else torch.stack(rows)
                cache[layer, width] = sendable(together, device)
            return cache[layer, width]

        return [
            {layer: draws(layer, width) for layer, width in block.widths.items()}
            if isinstance(block, StackedMLP)
            else {}
            for block in self.blocks
        ]

    def forward(self, images: Tensor, draws: list[dict[int, Tensor]] | None = None) -> Tensor:
        """Training: images float32 [S, B, C, H, W], one batch a stream, with `draws`. Evaluation:
        [F, B, C, H, W], one batch for each of `folds`. → logits float32 [V, B, K]"""
        logits: list[Tensor] = []
        for i, block in enumerate(self.blocks):
            streams = self.block_streams[i] if draws is not None else self.block_folds[i]
            if isinstance(block, StackedMLP):
                logits.append(block(images, streams, draws[i] if draws is not None else None))
            else:
                logits.append(block(images[streams[0][0]]).unsqueeze(0))
        return (logits[0] if len(logits) == 1 else torch.cat(logits)).float()

    def set_reference(self, images: Tensor) -> None:
        """Any image of the dataset, the same for all processes and attempts, normalised as in each
        stream: float32 [S, C, H, W]."""
        for block in self.blocks:
            if isinstance(block, StackedMLP):
                block.set_reference(images)

    def share_batches(self, processes: Processes) -> None:
        """From here on every process holds a part of each batch; batch-norm statistics are those of
        the whole. The gradients of stacks are then the same on all processes; those of the other
        blocks must be summed."""
        self.parts = BatchParts(processes)
        for block in self.blocks:
            if isinstance(block, StackedMLP):
                block.share_batches(self.parts)
        for norm in self.norms:
            norm.sync = True

    def is_summed(self, parameter: str) -> bool:
        """Whether this parameter's gradient is that of the whole batch already."""
        return isinstance(self.block_of[parameter], StackedMLP)

    def tensor_slots(self) -> list[TensorSlot]:
        """Where each tensor of each member's plain state dict stands."""
        table: list[TensorSlot] = []
        for i, (block, members) in enumerate(zip(self.blocks, self.members, strict=True)):
            first = members.start
            if isinstance(block, StackedMLP):
                for name, slots in block.slots().items():
                    table += [
                        TensorSlot(first + v, key, f"blocks.{i}.{name}", index)
                        for index, v, key in slots
                    ]
            else:
                table += [
                    TensorSlot(first, name, f"blocks.{i}.{name}", None)
                    for name in block.state_dict()
                ]
        return table

    def member_slices(self, tensor: str, key: Callable[[RunSpec], K]) -> list[tuple[K, slice]]:
        """Neighbouring rows of one of the bank's tensors whose members have equal keys; slice(None)
        of a tensor that is not stacked."""
        slots = [slot for slot in self.tensor_slots() if slot.tensor == tensor]
        keys = [key(self.specs[slot.member]) for slot in slots]
        return [(keys[0], slice(None))] if slots[0].index is None else slices_of_equal(keys)

    def member_states(self, tensors: Mapping[str, Tensor] | None = None) -> list[dict[str, Tensor]]:
        """Each member's state dict under the names of its plain module, as views of the bank's
        tensors (or of others of the same names and shapes: an average, an optimizer's state)."""
        tensors = tensors if tensors is not None else self.state_dict()
        states: list[dict[str, Tensor]] = [{} for _ in self.specs]
        for row in self.tensor_slots():
            if row.tensor in tensors:
                tensor = tensors[row.tensor]
                states[row.member][row.key] = tensor if row.index is None else tensor[row.index]
        return states


@dataclass(frozen=True)
class TensorSlot:
    """Member `member`'s tensor `key` is `bank.state_dict()[tensor][index]` (all of it where index
    is None)."""

    member: int
    key: str
    tensor: str
    index: int | None


def _module(
    spec: RunSpec, image_shape: ImageShape, num_classes: int, state: dict[str, Tensor] | None
) -> nn.Module:
    model = spec.config.model
    if state is None:
        return build_module(model, image_shape, num_classes, spec.seed)
    # No need to draw weights that are then replaced.
    if model.kind in STACKS:
        with torch.device("meta"):
            module = build_module(model, image_shape, num_classes, spec.seed)
        module.load_state_dict(state, assign=True)
        return module
    module = build_module(model, image_shape, num_classes, spec.seed)
    module.load_state_dict(state)
    return module
