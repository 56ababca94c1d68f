"""What `hpc-mlp submit` and `hpc_mlp.submit` do with planned runs, and show of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from hpc_mlp.config.plan import RunSpec, TrainOptions
from hpc_mlp.config.sections import LaunchConfig
from hpc_mlp.data.remote import DatasetLocation, load_manifest
from hpc_mlp.launch.jobs import shorten_ids
from hpc_mlp.launch.records import Submission
from hpc_mlp.launch.show import plan_table, resources
from hpc_mlp.launch.submit import JobOptions, Plan, make_plan, submit
from hpc_mlp.live.rows import summary
from hpc_mlp.runs.extend import told
from hpc_mlp.terminal.shown import Showable


def send(
    specs: Sequence[RunSpec],
    shards: DatasetLocation,
    runs: Path,
    wanted: JobOptions,
    options: TrainOptions,
    dry_run: bool,
) -> Submitted:
    """`launch.submit.submit`, or with `dry_run` what it would do."""
    digest = load_manifest(shards, "submit").digest
    if dry_run:
        plan = make_plan(specs, runs, digest, wanted.per_job, options)
        return Submitted(None, plan, wanted.cluster, wanted.launch, runs, dry_run=True)
    submission, plan = submit(specs, shards, digest, runs, wanted, options)
    return Submitted(submission, plan, wanted.cluster, wanted.launch, runs)


@dataclass(frozen=True, repr=False)
class Submitted(Showable):
    """What was sent to `cluster`. `submission` None: nothing was left to send, or was to be sent
    (`dry_run`)."""

    submission: Submission | None
    plan: Plan
    cluster: str
    launch: LaunchConfig
    runs: Path
    dry_run: bool = False

    @property
    def job_ids(self) -> dict[int, str]:
        """By the job's index."""
        jobs = self.submission.jobs if self.submission else []
        return {job.index: job.job_id or "" for job in jobs}

    def parts(self) -> Iterable[RenderableType]:
        if self.submission or self.dry_run:
            yield plan_table(self.plan.jobs, self.job_ids)
        yield from map(Text, self._lines())

    def _lines(self) -> Iterable[str]:
        yield from told(self.plan.extended)
        if self.plan.left_out:
            yield f"Left out: {summary(self.plan.left_out)}."
        if self.submission:
            sent = f"Submitted to {self.cluster} as {self.submission.id}"
            yield f"{sent}: {resources(self.launch)}."
            yield f"Job ids: {shorten_ids(list(self.job_ids.values()))}"
            yield f"Next:  hpc-mlp status {self.runs}        (--watch follows them)"
            yield f"       hpc-mlp cancel {self.runs}"
            yield f"       hpc-mlp table {self.runs}"
        elif not self.dry_run:
            yield "Nothing to submit: every run is done or on its way."

    def records(self) -> list[dict[str, Any]]:
        """A run each, with the id of its job; None before it has one."""
        return [
            {
                "run": spec.name,
                "variant": spec.variant,
                "seed": spec.seed,
                "job": self.job_ids.get(job.index),
            }
            for job in self.plan.jobs
            for spec in job.specs
        ]
