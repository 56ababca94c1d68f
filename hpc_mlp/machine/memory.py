"""What there is of cores and memory, and what images take. No torch."""

from __future__ import annotations

import os
from pathlib import Path

_CGROUP_FILES = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def cores() -> list[int]:
    """The numbers of the cores that this process may use: a Slurm job has fewer than the
    machine."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def num_cpus() -> int:
    return len(cores())


def free_machine_memory() -> int:
    """Bytes that can still be had of this machine and this control group (as Slurm sets)."""
    free = _available()
    for limit, used in _CGROUP_FILES:
        try:
            free = min(free, int(Path(limit).read_text()) - int(Path(used).read_text()))
        # No such control group, or "max".
        except (OSError, ValueError):
            continue
    return max(free, 0)


def machine_memory() -> int:
    """Bytes of memory that this machine, or this control group, has in all."""
    most = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for limit, _ in _CGROUP_FILES:
        try:
            most = min(most, int(Path(limit).read_text()))
        # No such control group, or "max".
        except (OSError, ValueError):
            continue
    return most


def _available() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    # Other systems: half of all.
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
