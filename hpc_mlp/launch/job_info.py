"""A job as its cluster sees it, and job ids as Slurm and people write them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from hpc_mlp.terminal.text import spans


@dataclass(frozen=True)
class JobInfo:
    """One job as the cluster sees it. `detail` is the cluster's own word."""

    state: Literal["queued", "running", "over", "unknown"]
    detail: str = ""
    reason: str = ""
    node: str = ""
    time_left: str = ""


UNKNOWN = JobInfo("unknown")


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


def shorten_ids(job_ids: list[str]) -> str:
    """`7_0, 7_1, 7_2` → `7_[0-2]`. What is no job's id stays as it is."""
    by_master: dict[str, list[int]] = {}
    others = []
    for job_id in job_ids:
        if found := re.fullmatch(r"(?:(.*)_)?([0-9]{1,18})", job_id):
            by_master.setdefault(found[1] or "", []).append(int(found[2]))
        else:
            others.append(job_id)
    parts = []
    for master, indices in by_master.items():
        text = f"[{spans(sorted(indices))}]" if len(indices) > 1 else str(indices[0])
        parts.append(f"{master}_{text}" if master else text)
    return ", ".join(parts + others)
