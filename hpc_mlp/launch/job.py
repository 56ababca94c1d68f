"""What runs inside a job: set up the processes, train its runs, give the job back when told."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any

from hpc_mlp.config.plan import TrainOptions
from hpc_mlp.errors import RunError
from hpc_mlp.files.atomic import write_bytes
from hpc_mlp.launch.cores import share_cores
from hpc_mlp.launch.records import Submission, read_submission
from hpc_mlp.launch.spawn import end_with_parent, run_processes, tidy
from hpc_mlp.machine import ranks
from hpc_mlp.machine.liveness import this_process
from hpc_mlp.machine.ports import keep_port
from hpc_mlp.machine.stop import request_stop
from hpc_mlp.runs.lease import CLAIM
from hpc_mlp.terminal.output import prepare, say

# Training asked to stop returns this plus the signal's number, its checkpoint written.
STOPPED = 128
_RENDEZVOUS_SECONDS = 600
_WAIT_FOR_KILL_SECONDS = 600


class TrainingJob:
    """The callable that submitit pickles: it names the job and carries nothing else. State is
    looked up in the run folders at every start, because `scontrol requeue` and node failure start
    the very first pickle again."""

    def __init__(self, folder: str, index: int) -> None:
        self.folder = folder
        self.index = index

    def __call__(self) -> None:
        # Submitit's: dumps `checkpoint()`, asks for the requeue.
        hand_back = signal.getsignal(signal.SIGUSR2)
        code, signals = run_job(Path(self.folder), self.index)
        if code > STOPPED:
            _leave(self._submission(), self.index, signals, hand_back)
        if code and self._is_superseded():
            # Slurm has given this start up (its node was cut off) and the requeued job trains. Of
            # several tasks, an exit with an error would make srun end the step by its number, which
            # is the successor's as well.
            time.sleep(_WAIT_FOR_KILL_SECONDS)
            return
        if code:
            raise RunError(
                f"the job ended with code {code}; see the runs' failed.json and this log."
            )

    def checkpoint(self) -> Any:
        """Called by submitit (`__submitit_checkpoint__` alone would not be, see docs/slurm.md)."""
        from submitit import JobEnvironment
        from submitit.helpers import DelayedSubmission

        # Left by a start that was killed while writing: submitit would refuse to write again.
        paths = JobEnvironment().paths
        for path in (paths.submitted_pickle, paths.result_pickle):
            path.with_suffix(".pkl.save_tmp").unlink(missing_ok=True)
        return DelayedSubmission(TrainingJob(self.folder, self.index))

    def _is_superseded(self) -> bool:
        return len(self._submission().starts().get(self.index, [])) > ranks.restarts() + 1

    def _submission(self) -> Submission:
        submission = read_submission(Path(self.folder))
        if submission is None:
            raise RunError(f"{self.folder} holds no submission: was it deleted? Submit again.")
        return submission


def run_job(folder: Path, index: int) -> tuple[int, set[int]]:
    """Train the runs of one job in this process (one of several, where the job has several tasks).
    Returns the exit code and the signals that came, which may become more later."""
    prepare()
    submission = TrainingJob(str(folder), index)._submission()
    signals = _StopSignals()
    with ExitStack() as stack:
        if submission.cluster == "slurm":
            _join_processes(folder, stack)
        os.environ[CLAIM] = submission.claim(index)
        if not ranks.rank():
            submission.write_start(index, ranks.restarts(), _this_start())
        stack.enter_context(signals)
        share_cores()
        train_specs = _load(submission.entry)
        # While torch was being imported: nothing has begun.
        if signals.received:
            return STOPPED + max(signals.received), signals.received
        signals.training = True
        code = train_specs(
            submission.location,
            submission.specs(index),
            folder.parent.parent,
            # Nothing is overwritten: `submit` has done that, and a requeued job must go on.
            TrainOptions(cpu=submission.cpu, parallel=submission.parallel),
        )
    return code, signals.received


def _load(entry: str) -> Callable[..., int]:
    """`"package.module:function"`. By name, because training stands above this room."""
    module, _, function = entry.partition(":")
    loaded: Callable[..., int] = getattr(importlib.import_module(module), function)
    return loaded


def _this_start() -> dict[str, Any]:
    return {
        **this_process(),
        "job": os.environ.get("SLURM_JOB_ID", ""),
        "time": time.time(),
        "devices": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
    }


# -- signals


class _StopSignals:
    """Turns stop signals into one request to training, which writes a checkpoint after the step it
    is in and returns. A handler that wrote the checkpoint itself would catch the model in the
    middle of an update. USR2 keeps this handler afterwards: it may come later than the TERM that
    ended the training."""

    def __init__(self) -> None:
        self.received: set[int] = set()
        self.training = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _StopSignals:
        for number in (signal.SIGUSR2, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, self._before[signal.SIGTERM])

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received.add(number)
        name = signal.Signals(number).name
        say(f"hpc-mlp: {name}: checkpoint, then stop", err=True)
        if self.training:
            request_stop(name)


def _leave(submission: Submission, index: int, received: set[int], hand_back: Any) -> None:
    """After the checkpoint. USR2 (preemption with a user signal, time limit) means: requeue me.
    TERM alone means `scancel`, or a preemption that Slurm requeues by itself: then ending early
    would count as finished."""
    deadline = time.monotonic() + _WAIT_FOR_KILL_SECONDS
    while time.monotonic() < deadline and not submission.is_cancelled(index):
        if (
            signal.SIGUSR2 in received
            and os.environ.get("SLURM_PROCID", "0") == "0"
            and callable(hand_back)
        ):
            # Exits.
            hand_back(signal.SIGUSR2, None)
            return
        time.sleep(0.2)


# -- several processes


def _join_processes(folder: Path, stack: ExitStack) -> None:
    """Set what Accelerate reads (RANK, WORLD_SIZE, …) from Slurm's, before torch is imported. The
    first process keeps their port while `stack` is open."""
    world = int(os.environ.get("SLURM_NTASKS", "1"))
    if world == 1:
        return
    from submitit import JobEnvironment

    job = JobEnvironment()
    port = _agree_on_port(folder, job.raw_job_id, job.global_rank, stack)
    # 127.0.0.1 would be another machine on every node.
    address = job.hostnames[0]
    local = job.local_rank, world // job.num_nodes
    os.environ |= ranks.variables(job.global_rank, world, *local, address, port)


def _agree_on_port(folder: Path, job_id: str, rank: int, stack: ExitStack) -> int:
    """A port that is free on the first node: rank 0 looks for one, near a number made from the job
    id, keeps it and tells the others through the shared folder."""
    note = folder / "started" / f"port-{job_id}-{ranks.restarts()}"
    if rank == 0:
        kept = stack.enter_context(keep_port("", range(20000 + int(job_id) % 20000, 60000)))
        port: int = kept.getsockname()[1]
        write_bytes(note, str(port).encode())
        return port
    deadline = time.monotonic() + _RENDEZVOUS_SECONDS
    while time.monotonic() < deadline:
        try:
            return int(note.read_bytes())
        except (FileNotFoundError, ValueError):
            time.sleep(0.1)
    raise RunError(
        f"the first task did not write {note} in {_RENDEZVOUS_SECONDS} s: do all nodes see the "
        "folder?"
    )


def main(folder: Path, index: int) -> int:
    """A job of the local queue: on several GPUs, one process each."""
    end_with_parent()
    submission = TrainingJob(str(folder), index)._submission()
    world = submission.resources.tasks
    if world > 1 and not ranks.is_launched():
        code = run_processes(
            "hpc_mlp.launch.job", [str(folder), str(index)], world, new_sessions=False
        )
        tidy(folder.parent.parent / run.name for run in submission.jobs[index].runs)
        return code
    return run_job(folder, index)[0]


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
