"""Exponential moving average of the weights (EMA) of the members that ask for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from hpc_mlp.bank.bank import Bank


class WeightAverage:
    """After step t: average ← d·average + (1 − d)·weights, d = min(ema, (1 + t) / (10 + t)), so
    that the first steps do not weigh for long. Running batch-norm statistics are averaged too."""

    def __init__(self, bank: Bank, states: Sequence[dict[str, Tensor]] | None = None) -> None:
        self.bank = bank
        self.decays = [spec.config.train.ema for spec in bank.specs]
        current = {
            name: tensor for name, tensor in bank.state_dict().items() if tensor.is_floating_point()
        }
        self.tensors = (
            {name: tensor.clone() for name, tensor in current.items()} if any(self.decays) else {}
        )
        # (decay, average, weights)
        self.pairs: list[tuple[float, Tensor, Tensor]] = []
        for name, average in self.tensors.items():
            for decay, rows in bank.member_slices(name, lambda spec: spec.config.train.ema):
                if decay:
                    self.pairs.append((decay, average[rows], current[name][rows]))
        if states is not None:
            for mine, given in zip(bank.member_states(self.tensors), states, strict=True):
                for key, tensor in mine.items():
                    # Else it has none and trained in other company before.
                    if f"average/{key}" in given:
                        tensor.copy_(given[f"average/{key}"])

    @torch.no_grad()
    def update(self, count: int) -> None:
        """Take in the weights after step `count` (from 1)."""
        for decay in {decay for decay, _, _ in self.pairs}:
            now = min(decay, (1 + count) / (10 + count))
            mine = [(average, weights) for d, average, weights in self.pairs if d == decay]
            torch._foreach_lerp_([a for a, _ in mine], [w for _, w in mine], 1 - now)

    def member_states(self) -> list[dict[str, Tensor]]:
        """Each member's averages, "average/<key>", as views; empty without EMA in this bank."""
        members = self.bank.member_states(self.tensors)
        return [{f"average/{key}": tensor for key, tensor in member.items()} for member in members]

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within: the bank holds the averages of the members that have one, for evaluation and
        saving."""
        saved = [(weights, weights.clone(), average) for _, average, weights in self.pairs]
        for weights, _, average in saved:
            weights.copy_(average)
        try:
            yield
        finally:
            for weights, before, _ in saved:
                weights.copy_(before)
