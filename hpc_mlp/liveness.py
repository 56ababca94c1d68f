"""Names a process beyond doubt, so that another one can later tell whether it still lives.

A record is a dictionary with host, boot, pid and started: a process number alone may belong to another process
by now, to another machine, or to another container of the same host name.
"""

from __future__ import annotations

import os
import socket
import tempfile
import time
from pathlib import Path
from typing import Any


def this_process() -> dict[str, Any]:
    """The record of the calling process."""
    pid = os.getpid()
    return {"host": socket.gethostname(), "boot": _boot(), "pid": pid, "started": _process_start(pid)}


def _boot() -> str:
    """Names this boot of this machine and this process-id namespace; "" where it cannot be told."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _process_start(pid: int) -> str | None:
    """When process `pid` started, in the kernel's ticks; None if there is no such (living) process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            pass
        return ""
    return None if fields[0] in "ZX" else fields[19]


def on_this_machine(owner: dict[str, Any]) -> bool:
    """Whether the record is of this machine, so that more can be said of it."""
    return owner.get("host") == socket.gethostname() and owner.get("boot") == _boot()


def is_dead(owner: dict[str, Any]) -> bool:
    """True only when certain: its machine is this one and its process is gone."""
    return on_this_machine(owner) and _process_start(int(owner["pid"])) != owner.get("started")


def is_alive(owner: dict[str, Any]) -> bool:
    """True only when certain: its machine is this one and its process is there."""
    return on_this_machine(owner) and _process_start(int(owner["pid"])) == owner.get("started")


def age(path: Path) -> float:
    """Seconds since `path` was written, by the file system's clock: the machine that wrote it, and this one, may
    have others. FileNotFoundError where it is gone."""
    written = path.stat().st_mtime
    try:
        with tempfile.TemporaryFile(dir=path.parent) as probe:
            return os.fstat(probe.fileno()).st_mtime - written
    except FileNotFoundError:
        raise
    except OSError:  # we may only read there
        return time.time() - written
