"""RUNS/submission.json: the newest submission and a list of all, for people and scripts, made from their folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hpc_mlp.launch.records import FOLDER, Submission, list_submissions
from hpc_mlp.runs.folder import write_json

INDEX = "submission.json"


def write_index(runs: Path) -> None:
    """Make RUNS/submission.json from the folders. Two shells may do so at once: whoever writes last looks
    again, so that neither submission is missing in the end."""
    written: list[str] = []
    while (submissions := list_submissions(runs)) and [item.id for item in submissions] != written:
        lines = [_line(submission) for submission in submissions]
        write_json(runs / INDEX, {"format": 1, **lines[-1], "submissions": lines})
        written = [item.id for item in submissions]


def _line(submission: Submission) -> dict[str, Any]:
    return {
        "id": submission.id,
        "cluster": submission.cluster,
        "created": submission.created,
        "host": submission.host,
        "command": submission.command,
        "folder": f"{FOLDER}/{submission.id}",
        "job_ids": [pack.job_id for pack in submission.packs if pack.job_id],
        "packs": [{"job_id": p.job_id, "runs": [run.name for run in p.runs]} for p in submission.packs],
    }
