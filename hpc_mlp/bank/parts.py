"""The rows of a global batch that several processes hold between them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from hpc_mlp.machine.processes import Processes


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
