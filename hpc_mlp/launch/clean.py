"""What of a runs folder nobody needs any more, and its removal: checkpoints of complete runs, what
killed processes left, failed runs, decoded images. Nothing of a run that trains, waits in a queue
or is held."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hpc_mlp.errors import RunError
from hpc_mlp.launch.status import read_status
from hpc_mlp.live.rows import ACTIVE, COMPLETE, RunStatus
from hpc_mlp.runs.folder import RESULT, RunFolder, read_run
from hpc_mlp.runs.lease import Lease, is_held

Kind = Literal["checkpoint", "leftovers", "failed run", "decoded images"]


@dataclass(frozen=True)
class Waste:
    """`folder`: of the run whose lease is to be held; `paths`: files, or that folder itself."""

    kind: Kind
    paths: tuple[Path, ...]
    size: int
    folder: Path | None = None


@dataclass(frozen=True)
class Found:
    """`busy`: the number of runs that train, wait or are held, of which nothing is touched."""

    waste: list[Waste]
    busy: int


def find(roots: Sequence[Path]) -> Found:
    """By run, then the decoded images of the datasets whose runs all rest."""
    waste: list[Waste] = []
    resting: dict[Path, bool] = {}
    busy = 0
    for root in roots:
        for status in read_status(root):
            folder = root / status.name
            if folder.is_symlink() or (run := read_run(folder)) is None:
                continue
            rests = status.state not in ACTIVE and not is_held(folder)
            shards = Path(run.config.dataset.path or folder)
            resting[shards] = resting.get(shards, True) and rests
            busy += not rests
            waste += _of_run(status, folder) if rests else []
    caches = [_waste("decoded images", _cache_files(path)) for path, r in resting.items() if r]
    return Found([item for item in [*waste, *caches] if item.paths], busy)


def _of_run(status: RunStatus, folder: Path) -> list[Waste]:
    files = RunFolder(folder)
    if status.state == "failed":
        inside = [path for path in folder.rglob("*") if path.is_file()]
        return [Waste("failed run", (folder,), _size(inside), folder)]
    checkpoints = files.checkpoints() if status.state in COMPLETE else []
    return [
        _waste("checkpoint", checkpoints, folder),
        _waste("leftovers", files.leftovers(), folder),
    ]


def _waste(kind: Kind, paths: Iterable[Path], folder: Path | None = None) -> Waste:
    found = tuple(path for path in paths if path.is_file())
    return Waste(kind, found, _size(found), folder)


def _cache_files(shards: Path) -> list[Path]:
    from hpc_mlp.data.cache import files

    return files(shards)


def _size(paths: Iterable[Path]) -> int:
    total = 0
    for path in paths:
        try:
            total += path.lstat().st_size
        # Gone meanwhile.
        except OSError:
            continue
    return total


def remove(waste: Waste) -> None:
    """RunError where somebody trains the run by now; OSError where a file cannot be removed."""
    folder = waste.folder
    if folder is None:
        _unlink(waste.paths)
        return
    with Lease(folder, wait=0, claim=""):
        # What was found a moment ago may be another run's by now.
        complete = (folder / RESULT).exists()
        if complete != (waste.kind == "checkpoint") and waste.kind != "leftovers":
            raise RunError(f"{folder} has changed meanwhile: left alone.")
        if waste.kind == "failed run":
            RunFolder(folder).clear()
        else:
            _unlink(waste.paths)
    if waste.kind == "failed run" and folder.exists():
        raise RunError(f"{folder} could not be removed as a whole: see who owns what is left.")


def _unlink(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
