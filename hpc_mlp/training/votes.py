"""What a training loop asks after every step: is it to stop, to save, is somebody's time up? And
the time that training takes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch

from hpc_mlp.config.sections import parse_interval
from hpc_mlp.machine import stop
from hpc_mlp.machine.processes import Processes
from hpc_mlp.training.members import Member

# Steps after which data-parallel processes agree on stopping and saving.
AGREE_EVERY = 8


class Timer:
    """Adds the time of training to the members' `seconds`, by the lead's clock: `max_seconds` must
    mean the same to every process."""

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self.members: list[Member] = []
        # Of the present or last use of `running`, when it was read.
        self.elapsed = 0.0

    @contextmanager
    def running(self, members: Sequence[Member]) -> Iterator[None]:
        """What is broken off within counts as far as it has been read."""
        self.members, self.before = list(members), [member.seconds for member in members]
        self.started = time.perf_counter()
        self.deadline = self.started + min(member.seconds_left for member in members)
        try:
            yield
            self.read()
        finally:
            self.members = []

    def read(self) -> None:
        """Bring the members' `seconds` up to date, where it is running."""
        if not self.members:
            return
        elapsed = time.perf_counter() - self.started
        if not self.processes.alone:
            leads = torch.tensor(elapsed if self.processes.lead else 0.0, dtype=torch.float64)
            self.processes.sum([leads])
            elapsed = leads.item()
        self.elapsed = elapsed
        for member, seconds in zip(self.members, self.before, strict=True):
            member.seconds = seconds + elapsed

    def is_up(self) -> bool:
        """Whether a member has reached its `max_seconds`: told by the lead, False elsewhere."""
        return self.processes.lead and time.perf_counter() >= self.deadline


class Vote(NamedTuple):
    stop: bool
    # Also where it is to stop.
    save: bool
    out_of_time: bool


class StopVotes:
    """What the processes of a bank agree on. `every`: `train.checkpoint_every`."""

    def __init__(self, processes: Processes, timer: Timer, every: str) -> None:
        self.processes, self.timer = processes, timer
        self.save_seconds, self.save_steps = parse_interval(every)
        self.saved(0)

    def saved(self, count: int) -> None:
        """A checkpoint has been written, or read, after `count` global steps."""
        self.saved_at, self.saved_count = time.monotonic(), count

    def poll(self, step: int, count: int) -> Vote:
        """After `step` steps of the epoch, `count` of all. Several processes must stop and save at
        the same step: what only one of them may know waits for a step at which they agree."""
        due = self.save_steps is not None and count - self.saved_count >= self.save_steps
        if not self.processes.alone and step % AGREE_EVERY:
            return Vote(stop=False, save=due, out_of_time=False)
        if self.save_seconds is not None:
            due = due or time.monotonic() - self.saved_at >= self.save_seconds
        stopping = stop.stop_reason() is not None
        return Vote(*self.processes.any_of(stopping, due or stopping, self.timer.is_up()))
