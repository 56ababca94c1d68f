"""One writer per run folder: a lease with a heartbeat that works on a shared file system.

A job that Slurm gave up for dead may live on behind a broken network while its requeued twin starts
elsewhere. The file `lease.json` in the run folder names the one process that may write there.

How it stays right without file locks and without comparing the clocks of two machines:
- The lease appears by `link` from a finished file: of several processes one gets it.
- The owner beats by writing *in place* through its open file: once the lease has been taken away,
  its beats go to a file that nobody sees any more, and never to the new owner's.
- A lease is taken away by `rename` to a private name, looked at again, and given back if it is
  not the one that was judged dead.
- It is judged dead when its content has not changed for `stale_after` seconds of the *watcher's*
  monotonic clock, or at once when its process is known to be gone (same machine), or is an
  earlier start of the same job (claim)."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from pydantic import ValidationError

from hpc_mlp.errors import LeaseLostError, RunError, naming, printable
from hpc_mlp.machine import ranks
from hpc_mlp.machine.liveness import Process, age, is_alive, is_dead, on_this_machine, this_process

LEASE = "lease.json"
# Names the job over all of its starts; set by launch.job.
CLAIM = "HPC_MLP_CLAIM"
# The file never changes its length, so a reader never sees half of it.
_SIZE = 1024
# × 50 ms: a lease that is being looked at by a contender is away for an instant
_MISSING_RETRIES = 20


class Owner(Process):
    """Who holds a lease. `claim`: its job over all starts, of which `restart` counts."""

    token: str = ""
    claim: str = ""
    restart: int = 0
    job: str = ""


class Lease:
    """`with Lease(folder) as lease:` … `lease.check()` before every write.

    Entering waits up to `wait` seconds for a living owner and raises RunError if it does not go.
    `check` raises LeaseLostError once another process has taken over; `lost` is the same, as last
    seen by the heartbeat thread, and costs nothing."""

    def __init__(
        self,
        folder: Path,
        *,
        stale_after: float = 60.0,
        heartbeat: float | None = None,
        wait: float = 60.0,
        claim: str | None = None,
        restart: int | None = None,
    ) -> None:
        self.path = Path(folder) / LEASE
        self.stale_after = stale_after
        self.heartbeat = heartbeat or stale_after / 6
        self.wait = wait
        self.lost = False
        self._owner: dict[str, Any] = {
            "token": uuid.uuid4().hex,
            "claim": os.environ.get(CLAIM, "") if claim is None else claim,
            "restart": ranks.restarts() if restart is None else restart,
            "job": os.environ.get("SLURM_JOB_ID", ""),
            **this_process(),
        }
        self._fd = -1
        self._beat = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Lease:
        for _ in self._attempts():
            time.sleep(self._pause)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # A forked worker holds no lease.
        if os.getpid() != self._owner["pid"]:
            return
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        os.close(self._fd)
        if not self.lost:
            self._take_away(partial(_has_token, self._owner["token"]))

    def check(self) -> None:
        """Raise LeaseLostError unless the lease is still ours. One small read."""
        if not self.lost and self._token_in_file() != self._owner["token"]:
            self.lost = True
        if self.lost:
            other = read_owner(self.path.parent)
            how = f"taken over by {describe(other)}" if other else "deleted, moved, or taken over"
            raise LeaseLostError(f"{self.path.parent} was {how}; this process stops writing there.")

    def _token_in_file(self) -> str | None:
        for _ in range(_MISSING_RETRIES):
            content = _read(self.path)
            if content is not None:
                return _parse(content).token
            time.sleep(0.05)
        return None

    # -- getting it

    @property
    def _pause(self) -> float:
        return min(self.heartbeat / 4, 1.0)

    def _attempts(self) -> Iterator[None]:
        """Yields while the lease cannot be had yet; returns when it is ours and beats."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        start = seen_since = time.monotonic()
        seen, alive = _read(self.path), False
        while not self._create():
            content, now = _read(self.path), time.monotonic()
            if content is None:
                yield
                continue
            if content != seen:
                seen, seen_since, alive = content, now, True
            owner = _parse(content)
            if self._supersedes(owner) or is_dead(owner):
                same = partial(_has_token, owner.token) if owner.token else content.__eq__
                self._take_away(same)
            elif now - seen_since >= self.stale_after:
                self._take_away(content.__eq__)
            elif now - start >= self.wait and (alive or is_alive(owner)):
                raise RunError(
                    f"{self.path.parent} is being trained by {describe(owner)}. Wait for it, or "
                    "cancel it."
                )
            else:
                yield
        self._thread = threading.Thread(target=self._beat_until_stopped, name="lease", daemon=True)
        self._thread.start()

    def _supersedes(self, owner: Owner) -> bool:
        """A requeued job outranks its earlier start, alive or not: Slurm has given it up."""
        same = bool(self._owner["claim"]) and owner.claim == self._owner["claim"]
        return same and owner.restart < self._owner["restart"]

    def _create(self) -> bool:
        temporary = self.path.with_name(f".{LEASE}.{uuid.uuid4().hex}")
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            with naming(self.path):
                os.pwrite(fd, self._content(), 0)
                os.fsync(fd)
            if _give_name(temporary, self.path):
                self._fd = fd
                return True
        finally:
            temporary.unlink(missing_ok=True)
        os.close(fd)
        return False

    def _take_away(self, is_it: Callable[[bytes], bool]) -> None:
        aside = self.path.with_name(f".{LEASE}.{uuid.uuid4().hex}")
        try:
            os.rename(self.path, aside)
        except FileNotFoundError:
            return
        # Someone was faster: give it back, unless a third one has the place by now.
        if not is_it(_read(aside) or b""):
            _give_name(aside, self.path)
        aside.unlink(missing_ok=True)

    # -- keeping it

    def _content(self) -> bytes:
        return json.dumps({**self._owner, "beat": self._beat}).encode().ljust(_SIZE - 1) + b"\n"

    def _beat_until_stopped(self) -> None:
        while not self._stop.wait(self.heartbeat):
            self._beat += 1
            # A full or hanging disk: the next beat may get through.
            with contextlib.suppress(OSError):
                os.pwrite(self._fd, self._content(), 0)
                os.fsync(self._fd)
            if self._token_in_file() != self._owner["token"]:
                self.lost = True
                return


@contextmanager
def hold_all(
    leases: Sequence[Lease], *, check: Callable[[], None] = lambda: None
) -> Iterator[Sequence[Lease]]:
    """Enter several leases together: the watch over silent owners takes its time once and not once
    for each. All or none: RunError, and what `check` raises (asked while waiting), gives back those
    already held."""
    waiting = [(lease, lease._attempts()) for lease in leases]
    with ExitStack() as held:
        while waiting:
            still = []
            for lease, attempts in waiting:
                if next(attempts, True) is None:
                    still.append((lease, attempts))
                else:
                    held.push(lease)
            waiting = still
            for _ in range(10 if waiting else 0):
                check()
                time.sleep(waiting[0][0]._pause / 10)
        yield leases


def read_owner(folder: Path) -> Owner | None:
    """Who holds the lease of `folder`; None if nobody. Of a damaged file nothing is known: somebody
    may hold it, until it is old."""
    content = _read(Path(folder) / LEASE)
    return None if content is None else _parse(content)


def describe(owner: Owner) -> str:
    if not owner.host:
        return f"a process that {LEASE} does not name (it is damaged)"
    return printable(
        f"process {owner.pid} on {owner.host}" + (f" (job {owner.job})" if owner.job else "")
    )


def is_held(folder: Path, stale_after: float = 60.0) -> bool:
    """Whether a living process seems to hold the lease of `folder`. On the owner's machine this is
    certain; from elsewhere it goes by the age of the last heartbeat."""
    owner = read_owner(folder)
    if owner is None:
        return False
    if on_this_machine(owner):
        return is_alive(owner)
    try:
        # From the future: its clock was set, and nobody beats.
        return abs(age(folder / LEASE)) < stale_after
    except OSError:
        return False


def _give_name(source: Path, target: Path) -> bool:
    """Let the file `source` appear as `target`. False where that name is taken."""
    try:
        os.link(source, target)
    except FileExistsError:
        # Over NFS the answer to a link that worked may be lost: the next finds the name taken.
        with contextlib.suppress(OSError):
            return os.path.samefile(source, target)
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
            raise
        # a file system without hard links: reserve the name, then put the file there
        try:
            os.close(os.open(target, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        os.rename(source, target)
    return True


def _has_token(token: str, content: bytes) -> bool:
    return _parse(content).token == token


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _parse(content: bytes) -> Owner:
    try:
        return Owner.model_validate_json(content)
    except ValidationError:
        return Owner()
