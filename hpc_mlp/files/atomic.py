"""Files that appear whole or not at all, and locks that end with the process that holds them."""

from __future__ import annotations

import fcntl
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from hpc_mlp.errors import naming

_POLL_SECONDS = 0.05


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside `path` to write a file under. It takes the place of `path` once the block has
    ended without an error, with the permissions that an ordinary new file would have, and is
    removed otherwise."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        yield temporary
        temporary.chmod(0o666 & ~umask())
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_bytes(path: Path, data: bytes) -> None:
    """Whole or not at all, also where the machine crashes; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, naming(path), temporary.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def umask() -> int:
    """The permissions that new files of this process do not get."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def lock(file: IO[bytes] | IO[str] | int, patience: float = 0.0) -> bool:
    """Lock an open file (flock) until it is closed, here and by the children that it was passed on
    to. False where another has held it for `patience` seconds, or there are no locks."""
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_SECONDS)
        except OSError:
            return False
