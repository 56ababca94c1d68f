"""Stateless dropout for modules that stand beside the stacks (CNN, ResNet, the user's own)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hpc_mlp.machine.device import send
from hpc_mlp.machine.randomness import dropout_draws


@dataclass(frozen=True)
class BatchPosition:
    """Where a training step stands: this process holds images `start:stop` of the global batch of
    `batch_size`."""

    epoch: int
    step: int
    start: int
    stop: int
    batch_size: int

    def draws(self, seed: int, layer: int, width: int) -> Tensor:
        """The `dropout_draws` of this process's images, int16 [b, width] in the host's memory."""
        whole = dropout_draws(seed, self.epoch, self.step, layer, self.batch_size, width)
        return torch.from_numpy(whole[self.start : self.stop])


class StatelessDropout(nn.Dropout):
    """`nn.Dropout` whose mask is a function of (seed, epoch, step, layer, image's place in the
    global batch).

    `prepare` fills the draws of a step into a buffer of the device, one for each number of images,
    so that a captured step finds the next step's draws at the same address. How wide they are is
    known after the first step."""

    def __init__(self, rate: float, seed: int, layer: int) -> None:
        super().__init__(rate)
        self.seed = seed
        self.layer = layer
        self.position: BatchPosition | None = None
        # Images of this process → int16 [b, …].
        self.draws: dict[int, Tensor] = {}
        self.filled: BatchPosition | None = None

    def prepare(self, position: BatchPosition) -> None:
        """The next `forward` is of the training step at `position`."""
        self.position = position
        draws = self.draws.get(position.stop - position.start)
        if draws is not None:
            self._fill(draws, position)

    def forward(self, input: Tensor) -> Tensor:
        """[b, …] → [b, …]"""
        if not self.training or self.position is None:
            return input
        if self.filled != self.position:
            draws = torch.empty(input.shape, dtype=torch.int16, device=input.device)
            self.draws[len(input)] = draws
            self._fill(draws, self.position)
        dropped = min(65535, round(65536 * self.p))
        keep = self.draws[len(input)] >= dropped - 32768
        return input * (keep * (65536 / (65536 - dropped))).to(input.dtype)

    def _fill(self, draws: Tensor, position: BatchPosition) -> None:
        width = draws[0].numel() if len(draws) else 0
        own = position.draws(self.seed, self.layer, width).view_as(draws)
        draws.copy_(send(own, draws.device), non_blocking=True)
        self.filled = position


def make_stateless(module: nn.Module, seed: int) -> list[StatelessDropout]:
    """Replace every `nn.Dropout` inside `module` that drops anything; returns the new ones."""
    replaced: list[StatelessDropout] = []
    modules = [(name, child) for name, child in module.named_modules() if name]
    found = [(name, child) for name, child in modules if type(child) is nn.Dropout]
    for layer, (name, child) in enumerate(found):
        if child.p > 0:
            new = StatelessDropout(child.p, seed, layer=1000 + layer)
            module.set_submodule(name, new)
            replaced.append(new)
    return replaced
