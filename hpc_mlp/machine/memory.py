"""What there is of cores and memory, and how malloc keeps it. No torch."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_CGROUP_FILES = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def cores() -> list[int]:
    """The cores that this process may use: a Slurm job has fewer than the machine."""
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


def keep_freed_memory() -> None:
    """Have glibc's malloc keep up to 512 MB that are free: the next step asks for the same again.
    By default it hands large pieces back, and the kernel must clear every page anew
    (784-2048-1024-10, batch 256, 5 seeds on 2 cores: five times the page faults, 26.5 s an epoch
    instead of 24.4; n = 2). Other C libraries: no effect."""
    import ctypes

    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        mallopt(_M_TRIM_THRESHOLD, 512 << 20)


def return_freed_memory() -> None:
    """Have glibc's malloc hand back every freed piece of 1 MiB and more. By default it keeps those
    that are no larger than the largest freed before, and the arrays of a conversion of a million
    images, each of some MB, pile up between each other's gaps. Other C libraries: no effect."""
    import ctypes

    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 1 << 20)
        mallopt(_M_TRIM_THRESHOLD, 2 << 20)
