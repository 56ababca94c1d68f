"""A folder that appears whole or not at all."""

from __future__ import annotations

import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hpc_mlp.errors import UserError


def check_target(out: Path, overwrite: bool, marker: str) -> None:
    """UserError where `out` exists and may not be replaced: what has no file `marker` is not ours."""
    if not os.path.lexists(out):
        return
    if not overwrite:
        raise UserError(f"{out} exists. Choose another folder, or replace it with --overwrite.")
    if not out.is_dir() or (any(out.iterdir()) and not (out / marker).is_file()):
        raise UserError(
            f"{out} is not a shards folder (no {marker}), so --overwrite does not replace it. "
            f"Choose another folder, or remove it yourself."
        )


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out` that takes its place when the block ends without an error, and is removed
    otherwise. What a killed process left there earlier is removed as well."""
    out = out.absolute()
    made = [folder for folder in out.parents if not folder.exists()]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(out)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}. Choose another folder.") from None
    lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder
        (folder / ".lock").unlink()
        os.chmod(folder, 0o777 & ~_umask())
        _put_in_place(folder, out)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        for parent in made:
            with suppress(OSError):
                parent.rmdir()
        raise
    finally:
        os.close(lock)


def _put_in_place(folder: Path, out: Path) -> None:
    if out.is_dir():
        old = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
        os.replace(out, old / "old")
        os.replace(folder, out)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.replace(folder, out)


def _remove_stale(out: Path) -> None:
    for folder in out.parent.glob(f".{glob.escape(out.name)}.partial-*"):
        with suppress(OSError):
            lock = os.open(folder / ".lock", os.O_RDWR)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held: another conversion is at work
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
