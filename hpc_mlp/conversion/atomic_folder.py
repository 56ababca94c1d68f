"""A folder that appears whole or not at all, in one step, and never in the place of what is not
ours.

A workspace `.OUT.partial-XXXXXXXX` lies beside OUT while the work goes on:

    .lock     held by the process at work; the last thing to go, so that whoever finds a
              workspace whose lock is free knows that its process is dead
    making    what is being written
    whole     what is ready to take OUT's place and, after the exchange, what stood there before
    old       only on file systems that cannot exchange: what stood in OUT's place, until the
              new one stands there"""

from __future__ import annotations

import errno
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hpc_mlp.errors import UserError, printable
from hpc_mlp.files import atomic

_LOCK, _MAKING, _WHOLE, _OLD = ".lock", "making", "whole", "old"
_NOREPLACE, _EXCHANGE = 1, 2
_TRIES = 100


def check_target(out: Path, overwrite: bool, marker: str) -> None:
    """UserError where `out` exists and may not be replaced: what has no file `marker` is not ours.
    Puts back first what a killed replacement had moved away."""
    _clear_stale(out.absolute(), marker)
    _check(out, overwrite, marker)


def _check(out: Path, overwrite: bool, marker: str, when: str = "") -> None:
    if not os.path.lexists(out):
        return
    if not overwrite:
        raise UserError(
            f"{printable(out)} exists{when}. Choose another folder, or replace it with --overwrite."
        )
    if not _replaceable(out, marker):
        raise UserError(
            f"{printable(out)} is not a shards folder (no {marker}), so --overwrite does not "
            "replace it. Choose another folder, or remove it yourself."
        )


def _replaceable(folder: Path, marker: str) -> bool:
    return folder.is_dir() and ((folder / marker).is_file() or not any(folder.iterdir()))


@contextmanager
def new_folder(out: Path, overwrite: bool, marker: str) -> Iterator[Path]:
    """A folder that takes the place of `out` when the block ends without an error, and is removed
    otherwise. UserError where `check_target` forbids to replace what stands there by then."""
    out = out.absolute()
    made = [folder for folder in out.parents if not folder.exists()]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        workspace, lock = _workspace(out)
    except OSError as error:
        raise UserError(
            f"{printable(out)} cannot be written: {error.strerror}. Choose another folder."
        ) from None
    done = False
    folder = workspace / _MAKING
    try:
        folder.mkdir()
        yield folder
        os.chmod(folder, 0o777 & ~atomic.umask())
        os.rename(folder, workspace / _WHOLE)
        _put_in_place(workspace, out, overwrite, marker)
        done = True
    finally:
        _remove(workspace, out, marker)
        os.close(lock)
        for parent in () if done else made:
            with suppress(OSError):
                parent.rmdir()


def _workspace(out: Path) -> tuple[Path, int]:
    """A new one, and the descriptor that holds its lock."""
    while True:
        workspace = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
        try:
            lock = os.open(workspace / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        # Another process took the empty folder for a left-over.
        except FileNotFoundError:
            continue
        except OSError:
            workspace.rmdir()
            raise
        # False on a file system without locks: then nobody clears it away.
        atomic.lock(lock, patience=float("inf"))
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock), os.stat(workspace / _LOCK)):
                return workspace, lock
        os.close(lock)


def _put_in_place(workspace: Path, out: Path, overwrite: bool, marker: str) -> None:
    whole = workspace / _WHOLE
    # Each time that something appears or disappears in between.
    for _ in range(_TRIES):
        if _place(whole, out):
            return
        _check(out, overwrite, marker, when=": it appeared while this conversion was at work")
        try:
            if not _renameat2(whole, out, _EXCHANGE):
                os.rename(out, workspace / _OLD)
                # What cannot be exchanged is absent a moment; `_clear_stale` mends a death here.
                if _replaceable(workspace / _OLD, marker) and _place(whole, out):
                    return
                _place(workspace / _OLD, out)
            elif _replaceable(whole, marker):
                return
            else:
                # It became another after it was looked at.
                _renameat2(whole, out, _EXCHANGE)
        except FileNotFoundError:
            continue
    raise OSError(errno.EBUSY, "others replace it all the time", str(out))


def _place(folder: Path, out: Path) -> bool:
    """Rename `folder` to `out` where nothing stands there; whether that was so."""
    try:
        if not _renameat2(folder, out, _NOREPLACE):
            if os.path.lexists(out):
                return False
            # Replaces an empty folder at most: POSIX.
            os.rename(folder, out)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            return False
        raise
    return True


def _renameat2(source: Path, target: Path, flag: int) -> bool:
    """Linux's rename that never replaces, or that exchanges. False where the system cannot do it;
    OSError as of `os.rename`."""
    import ctypes

    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    # AT_FDCWD.
    here = -100
    if call(here, os.fsencode(source), here, os.fsencode(target), ctypes.c_uint(flag)) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(target))


# ── what is left over
# ───────────────────────────────────────────────────────────────────────────────────


def _clear_stale(out: Path, marker: str) -> None:
    """Remove dead processes' workspaces; put back what one had moved away from `out`."""
    for workspace in sorted(out.parent.glob(f".{glob.escape(out.name)}.partial-*")):
        with suppress(OSError):
            found = os.listdir(workspace)
            if not found:
                workspace.rmdir()
            if _LOCK not in found and not _made_before_locks_were_kept(workspace, found, marker):
                continue
            lock = os.open(workspace / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                # Else another conversion is at work.
                if atomic.lock(lock):
                    _remove(workspace, out, marker)
            finally:
                os.close(lock)


def _made_before_locks_were_kept(workspace: Path, found: list[str], marker: str) -> bool:
    """The first versions removed the lock before they put the new folder in OUT's place: a death
    there left the whole new folder as workspace, or a workspace with nothing but the old one."""
    return (workspace / marker).is_file() or (
        found == [_OLD] and (workspace / _OLD / marker).is_file()
    )


def _remove(workspace: Path, out: Path, marker: str) -> None:
    """Remove a workspace of which this process holds the lock. What a death has moved away from
    `out` goes back there; what is not ours stays, and the workspace with it."""
    with suppress(OSError):
        if os.path.lexists(workspace / _OLD):
            _place(workspace / _OLD, out)
        for part in (_WHOLE, _OLD):
            if _replaceable(workspace / part, marker) and (
                part == _WHOLE or (out / marker).is_file()
            ):
                # Renamed: what a killed removal leaves of it is not taken for another's.
                os.rename(workspace / part, workspace / f"{part}-removed")
        kept = {_WHOLE, _OLD} & set(os.listdir(workspace))
        for path in workspace.iterdir():
            if path.name in kept or path.name == _LOCK:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()
        if os.listdir(workspace) == [_LOCK]:
            (workspace / _LOCK).unlink()
            workspace.rmdir()
