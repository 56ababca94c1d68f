"""The places of this machine where a pack may run: its GPUs, or shares of its cores.

A slot is a lock file of this user on this machine, so that two submissions share the devices instead of doubling
up on them.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from hpc_mlp.config import LaunchConfig
from hpc_mlp.errors import RunError


@dataclass(frozen=True)
class Slot:
    """A place where one pack may run: some GPUs, or a share of the cores."""

    name: str
    devices: tuple[str, ...] = ()
    threads: int = 1


def gpus() -> list[str]:
    """The GPUs that this shell may use, without torch: CUDA_VISIBLE_DEVICES, else what nvidia-smi lists."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip() and name.strip() != "-1"]
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    lines = done.stdout.splitlines() if done.returncode == 0 else []
    return [str(index) for index in range(sum(line.startswith("GPU ") for line in lines))]


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def make_slots(launch: LaunchConfig, number: int | None, cpu: bool) -> list[Slot]:
    """One slot per GPU (or group of `gpus_per_job`); without GPUs `number` slots, default 1, that share the
    cores. `number` on a machine with GPUs bounds the slots that are used."""
    devices = [] if cpu else gpus()
    per_slot = max(1, launch.gpus_per_job)
    groups = [tuple(devices[i : i + per_slot]) for i in range(0, len(devices) - per_slot + 1, per_slot)]
    if launch.gpus_per_job and not groups:
        raise RunError(f"launch.gpus_per_job = {per_slot}, but this machine shows {len(devices)} GPUs.")
    if groups:
        groups = groups[:number]
        threads = max(1, cores() // len(groups))
        return [Slot(f"gpu-{'-'.join(group)}", group, threads) for group in groups]
    count = number or 1
    return [Slot(f"cpu-{index}", (), max(1, cores() // count)) for index in range(count)]


def lock_folder() -> Path:
    return Path(tempfile.gettempdir()) / f"hpc-mlp-slots-{os.getuid()}"
