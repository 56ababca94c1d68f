"""The queue of this machine: one job per device (or CPU slot), never more at once, detached from
the shell.

`python -m hpc_mlp.launch.local FOLDER` works off one submission. A running job holds the
locks of its slot itself, so that the slot stays taken even if the queue is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path

from hpc_mlp.config.sections import LaunchConfig
from hpc_mlp.errors import RunError, UserError
from hpc_mlp.files.atomic import write_bytes
from hpc_mlp.launch.environment import local_environment
from hpc_mlp.launch.jobs import JobInfo, Start
from hpc_mlp.launch.records import Submission, read_submission
from hpc_mlp.launch.slots import make_slots
from hpc_mlp.launch.spawn import how_it_ended
from hpc_mlp.launch.work_queue import POLL, STOP_SECONDS, Queue, QueuedCommand
from hpc_mlp.machine.liveness import is_alive, send_signal
from hpc_mlp.runs.lease import Lease, is_held
from hpc_mlp.terminal.output import prepare, say

NAME = "the local queue"
# In a submission's folder: who holds the slots that its jobs wait for.
_WAITING = "waiting"


def check(launch: LaunchConfig, slots: int | None, cpu: bool) -> None:
    if launch.nodes > 1:
        raise UserError(
            "--cluster local has one machine: leave out --nodes, or take --cluster slurm."
        )
    make_slots(launch, slots, cpu)


def submit(submission: Submission) -> Submission:
    """Start the queue, detached from this shell."""
    name = submission.id.rpartition("-")[2]
    submission = submission.with_job_ids(
        {job.index: f"{name}_{job.index}" for job in submission.jobs}
    )
    submission.save()
    with (submission.logs / "queue.log").open("ab") as log:
        queue = subprocess.Popen(
            [sys.executable, "-m", "hpc_mlp.launch.local", str(submission.folder)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd="/",
            env=local_environment(),
        )
    deadline = time.monotonic() + 60
    while not (submission.folder / "queue.pid").exists():
        if queue.poll() is not None or time.monotonic() > deadline:
            raise RunError(f"the queue did not start: see {submission.logs / 'queue.log'}")
        time.sleep(0.02)
    return submission


# -- the queue's process


def work_off(folder: Path) -> None:
    """The queue's process: every job of the submission, then end."""
    prepare()
    submission = read_submission(folder)
    assert submission is not None
    queue = Queue(make_slots(submission.resources, submission.slots, submission.cpu))

    def stop(*_: object) -> None:
        queue.stopping = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    queue.waits = partial(_write_waiting, folder / _WAITING)
    with Lease(folder):
        (folder / "queue.pid").write_text(str(os.getpid()))
        queue.run(_job(submission, job.index) for job in submission.jobs)


def _job(submission: Submission, index: int) -> QueuedCommand:
    cancelled = submission.folder / "cancelled" / str(index)
    return QueuedCommand(
        command=[
            sys.executable,
            "-u",
            "-m",
            "hpc_mlp.launch.job",
            str(submission.folder),
            str(index),
        ],
        log=log_path(submission, index),
        label=f"job {submission.jobs[index].job_id} of {submission.folder.parent.parent}",
        wanted=lambda: not cancelled.exists(),
        ended=lambda code: _write_end(submission, index, code),
    )


def _write_waiting(path: Path, holders: str) -> None:
    """For `status`, which may be asked elsewhere. Nothing is lost where the disk is full."""
    with suppress(OSError):
        if holders:
            write_bytes(path, holders.encode(errors="replace"))
        else:
            path.unlink()


def _write_end(submission: Submission, index: int, code: int) -> None:
    """A full disk must not take the queue from those that wait: the process tells its end, too."""
    try:
        submission.write_end(index, code)
    except OSError as error:
        say(f"{submission.jobs[index].name}: {how_it_ended(code)}; {error}", err=True)


def log_path(submission: Submission, index: int) -> Path:
    return submission.logs / f"{index}.log"


# -- asking and cancelling


def query(submissions: Iterable[Submission]) -> dict[str, JobInfo]:
    known: dict[str, JobInfo] = {}
    for submission in submissions:
        known |= _query(submission)
    return known


def _query(submission: Submission) -> dict[str, JobInfo]:
    queue_lives, all_starts = is_held(submission.folder), submission.starts()
    known = {}
    for job in submission.jobs:
        if job.job_id is None:
            continue
        starts = all_starts.get(job.index)
        try:
            end = submission.ended(job.index)
        except RunError as error:
            known[job.job_id] = JobInfo("over", str(error))
            continue
        if end is not None:
            known[job.job_id] = JobInfo("over", how_it_ended(end.code) if end.code else "COMPLETED")
        # A job survives its queue's death.
        elif starts and (queue_lives or is_alive(starts[-1])):
            known[job.job_id] = JobInfo("running", "RUNNING", node=starts[-1].host)
        elif queue_lives and not submission.is_cancelled(job.index):
            known[job.job_id] = JobInfo("queued", "PENDING", _reason(submission))
    return known


def _reason(submission: Submission) -> str:
    """Why its jobs wait: for one another, or for a job of another submission."""
    try:
        holders = (submission.folder / _WAITING).read_text(errors="replace")
    except OSError:
        holders = ""
    return "waits for a free slot" + (f": {holders}" if holders else "")


def cancel(submission: Submission, jobs: Iterable[int]) -> None:
    """The queue sees the marks, from whatever machine."""
    chosen = sorted(jobs)
    for index in chosen:
        submission.mark_cancelled(index)
    # Nobody is left to look: end what still runs here ourselves.
    if not is_held(submission.folder):
        all_starts = submission.starts()
        for index in chosen:
            starts = all_starts.get(index)
            if starts and not (submission.folder / "ended" / f"{index}.json").exists():
                _terminate(submission, index, starts[-1])
    deadline = time.monotonic() + STOP_SECONDS + 10
    while time.monotonic() < deadline:
        states = _query(submission)
        infos = (states.get(submission.jobs[index].job_id or "") for index in chosen)
        if not any(info and info.state in ("queued", "running") for info in infos):
            return
        time.sleep(POLL)
    raise RunError(f"not everything has ended yet: see {submission.logs / 'queue.log'}")


def _terminate(submission: Submission, index: int, start: Start) -> None:
    """RunError where the process is alive, but is not what the record says."""
    words = ("hpc_mlp.launch.job", str(submission.folder), str(index))
    if not send_signal(start, signal.SIGTERM, words) and is_alive(start):
        raise RunError(
            f"process {start.pid}, which {submission.folder}/started names, is no job of this "
            "submission: it was left alone."
        )


if __name__ == "__main__":
    work_off(Path(sys.argv[1]))
