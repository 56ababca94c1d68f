"""Which of the processes started together this one is, as whoever has started them says:
Accelerate, torchrun, a Slurm job, or `launch.spawn`."""

from __future__ import annotations

import os

# What Accelerate and torch.distributed read, in the order of `variables`.
NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def is_launched() -> bool:
    return "RANK" in os.environ


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_world_size() -> int:
    """The processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def meeting_place() -> str:
    """Of the processes: the first one's host:port."""
    return f"{os.environ.get('MASTER_ADDR', '')}:{os.environ.get('MASTER_PORT', '')}"


def restarts() -> int:
    """How often Slurm has started this job again."""
    return int(os.environ.get("SLURM_RESTART_COUNT", "0"))


def variables(*values: object) -> dict[str, str]:
    """The environment of one of the processes: `values` of NAMES."""
    return dict(zip(NAMES, map(str, values), strict=True))
