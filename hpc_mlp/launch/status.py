"""The state of every run: from its own files first, with the cluster's word as a second opinion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hpc_mlp.errors import UserError
from hpc_mlp.launch.cluster import SCHEDULERS
from hpc_mlp.launch.jobs import UNKNOWN, JobInfo, JobRecord, PlannedRun, Start
from hpc_mlp.launch.records import FOLDER, PLAN, Submission, read_submissions
from hpc_mlp.live.live_file import folder_status
from hpc_mlp.live.rows import COMPLETE, RunStatus
from hpc_mlp.machine.liveness import age
from hpc_mlp.runs.folder import FAILED, none_yet
from hpc_mlp.runs.lease import is_held, read_owner
from hpc_mlp.terminal.text import natural_key


@dataclass(frozen=True)
class _SubmittedJob:
    """A job together with what its cluster says. `info` None: the cluster cannot be asked from
    here. `problem`: with its records."""

    submission: Submission
    record: JobRecord
    info: JobInfo | None
    requeues: int
    node: str
    problem: str


def read_status(runs: Path) -> list[RunStatus]:
    """Every run that was submitted to `runs` or has a folder there, the submitted ones first, in
    order; and a row for every submission whose record is damaged."""
    statuses: dict[str, RunStatus] = {}
    submissions, problems = read_submissions(runs)
    for submission in _newest(submissions, runs):
        for job in submission:
            for planned in job.record.runs:
                statuses[planned.name] = _submitted(runs / planned.name, planned, job)
    folders = [path for path in runs.glob("*") if path.is_dir() and path.name not in statuses]
    for path in sorted(folders, key=lambda path: natural_key(path.name)):
        if not path.name.startswith(".") and (status := folder_status(path)) is not None:
            statuses[path.name] = status
    for folder, problem in problems.items():
        name = f"{FOLDER}/{folder.name}"
        statuses[name] = RunStatus(name, name, 0, "damaged", problem, submission=folder.name)
    return list(statuses.values())


def require_status(runs: Path) -> list[RunStatus]:
    statuses = read_status(runs)
    if not statuses:
        remedy = f"Submit some first: hpc-mlp submit OUT --runs {runs}"
        raise UserError(none_yet(runs, remedy))
    return statuses


def require_statuses(roots: Sequence[Path]) -> dict[str, tuple[Path, RunStatus]]:
    """UserError for a folder without runs."""
    found = read_statuses(roots)
    for root in roots:
        if not any(path.parent == root for path, _ in found.values()):
            require_status(root)
    return found


def read_statuses(roots: Sequence[Path]) -> dict[str, tuple[Path, RunStatus]]:
    """By name, which of several folders begins with the folder: a run's folder, and its status."""
    found = {}
    for root in roots:
        for status in read_status(root):
            path = root / status.name
            if len(roots) > 1:
                status = replace(status, name=f"{root}/{status.name}")
            found[status.name] = path, status
    return found


def _newest(submissions: list[Submission], runs: Path) -> list[list[_SubmittedJob]]:
    """The submissions with their jobs' states, oldest first. Only unfinished ones are asked for."""
    wanted = [item for item in submissions if any(not _is_complete(runs, job) for job in item.jobs)]
    known = {
        name: scheduler.query(item for item in wanted if item.cluster == name)
        for name, scheduler in SCHEDULERS.items()
    }
    listed = []
    for submission in submissions:
        here = known[submission.cluster] if submission in wanted else {}
        starts = submission.starts()
        listed.append(
            [
                _job(submission, record, here, starts.get(record.index, []))
                for record in submission.jobs
            ]
        )
    return listed


def _is_complete(runs: Path, job: JobRecord) -> bool:
    return all((runs / run.name / "result.json").exists() for run in job.runs)


def _job(
    submission: Submission, record: JobRecord, known: dict[str, JobInfo] | None, starts: list[Start]
) -> _SubmittedJob:
    info = known if known is None else known.get(record.job_id or "", UNKNOWN)
    node = starts[-1].host if starts else ""
    problem = next((start.damaged for start in starts if start.damaged), "")
    return _SubmittedJob(submission, record, info, max(0, len(starts) - 1), node, problem)


# -- one run


def _submitted(path: Path, planned: PlannedRun, job: _SubmittedJob) -> RunStatus:
    status = _with_job(path, planned, job)
    if not job.problem or status.state in COMPLETE:
        return status
    return replace(status, detail="; ".join(filter(None, [status.detail, job.problem])))


def _with_job(path: Path, planned: PlannedRun, job: _SubmittedJob) -> RunStatus:
    base = folder_status(path) or RunStatus(planned.name, planned.variant, planned.seed, "lost")
    base = replace(
        base,
        # A damaged run's folder does not say them.
        variant=planned.variant,
        seed=planned.seed,
        progress=replace(base.progress, epochs=base.progress.epochs or planned.epochs),
        requeues=job.requeues,
        job=job.record.job_id or "",
        log=str(_log(job)),
        submission=job.submission.id,
    )
    if base.state in COMPLETE or base.state == "damaged":
        return replace(base, node=job.node)
    info = job.info
    if info is None:
        return _unasked(base, path, job)
    failed = base.state == "failed" and _is_of_this_submission(path, job.submission)
    if info.state == "queued":
        detail = info.reason or info.detail
        return replace(base, state="queued", detail=detail, node="", time_left="")
    if info.state == "running":
        if failed:
            return replace(base, node=job.node)
        node = info.node or job.node
        return replace(base, state="running", detail="", node=node, time_left=info.time_left)
    if failed:
        return replace(base, node=job.node)
    return _over(base, path, info, job)


def _over(base: RunStatus, path: Path, info: JobInfo, job: _SubmittedJob) -> RunStatus:
    """No result, and its job is over or unknown."""
    base = replace(base, node=job.node or info.node)
    if job.submission.is_cancelled(job.record.index) or info.detail.startswith("CANCELLED"):
        return replace(base, state="cancelled", detail="cancelled")
    owner = read_owner(path)
    own = owner is not None and owner.claim == job.submission.claim(job.record.index)
    # If it is held by another than the job, someone's `hpc-mlp train` trains it.
    if is_held(path) and not (own and info.state == "over"):
        return replace(base, state="running", detail="", node=owner.host if owner else "")
    may_come = job.submission.cluster == "slurm" or job.record.job_id is None
    if info.state == "unknown" and may_come and _is_new(job.submission):
        return replace(base, state="queued", detail="just submitted")
    if info.state == "unknown":
        scheduler = SCHEDULERS[job.submission.cluster]
        return replace(
            base, state="lost", detail=f"{scheduler.NAME} does not know its job: submit again"
        )
    return replace(base, state="failed", detail=f"job ended: {info.detail}{_last_words(job)}")


def _is_new(submission: Submission) -> bool:
    try:
        return abs(age(submission.folder / PLAN)) < 60
    except OSError:
        return False


def _unasked(base: RunStatus, path: Path, job: _SubmittedJob) -> RunStatus:
    """Slurm cannot be asked from here: what the files alone tell."""
    if is_held(path):
        return replace(base, state="running", detail="", node=job.node)
    if base.state == "failed" and _is_of_this_submission(path, job.submission):
        return base
    if job.submission.is_cancelled(job.record.index):
        return replace(base, state="cancelled", detail="cancelled")
    return replace(
        base, state="queued", detail="squeue does not answer here: by the files, not running"
    )


def _is_of_this_submission(path: Path, submission: Submission) -> bool:
    """A failed.json from before this submission says nothing. Both times are the file system's."""
    try:
        written = (path / FAILED).stat().st_mtime
        return written >= (submission.folder / PLAN).stat().st_mtime
    except OSError:
        return False


def _log(job: _SubmittedJob) -> Path:
    return SCHEDULERS[job.submission.cluster].log_path(job.submission, job.record.index)


def _last_words(job: _SubmittedJob) -> str:
    """The last line of the job's log that looks like an error."""
    try:
        lines = _log(job).read_text(errors="replace").splitlines()[-200:]
    except OSError:
        return ""
    lines = [line.strip() for line in lines if line.strip()]
    errors = [line for line in lines if "rror" in line.partition(":")[0]]
    return f": {(errors or lines)[-1][:200]}" if lines else ""
