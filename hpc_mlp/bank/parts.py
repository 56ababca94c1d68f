"""Parts of a bank's tensors: neighbouring members that are alike, the images of this process."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from hpc_mlp.machine.processes import Processes

K = TypeVar("K")


def slices_of_equal(keys: Iterable[K], start: int = 0) -> list[tuple[K, slice]]:
    """Neighbours of equal keys, as slices of positions that count from `start`."""
    slices: list[tuple[K, slice]] = []
    for key, group in itertools.groupby(keys):
        stop = start + len(list(group))
        slices.append((key, slice(start, stop)))
        start = stop
    return slices


@dataclass
class BatchParts:
    """`total`: rows of the present global batch, set before every step."""

    processes: Processes
    total: int = 0

    def gather(self, part: Tensor) -> Tensor:
        """This process's [V, b, …] → the whole [V, B, …]"""
        return self.processes.gather(part, 1, self.total)

    def mine(self, whole: Tensor) -> Tensor:
        """[V, B, …] → [V, b, …]"""
        start, stop = self.processes.part(self.total)
        return whole[:, start:stop]
