"""What squeue, sacct and scontrol say."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable

from hpc_mlp.errors import RunError
from hpc_mlp.launch.jobs import JobInfo
from hpc_mlp.launch.records import Submission

# What squeue and sacct call a job that waits; all but these and _OVER count as running.
_WAITING = {"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
_OVER = {
    "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL",
    "DEADLINE", "PREEMPTED", "REVOKED",
}  # fmt: skip
_TIMEOUT_SECONDS = 60
# Slurm's own default of MaxArraySize.
_DEFAULT_MAX_ARRAY = 1001


def is_there() -> bool:
    return shutil.which("sbatch") is not None


def call(*command: str) -> str | None:
    """The output of one of Slurm's commands; None where it is missing, fails or does not answer."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    # The only job asked for is long forgotten.
    if done.returncode and "Invalid job id" in done.stderr:
        return ""
    return done.stdout if done.returncode == 0 else None


def max_array_size() -> int:
    """How many elements one array may have here: indices must stay below MaxArraySize."""
    value = (config() or {}).get("MaxArraySize", "")
    return int(value) if value.isdigit() and int(value) > 0 else _DEFAULT_MAX_ARRAY


def config() -> dict[str, str] | None:
    """`scontrol show config` as a dictionary; None where Slurm does not answer."""
    text = call("scontrol", "show", "config")
    if text is None:
        return None
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line)
    return {key.strip(): value.strip() for key, _, value in pairs}


def query(submissions: Iterable[Submission]) -> dict[str, JobInfo] | None:
    """Every job that Slurm knows of these submissions, by job id; None where Slurm cannot be asked.
    A job of another name that only has the same number (after a wipe) is not taken for ours."""
    names = {
        job.job_id: submission.job_name
        for submission in submissions
        for job in submission.jobs
        if job.job_id
    }
    if not names:
        return {}
    queue = _squeue(names, "--states=all", "--format=%i|%T|%r|%N|%L|%j")
    if queue is None:
        return None
    known = _read_squeue(queue, names)
    if missing := names.keys() - known.keys():
        options = "--noheader --allocations --parsable2 --format=JobID%60,State,NodeList,JobName%60"
        history = call("sacct", *options.split(), f"--jobs={_masters(missing)}")
        known = _read_sacct(history or "", names) | known
    return known


def _squeue(job_ids: Iterable[str], *options: str) -> str | None:
    return call("squeue", "--noheader", "--array", f"--jobs={_masters(job_ids)}", *options)


def _masters(job_ids: Iterable[str]) -> str:
    """Of 7_1, 7_2 and 8: `7,8`."""
    return ",".join(sorted({job_id.partition("_")[0] for job_id in job_ids}))


def _read_squeue(text: str, names: dict[str, str]) -> dict[str, JobInfo]:
    known: dict[str, JobInfo] = {}
    for line in text.splitlines():
        job_id, word, reason, node, left, name = (*line.strip().split("|", 5), *[""] * 6)[:6]
        if names.get(job_id) == name:
            known[job_id] = _info(word, reason, node, left)
    return known


def _read_sacct(text: str, names: dict[str, str]) -> dict[str, JobInfo]:
    """sacct lags by seconds: what squeue no longer knows is over, whatever sacct still shows."""
    known: dict[str, JobInfo] = {}
    for line in text.splitlines():
        ids, word, node, name = (*line.strip().split("|", 3), *[""] * 4)[:4]
        for job_id in expand_ids(ids):
            if names.get(job_id) == name:
                info = _info(word, "", node, "")
                known[job_id] = info if info.state == "over" else JobInfo("over", "ended")
    return known


def _info(word: str, reason: str, node: str, left: str) -> JobInfo:
    # "CANCELLED by 1000"
    word = word.split()[0].rstrip("+") if word else ""
    if word in _WAITING:
        return JobInfo("queued", word, reason if reason != "None" else "")
    if word in _OVER:
        return JobInfo("over", word, node=node)
    return JobInfo(
        "running", word, node=node, time_left=left if left not in ("UNLIMITED", "INVALID") else ""
    )


def expand_ids(text: str) -> list[str]:
    """`"7_[1-3,5%2]"` → 7_1, 7_2, 7_3, 7_5."""
    match = re.fullmatch(r"(\d+)_\[([\d,\-]+)(?:%\d+)?\]", text)
    if not match:
        return [text]
    ids = []
    for part in match[2].split(","):
        first, _, last = part.partition("-")
        ids += [f"{match[1]}_{number}" for number in range(int(first), int(last or first) + 1)]
    return ids


def present(job_ids: Iterable[str], job_name: str) -> list[str]:
    """Those of these jobs that Slurm still has by this name; RunError where it is silent."""
    wanted = set(job_ids)
    if not _masters(wanted):
        return []
    queue = _squeue(wanted, "--format=%i|%j")
    if queue is None:
        raise RunError("squeue does not answer: nothing was cancelled. Try again on a login node.")
    present = dict(line.strip().split("|", 1) for line in queue.splitlines())
    return sorted(job_id for job_id in wanted if present.get(job_id) == job_name)
