"""Stateless dropout for modules that stand beside the stacks (CNN, ResNet, the user's own)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hpc_mlp.randomness import dropout_draws
from hpc_mlp.transfer import send


@dataclass(frozen=True)
class StepPlace:
    """Where a training step stands: this process holds images `start:stop` of the global batch of `batch_size`."""

    epoch: int
    step: int
    start: int
    stop: int
    batch_size: int


class StatelessDropout(nn.Dropout):
    """`nn.Dropout` whose mask is a function of (seed, epoch, step, layer, image's place in the global batch)."""

    def __init__(self, rate: float, seed: int, layer: int) -> None:
        super().__init__(rate)
        self.seed = seed
        self.layer = layer
        self.place: StepPlace | None = None

    def forward(self, input: Tensor) -> Tensor:
        """[b, …] → [b, …]"""
        if not self.training or self.p == 0 or self.place is None:
            return input
        place = self.place
        width = input[0].numel() if len(input) else 0
        draws = dropout_draws(self.seed, place.epoch, place.step, self.layer, place.batch_size, width)
        dropped = min(65535, round(65536 * self.p))
        keep = send(torch.from_numpy(draws[place.start : place.stop]), input.device) >= dropped - 32768
        return input * (keep.view_as(input) * (65536 / (65536 - dropped))).to(input.dtype)


def make_stateless(module: nn.Module, seed: int) -> list[StatelessDropout]:
    """Replace every `nn.Dropout` inside `module`, in place; returns the new ones."""
    replaced: list[StatelessDropout] = []
    for name, child in list(module.named_modules()):
        if type(child) is nn.Dropout and name:
            new = StatelessDropout(child.p, seed, layer=1000 + len(replaced))
            module.set_submodule(name, new)
            replaced.append(new)
    return replaced
