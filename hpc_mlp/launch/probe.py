"""The doctor's test job: a job of the kind that `submit` sends, sent the same way."""

from __future__ import annotations

import shutil
import socket
import sys
import time
import uuid
from pathlib import Path
from typing import Any

from hpc_mlp.config.plan import RunSpec
from hpc_mlp.config.sections import Config, LaunchConfig
from hpc_mlp.errors import HpcMlpError
from hpc_mlp.files.checked import Record, read
from hpc_mlp.launch.cluster import SCHEDULERS
from hpc_mlp.launch.doctor import Finding, existing
from hpc_mlp.launch.jobs import UNKNOWN, JobPlan
from hpc_mlp.launch.records import Cluster, Submission, new_submission
from hpc_mlp.runs.folder import write_json

_TEST_SECONDS = 300
_REPORT = "report.json"


class Answer(Record):
    host: str
    device: str


def answer(shards: Path, specs: Any, runs: Path, options: Any) -> int:
    """What the test job does instead of training: tell about its surroundings."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    write_json(runs / _REPORT, {"host": socket.gethostname(), "device": device})
    return 0


def send(runs: Path, cluster: Cluster, launch: LaunchConfig) -> Finding:
    """A job of the kind that `submit` sends, on the same way; waits for it up to five minutes."""
    folder = existing(runs) / f".hpc-mlp-doctor-{uuid.uuid4().hex[:8]}"
    job = JobPlan(0, "doctor", (RunSpec("doctor", "doctor", 0, Config()),))
    small = launch.model_copy(update={"time_minutes": min(launch.time_minutes, 10)})
    begun = time.monotonic()
    try:
        submission = new_submission(
            folder, cluster, folder, [job], launch=small, entry=f"{__name__}:answer"
        )
        submission = SCHEDULERS[cluster].submit(submission)
        state = _wait_for_job(submission)
    except HpcMlpError as error:
        shutil.rmtree(folder, ignore_errors=True)
        advice = "Change the resources: --cluster-config, --set launch.…"
        return Finding("test job", "error", str(error), advice)
    report = read(folder / _REPORT, Answer, "")
    took = f"{time.monotonic() - begun:.0f} s"
    if report:
        shutil.rmtree(folder, ignore_errors=True)
        return Finding("test job", "ok", f"{report.device} on {report.host}, after {took}")
    found = f"{state} after {took}, and no answer came back to {folder}"
    advice = f"Do the nodes see this folder, and {sys.executable}? Its log: {submission.logs}"
    return Finding("test job", "error", found, advice)


def _wait_for_job(submission: Submission) -> str:
    scheduler = SCHEDULERS[submission.cluster]
    deadline = time.monotonic() + _TEST_SECONDS
    info = UNKNOWN
    while time.monotonic() < deadline:
        info = (scheduler.query([submission]) or {}).get(submission.jobs[0].job_id or "", UNKNOWN)
        if info.state == "over" or (submission.folder.parent.parent / _REPORT).exists():
            return info.detail
        time.sleep(0.5)
    scheduler.cancel(submission, [0])
    return f"{info.detail or 'unknown'} {info.reason}".strip()
