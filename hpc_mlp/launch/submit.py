"""From planned runs to jobs: leave out what is done or on its way, group the rest, hand it over."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_mlp.config.loading import Tree, build_config, chosen_file, read_layers, set_key
from hpc_mlp.config.plan import RunSpec, TrainOptions
from hpc_mlp.config.sections import LaunchConfig
from hpc_mlp.data.remote import DatasetLocation
from hpc_mlp.errors import RunError, UserError, unknown_name
from hpc_mlp.launch.cluster import SCHEDULERS
from hpc_mlp.launch.jobs import JobPlan, plan_jobs, with_brackets
from hpc_mlp.launch.records import (
    ENTRY,
    FOLDER,
    RECORD,
    Cluster,
    Submission,
    list_submissions,
    new_submission,
    planned_names,
    read_submissions,
)
from hpc_mlp.launch.status import read_status
from hpc_mlp.live.rows import ACTIVE, COMPLETE, RunStatus
from hpc_mlp.runs.brackets import EXTENDED_SEARCH, check_begun, is_winner_begun, stand
from hpc_mlp.runs.extend import Extension, extend, extensions
from hpc_mlp.runs.folder import RunFolder, write_json
from hpc_mlp.runs.identity import is_begun
from hpc_mlp.runs.lease import Lease


@dataclass(frozen=True)
class JobOptions:
    """Where jobs run, with what, how many runs are in each (as `parse_per_job` gives it), how many
    run at once on this machine; `entry`: the function that trains in them."""

    cluster: Cluster
    launch: LaunchConfig = LaunchConfig()
    per_job: int | None = 0
    slots: int | None = None
    entry: str = ENTRY


@dataclass(frozen=True)
class Plan:
    """What `submit` would do: jobs to send, and the runs left out, with their state."""

    jobs: list[JobPlan]
    left_out: list[RunStatus]
    extended: Sequence[Extension] = ()


def load_launch(
    cluster_config: str | None, config_files: Sequence[Path], sets: dict[str, list[Any]]
) -> LaunchConfig:
    """Defaults, then the cluster's profile (shipped by name, or a file), then [launch] of
    `--config`, then `--set launch.…`."""
    files = list(config_files)
    if cluster_config:
        files.insert(0, chosen_file("clusters", "cluster profile", cluster_config))
    tree: Tree = {"launch": read_layers(files).get("launch", {})}
    for key, values in sets.items():
        if not key.startswith("launch."):
            continue
        if len(values) > 1:
            raise UserError(
                f"--set {key}: one value for all jobs; give several submissions several values."
            )
        set_key(tree, key, values[0])
    return build_config(tree, "--set").launch


def make_plan(
    specs: Sequence[RunSpec],
    runs: Path,
    digest: str,
    per_job: int | None,
    options: TrainOptions = TrainOptions(),
) -> Plan:
    """Which runs still have to be sent, in jobs."""
    if any(spec.search for spec in specs):
        return _search_plan(specs, runs, digest, per_job, options)
    overwrite = options.overwrite
    extended = extensions(specs, runs, digest) if options.extend else []
    how = {one.spec.name: one.how for one in extended}
    known = {status.name: status for status in read_status(runs)} if runs.is_dir() else {}
    _check_damaged(runs, {spec.name for spec in specs})
    left_out, wanted = [], []
    for spec in specs:
        status = known.get(spec.name)
        if status is None:
            wanted.append(spec)
            continue
        if spec.name in how:
            if status.state in ACTIVE:
                raise UserError(f"--extend: {spec.name} still runs or waits. Wait for its end.")
            if how[spec.name] == "ended":
                left_out.append(status)
            else:
                wanted.append(spec)
            continue
        if not overwrite:
            is_begun(runs / spec.name, spec, digest)
        if status.state in ACTIVE or (status.state in COMPLETE and not overwrite):
            left_out.append(status)
        else:
            wanted.append(spec)
    if overwrite and (busy := [status.name for status in left_out]):
        raise UserError(f"--overwrite: {', '.join(busy[:5])} still runs or waits. Cancel it first.")
    return Plan(plan_jobs(wanted, per_job), left_out, extended)


def _search_plan(
    specs: Sequence[RunSpec], runs: Path, digest: str, per_job: int | None, options: TrainOptions
) -> Plan:
    """A job for each variant's search and its winner's runs; left out where these are complete, or
    on their way."""
    if per_job:
        raise UserError("--per-job: a search has a job for each variant, or one with 'all'.")
    if options.extend:
        raise UserError(EXTENDED_SEARCH)
    if not options.overwrite:
        check_begun(specs, runs, digest)
    finals = {spec.name: spec for spec in specs if not spec.is_trial}
    undecided = {*finals}
    # With --overwrite nothing that is there counts, damaged or not.
    for standing in () if options.overwrite else stand(specs, runs):
        if standing.problem:
            raise RunError(standing.problem)
        won = {spec.name: spec for spec in standing.finals or ()}
        finals, undecided = finals | won, undecided - won.keys()
    known = {status.name: status for status in read_status(runs)} if runs.is_dir() else {}
    _check_damaged(runs, {spec.name for spec in specs})
    left_out, wanted = [], []
    for name, spec in finals.items():
        status = known.get(name)
        decided = name not in undecided
        if decided and not (status and status.state in ACTIVE):
            is_winner_begun(runs / name, spec, digest)
        if status and (status.state in ACTIVE or (decided and status.state in COMPLETE)):
            left_out.append(status)
        else:
            wanted.append(spec)
    if options.overwrite and (busy := [status.name for status in left_out]):
        raise UserError(f"--overwrite: {', '.join(busy[:5])} still runs or waits. Cancel it first.")
    return Plan(with_brackets(plan_jobs(wanted, per_job), specs), left_out)


def _check_damaged(runs: Path, names: set[str]) -> None:
    """RunError where a submission whose record is damaged may have sent one of these runs: what
    became of it cannot be told, and it would be sent a second time."""
    for folder, problem in read_submissions(runs)[1].items():
        planned = planned_names(folder)
        if planned is None or planned & names:
            raise RunError(problem)


def submit(
    specs: Sequence[RunSpec],
    shards: DatasetLocation,
    digest: str,
    runs: Path,
    wanted: JobOptions,
    options: TrainOptions = TrainOptions(),
) -> tuple[Submission | None, Plan]:
    """Send what is not done and not on its way. None where nothing is left to do. Two shells that
    submit to one folder take turns, so that no run is sent twice. `digest` names the dataset."""
    scheduler = SCHEDULERS[wanted.cluster]
    scheduler.check(wanted.launch, wanted.slots, options.cpu)
    with _taking_turns(runs):
        plan = make_plan(specs, runs, digest, wanted.per_job, options)
        extend(plan.extended)
        if not plan.jobs:
            return None, plan
        if options.overwrite:
            for spec in (spec for job in plan.jobs for spec in job.specs):
                RunFolder(runs / spec.name).clear()
        submission = new_submission(
            runs,
            wanted.cluster,
            shards,
            plan.jobs,
            launch=wanted.launch,
            slots=wanted.slots,
            options=options,
            entry=wanted.entry,
        )
        try:
            submission = scheduler.submit(submission)
        # Refused: as if it had never been tried.
        except BaseException:
            shutil.rmtree(submission.folder, ignore_errors=True)
            raise
        # A full disk: the jobs are on their way, and the next submission writes it.
        with suppress(OSError):
            write_index(runs)
    return submission, plan


@contextmanager
def _taking_turns(runs: Path) -> Iterator[None]:
    """Of several shells one at a time. What was made for it alone is not left behind."""
    made = [folder for folder in (runs / FOLDER, runs) if not folder.exists()]
    try:
        with Lease(runs / FOLDER, wait=600, claim=""):
            yield
    finally:
        for folder in made:
            # It is in use by now.
            with suppress(OSError):
                folder.rmdir()


def cancel(runs: Path, variants: Sequence[str] | None = None) -> list[str]:
    """End the jobs of this runs folder, all or those of some variants. Returns their job ids.
    UserError where a job also trains other variants: it can only be ended as a whole."""
    everything = read_status(runs)
    statuses = [status for status in everything if status.state in ACTIVE and status.submission]
    known = {status.variant for status in everything}
    for name in variants or ():
        if name not in known:
            raise unknown_name("variant", name, sorted(known))
    chosen = {status.name for status in statuses if variants is None or status.variant in variants}
    ended: list[str] = []
    problems: list[str] = []
    for submission in list_submissions(runs):
        alive = {s.name for s in statuses if s.submission == submission.id}
        jobs = []
        for job in submission.jobs:
            here = {run.name for run in job.runs} & alive
            if not here & chosen:
                continue
            if others := sorted(here - chosen):
                problems.append(f"job {job.job_id} also trains {', '.join(others[:5])}")
            else:
                jobs.append(job)
        if problems or not jobs:
            continue
        ended += [job.job_id or "" for job in jobs]
        SCHEDULERS[submission.cluster].cancel(submission, [job.index for job in jobs])
    if problems:
        raise UserError(
            f"{'; '.join(problems)}: cancel all of it (without --variants), or let it run."
        )
    return ended


def write_index(runs: Path) -> None:
    """Make RUNS/submission.json from the folders. Two shells may do so at once: whoever writes last
    looks again, so that neither submission is missing in the end."""
    written: list[str] = []
    while (submissions := list_submissions(runs)) and [item.id for item in submissions] != written:
        lines = [_line(submission) for submission in submissions]
        write_json(runs / RECORD, {"format": 1, **lines[-1], "submissions": lines})
        written = [item.id for item in submissions]


def _line(submission: Submission) -> dict[str, Any]:
    return {
        "id": submission.id,
        "cluster": submission.cluster,
        "created": submission.created,
        "host": submission.host,
        "command": submission.command,
        "folder": f"{FOLDER}/{submission.id}",
        "job_ids": [job.job_id for job in submission.jobs if job.job_id],
        "packs": [
            {"job_id": p.job_id, "runs": [run.name for run in p.runs]} for p in submission.jobs
        ],
    }
