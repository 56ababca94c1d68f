"""What of a runs folder nobody needs any more, and its removal: checkpoints of complete runs, what
killed processes left, failed runs, checkpoints of halved trials, decoded images. Nothing of a run
that trains, waits in a queue or is held."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.text import Text

from hpc_mlp.config.search import FOLDER as TRIALS
from hpc_mlp.errors import RunError
from hpc_mlp.files.wrong_path import want_runs
from hpc_mlp.launch.status import read_status, require_status
from hpc_mlp.live.rows import ACTIVE, COMPLETE, RunStatus
from hpc_mlp.runs.folder import RESULT, RunFolder, RunsLike, folders_and_own, read_run
from hpc_mlp.runs.lease import Lease, is_held
from hpc_mlp.terminal.shown import Showable
from hpc_mlp.terminal.text import count

Kind = Literal["checkpoint", "halved trial", "leftovers", "failed run", "decoded images"]
# What is removed only on request, and the option that asks for it.
_ASKED: dict[Kind, str] = {
    "failed run": "--failed",
    "halved trial": "--halved",
    "decoded images": "--cache",
}
# Lines of single files.
_MOST_LINES = 20


@dataclass(frozen=True)
class Waste:
    """`folder`: of the run whose lease is to be held; `paths`: files, of a "halved trial" those of
    its checkpoint, or that folder itself."""

    kind: Kind
    paths: tuple[Path, ...]
    size: int
    folder: Path | None = None


@dataclass(frozen=True)
class Found:
    """`busy`: the number of runs that train, wait or are held, of which nothing is touched."""

    waste: list[Waste]
    busy: int


def clean(
    runs: RunsLike = "runs",
    *,
    failed: bool = False,
    halved: bool = False,
    cache: bool = False,
    dry_run: bool = False,
) -> Cleaned:
    """Remove what nobody needs any more of a folder of runs, or of several, and of their searches,
    or of what `train` returned, as `hpc-mlp clean` does: checkpoints of complete runs, and what
    killed processes left. `failed`:
    failed runs too; `halved`: checkpoints of halved trials too; `cache`: decoded images beside the
    shards too; `dry_run`: remove nothing. UserError where there are no runs."""
    roots, own = folders_and_own(runs)
    for root in roots:
        want_runs(root, "clean")
        if not read_status(root / TRIALS):
            require_status(root)
    asked = {"failed run": failed, "halved trial": halved, "decoded images": cache}
    found = find(roots)
    cleaned = Cleaned(dry_run, found.busy)
    for item in found.waste:
        if own is not None and item.folder is not None and item.folder not in own:
            continue
        if not asked.get(item.kind, True):
            cleaned.kept.append(item)
            continue
        try:
            if not dry_run:
                remove(item)
            cleaned.removed.append(item)
        except (RunError, OSError) as error:
            cleaned.problems.append(str(error))
    return cleaned


@dataclass(frozen=True, repr=False)
class Cleaned(Showable):
    """What was removed, or with `dry_run` would be. `kept`: what an option removes; `busy`: the
    number of runs under way; `problems`: what could not be removed, in sentences."""

    dry_run: bool
    busy: int
    removed: list[Waste] = field(default_factory=list)
    kept: list[Waste] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        verb = "would be removed" if self.dry_run else "removed"
        found = [f"{', '.join(map(str, one.paths))}  {_mb(one.size)}" for one in self.removed]
        lines = found[:_MOST_LINES]
        if len(found) > _MOST_LINES:
            lines.append(f"and {len(found) - _MOST_LINES:,} more")
        lines.append(f"{verb}: {_sum(self.removed)}" if found else f"nothing {verb}")
        for kind, option in _ASKED.items():
            if kept := [item for item in self.kept if item.kind == kind]:
                them = "it" if len(kept) == 1 and kind == "failed run" else "them"
                lines.append(f"kept: {_sum(kept)} ({option} removes {them})")
        if self.busy:
            lines.append(f"left alone: {count(self.busy, 'run')} under way")
        return lines

    def parts(self) -> Iterable[Text]:
        yield from map(Text, [*self.lines(), *self.problems])

    def records(self) -> list[dict[str, Any]]:
        """A file or folder each."""
        return [
            {"kind": item.kind, "path": str(path), "run": item.folder and item.folder.name}
            for item in self.removed
            for path in item.paths
        ]


def _sum(items: Sequence[Waste]) -> str:
    """`2 checkpoints and 1 failed run, 120 MB`"""
    parts = []
    for kind in dict.fromkeys(item.kind for item in items):
        number = sum(item.kind == kind for item in items)
        told = {
            "leftovers": f"leftovers in {count(number, 'run')}",
            "halved trial": f"checkpoints of {count(number, 'halved trial')}",
            "decoded images": f"the decoded images of {count(number, 'dataset')}",
        }
        parts.append(told.get(kind, count(number, kind)))
    return f"{' and '.join(parts)}, {_mb(sum(item.size for item in items))}"


def _mb(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def find(roots: Sequence[Path]) -> Found:
    """By run, then the decoded images of the datasets whose runs all rest."""
    waste: list[Waste] = []
    resting: dict[Path, bool] = {}
    busy = 0
    for root, status, waits in _statuses(roots):
        folder = root / status.name
        if folder.is_symlink() or (run := read_run(folder)) is None:
            continue
        rests = not waits and not is_held(folder)
        shards = Path(run.config.dataset.path or folder)
        resting[shards] = resting.get(shards, True) and rests
        busy += not rests
        waste += _of_run(status, folder) if rests else []
    caches = [_waste("decoded images", _cache_files(path)) for path, r in resting.items() if r]
    return Found([item for item in [*waste, *caches] if item.paths], busy)


def _statuses(roots: Sequence[Path]) -> Iterator[tuple[Path, RunStatus, bool]]:
    """Of each run and trial: its folder's parent, its status, and whether it trains or waits, which
    a trial does as long as a run of its variant does."""
    for root in roots:
        statuses = read_status(root)
        active = {status.variant for status in statuses if status.state in ACTIVE}
        for status in statuses:
            yield root, status, status.state in ACTIVE
        if root / TRIALS not in roots:
            for status in read_status(root / TRIALS):
                yield root / TRIALS, status, status.state in ACTIVE or status.variant in active


def _of_run(status: RunStatus, folder: Path) -> list[Waste]:
    files = RunFolder(folder)
    if status.state == "failed":
        inside = [path for path in folder.rglob("*") if path.is_file()]
        return [Waste("failed run", (folder,), _size(inside), folder)]
    checkpoints = files.checkpoints() if status.state in COMPLETE else []
    # It goes on from there, should the search be continued without halving.
    kind: Kind = "halved trial" if status.state == "halved" else "checkpoint"
    return [_waste(kind, checkpoints, folder), _waste("leftovers", files.leftovers(), folder)]


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
        wanted = waste.kind in ("checkpoint", "halved trial")
        if complete != wanted and waste.kind != "leftovers":
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
