"""The processes that train together, and what they sum."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store, _get_default_store

from hpc_mlp.errors import RunError
from hpc_mlp.machine import ranks
from hpc_mlp.machine.liveness import Process, is_dead, this_process

# Between two looks for the others, at most: each takes 0.1 ms, and the last to come is seen so much
# later.
_LOOK_SECONDS = 0.05
# A process that is being killed closes its connections before it is gone.
_PATIENCE_SECONDS = 2.0
_meetings = itertools.count()
# torch renamed it with 2.14, and warns of the old name.
_all_gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)


@dataclass(frozen=True)
class Processes:
    """The processes that train one bank. Rank 0 writes its files. One alone needs no group."""

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
        # The same order everywhere.
        for dtype in dict.fromkeys(tensor.dtype for tensor in small):
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
        _all_gather(joined, padded)
        bounds = [Processes(rank, self.world_size).part(total) for rank in range(self.world_size)]
        parts = [
            joined[r * size : r * size + stop - start] for r, (start, stop) in enumerate(bounds)
        ]
        return torch.cat(parts).movedim(0, dim)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any process."""
        return self.any_of(flag)[0]

    def any_of(self, *flags: bool) -> list[bool]:
        """Which of the flags are set on any process: one message for all."""
        if self.alone:
            return list(flags)
        tensor = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(tensor)
        return [bool(count) for count in tensor.tolist()]

    def wait(self, check: Callable[[], None] = lambda: None) -> None:
        """Until all processes are here: see `meet`."""
        self.meet(0, check)

    def meet(self, word: int, check: Callable[[], None] = lambda: None) -> list[int]:
        """Until all processes are here, may it take hours; → what each of them brings. `check` is
        asked meanwhile.

        A collective of torch's would not do: it sees no signal while it waits, and gives up after
        its timeout. Here a stopped process is waited for. RunError where one of this machine has
        died."""
        if self.alone:
            return [word]
        meeting = f"meeting-{next(_meetings)}"
        with self._store() as store:
            store.set(f"process-{self.rank}", json.dumps(this_process()))
            store.set(f"{meeting}/{self.rank}", str(word))
            words = []
            for rank in range(self.world_size):
                self._await(store, rank, f"{meeting}/{rank}", check)
                words.append(int(store.get(f"{meeting}/{rank}")))
            store.set(f"{meeting}/{self.rank}/read", "")
            # The first process keeps the store: if it left, the others could not read on.
            for rank in range(self.world_size if self.lead else 0):
                self._await(store, rank, f"{meeting}/{rank}/read", check)
        return words

    def check(self) -> None:
        """RunError where another process has died, because of which something failed here."""
        end = time.monotonic() + _PATIENCE_SECONDS
        while not self.alone and time.monotonic() < end:
            with self._store() as store:
                for rank in range(self.world_size):
                    self._check(store, rank)
            time.sleep(_LOOK_SECONDS)

    def _await(self, store: Store, rank: int, key: str, check: Callable[[], None]) -> None:
        pause = 0.001
        while not store.check([key]):
            check()
            self._check(store, rank)
            time.sleep(pause)
            pause = min(2 * pause, _LOOK_SECONDS)

    def _check(self, store: Store, rank: int) -> None:
        """As far as it can be told: the process has been at a meeting, and is of this machine."""
        key = f"process-{rank}"
        if (
            rank != self.rank
            and store.check([key])
            and is_dead(Process.model_validate_json(store.get(key)))
        ):
            raise RunError(f"process {rank} of {self.world_size} has died.")

    @contextmanager
    def _store(self) -> Iterator[Store]:
        """That of the rendezvous, which the first process keeps, or torchrun."""
        try:
            yield PrefixStore("hpc-mlp", _get_default_store())
        except RuntimeError:
            raise RunError(f"process 0 of {self.world_size} cannot be reached any more.") from None


ALONE = Processes()


def backend(cpu: bool) -> str | None:
    """What carries messages between processes that a launcher has started: NCCL those that lie on
    GPUs, gloo those of the host, so that no GPU waits for a word of the others. None: as Accelerate
    chooses."""
    on_gpus = ranks.is_launched() and not cpu and torch.cuda.is_available()
    return "cpu:gloo,cuda:nccl" if on_gpus else None


def processes_sharing(device: torch.device) -> int:
    """How many of the processes started together have their data in the memory of `device`."""
    # On GPUs each has its own.
    return ranks.local_world_size() if device.type == "cpu" else 1
