"""Metrics of the user's own: a function of all of a split's probabilities and labels at once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hpc_mlp.config.registry import call
from hpc_mlp.errors import OwnCodeError
from hpc_mlp.machine.processes import Processes


def measure(
    names: Sequence[str], probabilities: Tensor, labels: Tensor, run: str
) -> dict[str, float]:
    """The registered metrics of float32 [N, K] and int64 [N] on the host, by name. OwnCodeError of
    `run` where a function fails or its number is not finite."""
    found = {}
    for name in names:
        # What a function does to its arguments, the next one does not see.
        value = call("metric", name, (probabilities.clone(), labels.clone()), [run])
        try:
            found[name] = float(value)
        except (TypeError, ValueError, RuntimeError):
            what = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise OwnCodeError(
                f"metric {name!r} gives {what}; one number is needed.", [run]
            ) from None
        if not math.isfinite(found[name]):
            raise OwnCodeError(
                f"metric {name!r} gives {found[name]} for {len(labels)} images; a finite number is "
                "needed.",
                [run],
            )
    return found


class OwnMetrics:
    """Collects what the metrics `names` of each member need, batch by batch."""

    def __init__(self, names: Sequence[Sequence[str]]) -> None:
        self.names = list(names)
        self.members = [i for i, own in enumerate(names) if own]
        self.probabilities: dict[int, list[Tensor]] = {i: [] for i in self.members}
        self.labels: dict[int, list[Tensor]] = {i: [] for i in self.members}

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """logits float32 [V, B, K], labels int64 [V, B]; those of −1 are left out"""
        for i in self.members:
            probabilities, truth = logits[i].softmax(1).cpu(), labels[i].cpu()
            self.probabilities[i].append(probabilities[truth >= 0])
            self.labels[i].append(truth[truth >= 0])

    def values(
        self, processes: Processes, runs: Sequence[str], skip: Sequence[bool]
    ) -> list[dict[str, float]]:
        """Of each member, the same on all processes; none of those to `skip`. OwnCodeError as of
        `measure`."""
        found: list[dict[str, float]] = [{} for _ in self.names]
        for i in self.members:
            labels = _joined(self.labels[i], processes)
            probabilities = _joined(self.probabilities[i], processes)
            if not skip[i]:
                found[i] = measure(self.names[i], probabilities, labels, runs[i])
        return found


def _joined(parts: Sequence[Tensor], processes: Processes) -> Tensor:
    """The rows of all processes, those of the first one first."""
    rows = torch.cat(list(parts))
    if processes.alone:
        return rows
    counts = torch.zeros(processes.world_size, dtype=torch.int64)
    counts[processes.rank] = len(rows)
    processes.sum([counts])
    first = int(counts[: processes.rank].sum())
    table = rows.new_zeros(int(counts.sum()), *rows.shape[1:])
    table[first : first + len(rows)] = rows
    processes.sum([table])
    return table
