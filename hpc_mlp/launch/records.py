"""What a submission leaves on disk, so that any shell can follow it later.

RUNS/submission.json                       the newest submission and a list of all
RUNS/.launch/<id>/submission.json          one submission: cluster, jobs, their ids
                 /plan.json                the runs in full, as the job reads them
                 /plugins/                 the user's own Python files, as they were
                 /logs/                    submitit's or the local queue's files
                 /started/<job>.<n>.json   where and when the job was started, n = times requeued
                 /ended/<job>.json         local queue: the exit code
                 /cancelled/<job>          someone asked for its end
                 /waiting                  local queue: who holds the slots that it waits for
The folders are the truth; RUNS/submission.json is made from them."""

from __future__ import annotations

import getpass
import os
import re
import shlex
import shutil
import socket
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from hpc_mlp.config.plan import Parallel, RunSpec, TrainOptions
from hpc_mlp.config.plugins import read_plugin, stored_plugin
from hpc_mlp.config.sections import LaunchConfig
from hpc_mlp.data.remote import DatasetLocation, dataset_location, is_url
from hpc_mlp.errors import HpcMlpError, RunError
from hpc_mlp.files.atomic import write_bytes
from hpc_mlp.files.checked import Record, damaged, read
from hpc_mlp.launch.jobs import End, JobPlan, JobRecord, PlannedRun, PlanRecord, Start
from hpc_mlp.runs.folder import write_json, write_plugins

FOLDER, PLAN = ".launch", "plan.json"
# The name of the record in a submission's folder, and of the list in RUNS.
RECORD = "submission.json"
ENTRY = "hpc_mlp.training.session:train_specs"

Cluster = Literal["slurm", "local"]


class Submission(Record):
    id: str
    cluster: Cluster
    created: str
    host: str
    user: str
    command: str
    shards: str
    # By its name on disk, of old.
    jobs: list[JobRecord] = Field(alias="packs")
    launch: dict[str, Any] = Field(default_factory=dict)
    slots: int | None = None
    cpu: bool = False
    parallel: Parallel = "auto"
    entry: str = ENTRY
    # Of submissions up to 0.1: see `specs`.
    plugins: list[str] = Field(default_factory=list)
    format: int = 1
    # Where it was read from; not stored.
    folder: Path = Field(default=Path(), exclude=True)

    @model_validator(mode="after")
    def _check(self) -> Submission:
        if [job.index for job in self.jobs] != list(range(len(self.jobs))):
            raise ValueError("the jobs are not numbered from 0 on")
        return self

    @property
    def location(self) -> DatasetLocation:
        """The shards folder, or its URL."""
        return dataset_location(self.shards)

    @property
    def resources(self) -> LaunchConfig:
        """Of each job."""
        return LaunchConfig.model_validate(self.launch)

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    @property
    def job_name(self) -> str:
        """Slurm's name of its jobs: an id that a wiped Slurm gave out again is not ours."""
        return f"hpc-mlp-{self.id}"

    def claim(self, index: int) -> str:
        """Names the job over all its starts, for the lease of its run folders."""
        return f"{self.id}/{index}"

    def save(self) -> None:
        write_json(self.folder / RECORD, self.model_dump(by_alias=True))

    def with_job_ids(self, job_ids: dict[int, str]) -> Submission:
        jobs = [
            job.model_copy(update={"job_id": job_ids.get(job.index, job.job_id)})
            for job in self.jobs
        ]
        return self.model_copy(update={"jobs": jobs})

    def specs(self, index: int) -> list[RunSpec]:
        """The runs of one job in full."""
        try:
            plan = read(self.folder / PLAN, PlanRecord, "")
            runs = [(run.spec(), run.plugins) for run in plan.jobs[index]] if plan else []
        except (HpcMlpError, IndexError):
            runs = []
        if not runs:
            raise RunError(f"{self.folder / PLAN} is missing or damaged: submit again.")
        # Up to 0.1 a submission named the files and kept no copies.
        old = tuple(read_plugin(Path(path)) for path in self.plugins)
        return [
            replace(
                spec, plugins=tuple(stored_plugin(self.folder, record) for record in records) or old
            )
            for spec, records in runs
        ]

    def starts(self) -> dict[int, list[Start]]:
        """For every job that was ever started: one record for each time, oldest first."""
        names = (
            re.fullmatch(r"([0-9]{1,9})\.([0-9]{1,9})\.json", path.name)
            for path in (self.folder / "started").glob("*.json")
        )
        starts: dict[int, list[Start]] = {}
        for index, restart in sorted((int(name[1]), int(name[2])) for name in names if name):
            path = self.folder / "started" / f"{index}.{restart}.json"
            try:
                start = read(path, Start, "")
            except RunError as error:
                start = Start(damaged=str(error).strip())
            if start is not None:
                starts.setdefault(index, []).append(start)
        return starts

    def write_start(self, index: int, restart: int, record: dict[str, Any]) -> None:
        write_json(self.folder / "started" / f"{index}.{restart}.json", record)

    def ended(self, index: int) -> End | None:
        """RunError where the record is damaged: it has ended, and nobody knows how."""
        return read(self.folder / "ended" / f"{index}.json", End, "")

    def write_end(self, index: int, code: int) -> None:
        write_json(self.folder / "ended" / f"{index}.json", {"code": code, "time": time.time()})

    def is_cancelled(self, index: int) -> bool:
        return (self.folder / "cancelled" / str(index)).exists()

    def mark_cancelled(self, index: int) -> None:
        write_bytes(self.folder / "cancelled" / str(index), b"")


def new_submission(
    runs: Path,
    cluster: Cluster,
    shards: DatasetLocation,
    jobs: Sequence[JobPlan],
    *,
    launch: LaunchConfig | None = None,
    slots: int | None = None,
    options: TrainOptions = TrainOptions(),
    entry: str = ENTRY,
) -> Submission:
    """A fresh folder with record and plan; nothing is started yet. `entry`: the function that
    trains in its jobs."""
    # The names sort by age, also within a second.
    now = datetime.now().strftime("%Y%m%d-%H%M%S-%f")
    identity = f"{now}-{uuid.uuid4().hex[:6]}"
    folder = (runs / FOLDER / identity).resolve()
    folder.mkdir(parents=True)
    submission = Submission(
        id=identity,
        cluster=cluster,
        created=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        host=socket.gethostname(),
        user=_user(),
        command=shlex.join(sys.argv),
        shards=str(shards) if is_url(shards) else str(Path(shards).resolve()),
        packs=[_record(job) for job in jobs],
        launch=launch.model_dump(mode="json") if launch else {},
        slots=slots,
        cpu=options.cpu,
        parallel=options.parallel,
        entry=entry,
        folder=folder,
    )
    try:
        for name in ("logs", "started", "ended", "cancelled"):
            (folder / name).mkdir()
        write_plugins(
            folder, (plugin for job in jobs for spec in job.specs for plugin in spec.plugins)
        )
        write_json(folder / PLAN, {"packs": [[_run(spec) for spec in job.specs] for job in jobs]})
        submission.save()
    # A full disk: as if it had never been tried.
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return submission


def _user() -> str:
    try:
        return getpass.getuser()
    # Containers without a passwd entry.
    except (KeyError, OSError):
        return str(os.getuid())


def _run(spec: RunSpec) -> dict[str, Any]:
    config = spec.config.model_dump(mode="json")
    return {
        "name": spec.name,
        "variant": spec.variant,
        "seed": spec.seed,
        "swept": spec.swept,
        "config": config,
        "plugins": [plugin.record() for plugin in spec.plugins],
        "pretrained_sha256": spec.pretrained_sha256,
        **({"search": asdict(spec.search)} if spec.search else {}),
        "fold": spec.fold,
    }


def _record(job: JobPlan) -> JobRecord:
    runs = [
        PlannedRun(
            name=spec.name, variant=spec.variant, seed=spec.seed, epochs=spec.config.train.epochs
        )
        for spec in job.specs
        if not spec.is_trial
    ]
    return JobRecord(index=job.index, name=job.name, runs=runs)


def read_submission(folder: Path) -> Submission | None:
    """RunError where its record is damaged, or was written by another version."""
    remedy = (
        "Its jobs cannot be followed. Once none of them is left (squeue --name "
        f"hpc-mlp-{folder.name}), delete {folder}; the runs lie elsewhere, and submitting again "
        "goes on."
    )
    record = read(folder / RECORD, Submission, remedy)
    # Just being made, or left by a shell that was killed right then.
    if record is None:
        return None
    # It names the jobs that are asked for, and cancelled.
    if record.id != folder.resolve().name:
        raise damaged(folder / RECORD, f"it is that of {record.id}", remedy)
    return record.model_copy(update={"folder": folder.resolve()})


def read_submissions(runs: Path) -> tuple[list[Submission], dict[Path, str]]:
    """Every submission below `runs`, oldest first; what is wrong with damaged ones, by folder."""
    found: list[Submission] = []
    problems: dict[Path, str] = {}
    for folder in sorted(path for path in (runs / FOLDER).glob("*") if path.is_dir()):
        try:
            if (submission := read_submission(folder)) is not None:
                found.append(submission)
        except RunError as error:
            problems[folder] = str(error)
    return found, problems


def list_submissions(runs: Path) -> list[Submission]:
    """Every submission below `runs` that can be read, oldest first."""
    return read_submissions(runs)[0]


def planned_names(folder: Path) -> set[str] | None:
    """The runs of a submission by its plan; None where that cannot be read either."""
    try:
        plan = read(folder / PLAN, PlanRecord, "")
    except RunError:
        return None
    return None if plan is None else {run.name for job in plan.jobs for run in job}
