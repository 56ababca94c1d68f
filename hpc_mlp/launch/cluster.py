"""Where jobs run: a scheduler is a module like `Scheduler`, and a line in SCHEDULERS."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from hpc_mlp.config.sections import LaunchConfig
from hpc_mlp.errors import unknown_name
from hpc_mlp.launch import local, slurm
from hpc_mlp.launch.jobs import JobInfo
from hpc_mlp.launch.records import Cluster, Submission
from hpc_mlp.launch.slurm_commands import is_there


class Scheduler(Protocol):
    NAME: str

    def check(self, launch: LaunchConfig, slots: int | None, cpu: bool) -> None:
        """UserError where there can be no such jobs here."""

    def submit(self, submission: Submission) -> Submission:
        """Hand over every job. Returns the record with their job ids, which is saved by then.
        RunError, and nothing of it is left, where they are refused."""

    def query(self, submissions: Iterable[Submission]) -> dict[str, JobInfo] | None:
        """Every job of these that is known, by its id; None where none can be asked for."""

    def cancel(self, submission: Submission, jobs: Iterable[int]) -> None:
        """Ask for the end of these jobs and wait for it."""

    def log_path(self, submission: Submission, job: int) -> Path: ...


SCHEDULERS: dict[Cluster, Scheduler] = {"slurm": slurm, "local": local}


def choose_cluster(name: str) -> Cluster:
    if name == "auto":
        return "slurm" if is_there() else "local"
    for cluster in SCHEDULERS:
        if name == cluster:
            return cluster
    raise unknown_name("cluster", name, ["auto", *SCHEDULERS])
