"""A bank on its validation images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from hpc_mlp.bank.metrics import MetricSums
from hpc_mlp.bank.own_metrics import OwnMetrics
from hpc_mlp.machine import stop
from hpc_mlp.machine.processes import Processes
from hpc_mlp.training.loader import BatchLoader
from hpc_mlp.training.members import Member
from hpc_mlp.training.state import BankState


@torch.no_grad()
def validate(
    members: Sequence[Member], state: BankState, loader: BatchLoader, processes: Processes
) -> tuple[MetricSums, list[dict[str, float]]]:
    """→ what was counted, and each member's metrics of the user's own. Raises Stopped when asked to
    stop."""
    sums = MetricSums(len(members), len(loader.manifest.classes), loader.device)
    own = OwnMetrics([member.metrics for member in members])
    bank = state.bank.eval()
    batches = loader.validation(bank.folds, processes)
    with state.average.applied():
        for images, labels in heeding(batches, processes):
            logits = bank(images)
            one = len(labels) == 1
            truth = labels.expand(len(bank), -1) if one else labels[bank.fold_index]
            sums.add(logits, truth, padded=loader.folds is not None)
            own.add(logits, truth)
    processes.sum(sums.tensors())
    diverged = [not math.isfinite(loss) for loss in sums.losses()]
    names = [member.spec.name for member in members]
    return sums, own.values(processes, names, skip=diverged)


def heeding(
    batches: Iterator[tuple[Tensor, Tensor]], processes: Processes
) -> Iterator[tuple[Tensor, Tensor]]:
    """Raises Stopped when asked to stop: of several processes, which would have to agree on the
    batch, each goes on to the end."""
    return stop.unless_stopped(batches) if processes.alone else batches
