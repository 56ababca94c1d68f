"""Banks with random images, and the same members as plain torch modules trained alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from hpc_mlp.bank.bank import Bank, bank_order, stream_of
from hpc_mlp.bank.dropout import BatchPosition
from hpc_mlp.bank.loss import BankLoss
from hpc_mlp.bank.optim import BankOptimizer
from hpc_mlp.bank.step import StepBatch, TrainStep
from hpc_mlp.config.assignments import parse_set
from hpc_mlp.config.plan import RunSpec, parse_variants, plan_runs
from hpc_mlp.machine.randomness import dropout_draws
from hpc_mlp.models.registry import ImageShape, build_module

SHAPE, CLASSES = (1, 4, 4), 5


CPU = torch.device("cpu")


FOUR = "baseline,dropout,batchnorm,dropout_batchnorm"


def specs_of(variants: str, seeds: list[int], *sets: str) -> list[RunSpec]:
    return bank_order(plan_runs(parse_variants(variants), seeds, (), parse_set(sets)))


class BankUnderTest:
    """A bank with its step, fed with random images: each stream its own."""

    def __init__(
        self,
        specs: list[RunSpec],
        batch: int,
        shape: ImageShape = SHAPE,
        classes: int = CLASSES,
        graph: bool = False,
    ) -> None:
        self.specs, self.batch, self.shape, self.classes = specs, batch, shape, classes
        self.bank = Bank(specs, shape, classes)
        self.optimizer = BankOptimizer(self.bank)
        loss = BankLoss([spec.config.train for spec in specs], [[1] * classes], CPU)
        self.step = TrainStep(self.bank, self.optimizer, loss, "fp32", graph=graph)

    def data(self, t: int, size: int | None = None) -> tuple[Tensor, Tensor]:
        """Images [S, B, …] and labels [S, B] of step t."""
        size = size or self.batch
        parts = []
        for stream in self.bank.streams:
            generator = torch.Generator().manual_seed(1000 * stream.seed + t)
            images = torch.randn(size, *self.shape, generator=generator)
            parts.append((images, torch.randint(0, self.classes, (size,), generator=generator)))
        return torch.stack([p[0] for p in parts]), torch.stack([p[1] for p in parts])

    def train(self, steps: int, sizes: dict[int, int] | None = None) -> None:
        for t in range(steps):
            images, labels = self.data(t, (sizes or {}).get(t))
            position = BatchPosition(0, t, 0, images.shape[1], images.shape[1])
            rates = [param_group.optim.lr for param_group in self.optimizer.param_groups]
            self.step(StepBatch(position, images, labels), rates)


class Masked(nn.Module):
    """nn.Dropout with a given mask: [B, H] of bool, True is kept."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate, self.keep = rate, torch.ones(())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.keep / (1 - self.rate) if self.training else x


class ConstantFeatureSpy(nn.BatchNorm1d):
    """Remembers a feature that was the same for all images of a batch. It is normalised to nothing
    but rounding, and whether a ReLU lets that pass is chance: here it is exactly zero, in torch it
    may be above."""

    saw_constant = False

    def forward(self, input: Tensor) -> Tensor:
        self.saw_constant |= self.training and bool((input.amax(0) - input.amin(0) < 1e-6).any())
        return super().forward(input)


def plain(spec: RunSpec) -> nn.Sequential:
    """The model, written out with torch's own layers, the run's initial weights in it."""
    model = spec.config.model
    layers: list[nn.Module] = []
    width = int(np.prod(SHAPE))
    for hidden, rate in zip(model.hidden, model.dropout_rates(len(model.hidden)), strict=True):
        layers.append(nn.Linear(width, hidden))
        layers += [ConstantFeatureSpy(hidden)] if model.batchnorm else []
        layers.append(nn.ReLU())
        layers += [nn.Dropout(rate)] if rate else []
        width = hidden
    module = nn.Sequential(*layers, nn.Linear(width, CLASSES))
    module.load_state_dict(build_module(model, SHAPE, CLASSES, spec.seed).state_dict(), strict=True)
    return module


def train_alone(
    spec: RunSpec,
    bank: BankUnderTest,
    steps: int,
    loss: Callable[[Tensor, Tensor], Tensor] = nn.functional.cross_entropy,
) -> nn.Sequential:
    """The same steps with torch.optim.Adam, a plain module and the masks of `dropout_draws`."""
    module = plain(spec)
    masks: list[Masked] = []
    for i, layer in enumerate(module):
        if isinstance(layer, nn.Dropout):
            masks.append(Masked(layer.p))
            module[i] = masks[-1]
    optim = spec.config.optim
    optimizer = torch.optim.Adam(module.parameters(), lr=optim.lr, weight_decay=optim.weight_decay)
    stream = bank.bank.streams.index(stream_of(spec))
    for t in range(steps):
        images, labels = (part[stream] for part in bank.data(t))
        for i, mask in enumerate(masks):
            width = spec.config.model.hidden[i]
            draws = dropout_draws(spec.seed, 0, t, i, len(images), width)
            mask.keep = torch.from_numpy(draws.astype(np.int64)) >= round(65536 * mask.rate) - 32768
        optimizer.zero_grad()
        torch.autograd.backward(loss(module(images.flatten(1)), labels))
        for before, after in zip(module, list(module)[1:], strict=False):
            # Its gradient is zero, but for rounding that Adam blows up.
            if isinstance(after, nn.BatchNorm1d) and isinstance(before.bias, Tensor):
                before.bias.grad = torch.zeros_like(before.bias)
        optimizer.step()
    return module
