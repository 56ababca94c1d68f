"""Slurm: submission through submitit, and the end of jobs."""

from __future__ import annotations

import contextlib
import io
import shlex
import shutil
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hpc_mlp.config.sections import LaunchConfig
from hpc_mlp.errors import RunError, UserError
from hpc_mlp.launch.environment import python_path
from hpc_mlp.launch.records import Submission
from hpc_mlp.launch.slots import check_tasks
from hpc_mlp.launch.slurm_commands import call, is_there, max_array_size, present
from hpc_mlp.launch.slurm_commands import query as query
from hpc_mlp.machine import ranks

NAME = "Slurm"
_CANCEL_SECONDS = 60


# -- submitting


def parameters(launch: LaunchConfig) -> dict[str, Any]:
    """The resources in submitit's names."""
    extra = {
        key.replace("_", "-"): value for key, value in launch.sbatch.items() if value is not False
    }
    # srun does not take over --cpus-per-task from sbatch since Slurm 22.05. One of several tasks
    # that fails ends the job, since the others would wait for it for ever.
    alone = launch.nodes * launch.tasks == 1
    srun_args = [
        f"--cpus-per-task={launch.cpus_per_task}",
        *([] if alone else ["--kill-on-bad-exit=1"]),
    ]
    # The script itself, which has become Python.
    receiver = "" if _uses_srun(launch) else "B:"
    return {
        "time": launch.time_minutes,
        "nodes": launch.nodes,
        "ntasks_per_node": launch.tasks,
        "gpus_per_node": launch.gpus_per_job or None,
        "cpus_per_task": launch.cpus_per_task,
        "mem": launch.memory_gb,
        "partition": launch.partition,
        "account": launch.account,
        "qos": launch.qos,
        "constraint": launch.constraint,
        "array_parallelism": launch.array_parallelism or 1_000_000,
        "setup": setup_lines(launch),
        "use_srun": _uses_srun(launch),
        "srun_args": [*srun_args, *launch.srun_args],
        # Submitit's own default is refused where wckeys are checked.
        "wckey": None,
        "additional_parameters": {
            "requeue": True,
            "signal": f"{receiver}USR2@{launch.signal_seconds}",
            **extra,
        },
    }


def _uses_srun(launch: LaunchConfig) -> bool:
    """One task needs no srun, and is safer without: a step that srun started is known by its number
    alone, and when a cut-off node comes back and reports the end of its copy, Slurm 22.05 ends the
    requeued job's step. A batch script's end counts only from the node where the job is now. With a
    `launch.python` of the user's (conda run, a container) srun stays: it signals all processes of
    the step, and a wrapper may keep a signal to itself."""
    return launch.nodes * launch.tasks > 1 or bool(launch.srun_args) or launch.python is not None


def _python(launch: LaunchConfig) -> str:
    """`exec`: without srun the script becomes Python, which Slurm's signals then reach."""
    python = launch.python or shlex.quote(sys.executable)
    return python if _uses_srun(launch) else f"exec {python}"


def setup_lines(launch: LaunchConfig) -> list[str]:
    """Lines of the job's script before the training: the user's, then this package's place, so that
    the job runs the same code whatever its working directory."""
    # Until Python can take it: a job preempted this early must not end with an error.
    lines = ["trap '' USR2"]
    # A login node's may be 1.
    lines += [f"export OMP_NUM_THREADS={launch.cpus_per_task}", *launch.setup]
    lines.append(f"unset {' '.join(ranks.NAMES)}")
    if path := python_path():
        lines.append(f"export PYTHONPATH={shlex.quote(path)}")
    return lines


def script(launch: LaunchConfig, name: str, folder: Path, num_jobs: int) -> str:
    """The text that sbatch gets, without needing Slurm here."""
    from submitit.slurm import slurm

    options = parameters(launch)
    if options["mem"]:
        options["mem"] = slurm._convert_mem(options["mem"])
    command = f"{_python(launch)} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    count = num_jobs if num_jobs > 1 else None
    text: str = slurm._make_sbatch_string(
        command, folder, job_name=name, map_count=count, **options
    )
    return text


def check(launch: LaunchConfig, slots: int | None, cpu: bool) -> None:
    # submitit asks for both.
    if missing := [name for name in ("sbatch", "srun") if not shutil.which(name)]:
        raise UserError(
            f"no {missing[0]} here: run this on a login node of the cluster, or take "
            "--cluster local."
        )
    if launch.gpus_per_job:
        check_tasks(launch)


def submit(submission: Submission) -> Submission:
    """Every job is an element of an array. RunError with sbatch's words where it refuses."""
    try:
        submission = submission.with_job_ids(_submit(submission, submission.resources))
        submission.save()
    except BaseException:
        # By name: sbatch may also fail, or be interrupted, after the jobs have got into the queue.
        # And nobody could follow those whose record cannot be written.
        withdraw(submission)
        raise
    return submission


def _submit(submission: Submission, launch: LaunchConfig) -> dict[int, str]:
    """Job's index → job id."""
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    from hpc_mlp.launch.job import TrainingJob

    records, limit = submission.jobs, max_array_size()
    chunks = [records[start : start + limit] for start in range(0, len(records), limit)]
    options = parameters(launch)
    # A limit for all of them together.
    if launch.array_parallelism:
        options["array_parallelism"] = max(1, launch.array_parallelism // len(chunks))
    job_ids: dict[int, str] = {}
    for chunk in chunks:
        executor = SlurmExecutor(
            submission.logs, max_num_timeout=launch.max_requeues, python=_python(launch)
        )
        executor.update_parameters(job_name=submission.job_name, **options)
        try:
            # submitit prints what sbatch says and raises it as well.
            with contextlib.redirect_stderr(io.StringIO()), executor.batch():
                jobs = [
                    executor.submit(TrainingJob(str(submission.folder), record.index))
                    for record in chunk
                ]
        except (FailedJobError, FailedSubmissionError, OSError) as error:
            raise RunError(_refused(error)) from None
        job_ids |= {record.index: job.job_id for record, job in zip(chunk, jobs, strict=True)}
    return job_ids


def withdraw(submission: Submission) -> None:
    """Take all jobs of the submission out of the queue, also those whose ids nobody has."""
    call("scancel", f"--name={submission.job_name}")


def _refused(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if line.startswith("sbatch:") or "error:" in line]
    said = "\n  ".join(dict.fromkeys(told)) or lines[0]
    return (
        f"Slurm did not take the jobs:\n  {said}\n"
        "Look at partition, account, qos and limits (sinfo, sacctmgr show assoc); change them with "
        "--cluster-config or --set launch.partition=…; hpc-mlp submit --dry-run shows the script."
    )


def cancel(submission: Submission, jobs: Iterable[int]) -> None:
    """`scancel` of those of their jobs that Slurm still has under this name."""
    if not is_there():
        raise RunError("no scancel here: run this on a login node of the cluster.")
    wanted = {index: submission.jobs[index].job_id or "" for index in jobs}
    # Can Slurm be asked at all?
    present(wanted.values(), submission.job_name)
    for index in wanted:
        # Before the signal: the job then ends at once, and is not requeued.
        submission.mark_cancelled(index)
    ours = present(wanted.values(), submission.job_name)
    # Command lines have a limit.
    for start in range(0, len(ours), 500):
        if call("scancel", *ours[start : start + 500]) is None:
            raise RunError("scancel failed: see `squeue --me` for what is left.")
    # Slurm's KillWait, and a margin.
    deadline = time.monotonic() + _CANCEL_SECONDS
    while ours and time.monotonic() < deadline:
        time.sleep(0.5)
        ours = present(wanted.values(), submission.job_name)


def log_path(submission: Submission, job: int) -> Path:
    return submission.logs / f"{submission.jobs[job].job_id}_0_log.err"
