"""The processes that train together, and what they sum."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Processes:
    """The processes that train one bank. Rank 0 writes the bank's files. One process needs no group."""

    rank: int = 0
    world_size: int = 1

    @property
    def lead(self) -> bool:
        return self.rank == 0

    @property
    def alone(self) -> bool:
        return self.world_size == 1

    def part(self, count: int) -> tuple[int, int]:
        """This process's part start:stop of `count` things, as `torch.tensor_split` cuts."""
        each, rest = divmod(count, self.world_size)
        start = self.rank * each + min(self.rank, rest)
        return start, start + each + (self.rank < rest)

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Sum each tensor over the processes, in place; small ones travel together."""
        if self.alone or not tensors:
            return
        small = [tensor for tensor in tensors if tensor.numel() < 1 << 16]
        for tensor in tensors:
            if tensor.numel() >= 1 << 16:
                dist.all_reduce(tensor)
        for dtype in dict.fromkeys(tensor.dtype for tensor in small):  # the same order everywhere
            group = [tensor for tensor in small if tensor.dtype == dtype]
            flat = torch.cat([tensor.reshape(-1) for tensor in group])
            dist.all_reduce(flat)
            first = 0
            for tensor in group:
                tensor.copy_(flat[first : first + tensor.numel()].view_as(tensor))
                first += tensor.numel()

    def gather(self, part: Tensor, dim: int, total: int) -> Tensor:
        """The parts (cut along `dim` as `part` cuts `total`) of all processes, joined."""
        rows = part.movedim(dim, 0)
        size = -(-total // self.world_size)
        padded = rows.new_zeros((size, *rows.shape[1:]))
        padded[: len(rows)] = rows
        joined = rows.new_empty((self.world_size * size, *rows.shape[1:]))
        dist.all_gather_into_tensor(joined, padded)
        bounds = [Processes(rank, self.world_size).part(total) for rank in range(self.world_size)]
        parts = [joined[r * size : r * size + stop - start] for r, (start, stop) in enumerate(bounds)]
        return torch.cat(parts).movedim(0, dim)

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether the flag is set on any process."""
        if self.alone:
            return flag
        tensor = torch.tensor(float(flag), device=device)
        dist.all_reduce(tensor)
        return bool(tensor.item())

    def wait(self) -> None:
        if not self.alone:
            dist.barrier()


def processes_sharing(device: torch.device) -> int:
    """How many of the processes started together hold their data in the memory of this one's device."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if device.type == "cpu" else 1  # a GPU each
