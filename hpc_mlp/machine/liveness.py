"""Names a process beyond doubt, so that another one can later tell whether it still lives.

A record has host, boot, pid and started: a process number alone may belong to another process by
now, to another machine, or to another container of the same host name."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from hpc_mlp.files.checked import Record


class Process(Record):
    """One process of one machine. Of what was not recorded none is dead or alive."""

    host: str = ""
    boot: str = ""
    pid: int = Field(default=0, ge=0, lt=1 << 31)
    # In the kernel's ticks; "" where it tells none.
    started: str | None = None


def this_process() -> dict[str, Any]:
    """The record of the calling process, as a `Process` is read from."""
    pid = os.getpid()
    return {
        "host": socket.gethostname(),
        "boot": _boot(),
        "pid": pid,
        "started": _process_start(pid),
    }


def _boot() -> str:
    """Names this boot of this machine and this process-id namespace; "" where it cannot be told."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _process_start(pid: int) -> str | None:
    """When process `pid` started, in the kernel's ticks; None if none such lives."""
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


def on_this_machine(process: Process) -> bool:
    """Whether the record is of this machine, so that more can be said of it."""
    return (process.host, process.boot) == (socket.gethostname(), _boot())


def is_dead(process: Process) -> bool:
    """True only when certain: its machine is this one and its process is gone."""
    return _known_here(process) and _process_start(process.pid) != process.started


def is_alive(process: Process) -> bool:
    """True only when certain: its machine is this one and its process is there."""
    return _known_here(process) and _process_start(process.pid) == process.started


def _known_here(process: Process) -> bool:
    return process.pid > 1 and process.started is not None and on_this_machine(process)


def send_signal(process: Process, number: int, words: Sequence[str]) -> bool:
    """Signal the process if it is proven to be the recorded one, with all of `words` in its command
    line; → whether it was. A record may be damaged, or be somebody else's work: it alone proves
    nothing."""
    if not process.started or not is_alive(process):
        return False
    try:
        handle = os.pidfd_open(process.pid)
    # Not on Linux: there is nothing to prove it by.
    except (AttributeError, OSError):
        return False
    try:
        # Looked at again, now that the number can become no other process's.
        command = Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")
        if not is_alive(process) or not {os.fsencode(word) for word in words} <= set(command):
            return False
        signal.pidfd_send_signal(handle, number)
        return True
    except OSError:
        return False
    finally:
        os.close(handle)


def age(path: Path) -> float:
    """Seconds since `path` was written, by the file system's clock: the machine that wrote it, and
    this one, may have others. FileNotFoundError where it is gone."""
    written = path.stat().st_mtime
    try:
        with tempfile.TemporaryFile(dir=path.parent) as probe:
            return os.fstat(probe.fileno()).st_mtime - written
    except FileNotFoundError:
        raise
    # We may only read there.
    except OSError:
        return time.time() - written
