"""What a bank's training holds in memory: weights, optimizer state, averages, loss sums."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hpc_mlp.bank.average import WeightAverage
from hpc_mlp.bank.bank import Bank, is_capturable
from hpc_mlp.bank.loss import BankLoss
from hpc_mlp.bank.optim import BankOptimizer
from hpc_mlp.bank.schedule import learning_rate
from hpc_mlp.bank.step import TrainStep
from hpc_mlp.config.plan import RunSpec
from hpc_mlp.machine.processes import Processes
from hpc_mlp.training.batches import num_steps
from hpc_mlp.training.loader import BatchLoader


class BankState:
    """Built for the members present after `count` steps, and built anew when some leave.

    `tensors`: what `member_tensors` gave for each of them, or their checkpoints hold; without: a
    new start."""

    def __init__(
        self,
        specs: Sequence[RunSpec],
        loader: BatchLoader,
        processes: Processes,
        *,
        count: int = 0,
        tensors: Sequence[dict[str, Tensor]] | None = None,
    ) -> None:
        manifest, device = loader.manifest, loader.device
        self.processes = processes
        shape = (manifest.channels, *manifest.image_size)
        weights = None if tensors is None else [part(held, "model/") for held in tensors]
        self.bank = Bank(specs, shape, len(manifest.classes), weights).to(device)
        self.bank.set_reference(loader.reference(self.bank.streams))
        if not processes.alone:
            self.bank.share_batches(processes)
        reduce = None if processes.alone else processes.sum
        self.optimizer = BankOptimizer(self.bank, count=count, states=tensors, reduce=reduce)
        self.average = WeightAverage(self.bank, tensors)
        configs = [spec.config.train for spec in specs]
        counts = [loader.class_counts(spec.fold) for spec in specs]
        summed = None if reduce is None else lambda t: reduce([t])
        loss = BankLoss(configs, counts, device, summed, [spec.name for spec in specs])
        graph = processes.alone and all(is_capturable(spec) for spec in specs)
        self.train_step = TrainStep(
            self.bank, self.optimizer, loss, configs[0].precision, graph=graph
        )
        self.steps_per_epoch = num_steps(loader.num_images, configs[0].batch_size)
        self._constant = all(
            param_group.schedule.name == "constant" and not param_group.schedule.warmup_epochs
            for param_group in self.optimizer.param_groups
        )
        self._rates: list[float] | None = None

    def rates(self, step: int) -> list[float]:
        """The learning rates of `optimizer.param_groups` at a global step (from 0)."""
        if self._rates is None or not self._constant:
            self._rates = [
                learning_rate(r.schedule, r.optim, step, self.steps_per_epoch, r.epochs)
                for r in self.optimizer.param_groups
            ]
        return self._rates

    def member_tensors(self) -> list[dict[str, Tensor]]:
        """The tensors of each member's checkpoint, as views (without "loss_sum")."""
        weights, optim, average = (
            held.member_states() for held in (self.bank, self.optimizer, self.average)
        )
        return [
            {f"model/{key}": t for key, t in weights[i].items()} | optim[i] | average[i]
            for i in range(len(weights))
        ]

    # ---- the loss summed up in the present epoch: a part of it on each process

    def loss_table(self) -> Tensor:
        """[W, V]: what each of the processes has summed up."""
        own = self.train_step.loss_sum
        table = torch.zeros(self.processes.world_size, len(own), device=own.device)
        table[self.processes.rank] = own
        self.processes.sum([table])
        return table

    def restore_losses(self, table: Tensor) -> None:
        """From a `loss_table` of any number of processes."""
        if len(table) == self.processes.world_size:
            self.train_step.loss_sum.copy_(table[self.processes.rank])
        elif self.processes.lead:
            self.train_step.loss_sum.copy_(table.sum(0))

    def losses(self) -> list[float]:
        """Summed over the processes."""
        total = self.train_step.loss_sum.clone()
        self.processes.sum([total])
        losses: list[float] = total.tolist()
        return losses

    def clear_losses(self) -> None:
        self.train_step.loss_sum.zero_()

    def broken_losses(self) -> list[str]:
        """The runs whose registered loss was not finite somewhere, though their logits were."""
        loss = self.train_step.loss
        if not loss.parts:
            return []
        flags = loss.broken.float()
        self.processes.sum([flags])
        return [name for name, flag in zip(loss.runs, flags.tolist(), strict=True) if flag]


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries whose names begin with `prefix`, without it."""
    return {
        key.removeprefix(prefix): tensor
        for key, tensor in tensors.items()
        if key.startswith(prefix)
    }


def best_weights(spec: RunSpec, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights that are evaluated and kept: the averages, where there are some."""
    weights = part(tensors, "model/")
    return weights | part(tensors, "average/") if spec.config.train.ema else weights
