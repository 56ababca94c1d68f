"""What lies at a path that was to be something else: the answer has the right commands."""

from __future__ import annotations

import os
import shlex
from itertools import islice
from pathlib import Path
from typing import Literal

from hpc_mlp.errors import UserError, printable

# They make a shards folder, a run folder.
MANIFEST, CONFIG = "manifest.json", "config.json"
_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_IMAGES = tuple(".png .jpg .jpeg .gif .bmp .webp .tif .tiff .ppm .pgm .jp2 .avif".split())
# So many names of a folder are looked at.
_ENOUGH = 1000

Kind = Literal["nothing", "archive", "file", "shards", "run", "runs", "images", "folder"]


def kind_of(path: Path) -> Kind:
    """By names alone, and by some of them."""
    if not path.is_dir():
        if not path.exists():
            return "nothing"
        return "archive" if path.name.lower().endswith(_ARCHIVES) else "file"
    if (path / MANIFEST).is_file():
        return "shards"
    if (path / CONFIG).is_file():
        return "run"
    inside = _names(path)
    if _has_runs(path, inside):
        return "runs"
    folders = (path / name for name in inside[:20])
    below = (name for folder in folders if folder.is_dir() for name in _names(folder))
    named = [*inside, *below]
    return "images" if any(name.lower().endswith(_IMAGES) for name in named) else "folder"


def want_shards(path: Path, command: str) -> None:
    """UserError, with what to do, where `hpc-mlp COMMAND path` would find no shards folder."""
    if not (path / MANIFEST).is_file():
        raise UserError(no_shards(path, command))


def no_shards(path: Path, command: str) -> str:
    """What to say where `hpc-mlp COMMAND path` found no shards folder."""
    here = printable(path)
    match kind_of(path):
        case "archive" | "images" as kind:
            what = "an archive" if kind == "archive" else "a folder of images"
            out = Path("shards" if path.name != "shards" else "shards-of-images")
            steps = _steps(("convert", path, out), (command, out))
            return f"{here} is {what}, not a shards folder. {steps}"
        case "run" | "runs" as kind:
            runs = path if kind == "runs" else path.parent
            shown = f"the runs are shown by: {_line('table', runs)}"
            first = f"{_line(command)} SHARDS, with the shards folder"
            return f"{here} holds runs, not shards. First: {first}; {shown}"
        case "nothing":
            steps = _steps(("convert", "photos.zip", path), (command, path))
            return f"{here} is not a shards folder: there is nothing. {steps}"
    inside = [path / name for name in _names(path) if (path / name / MANIFEST).is_file()]
    if inside:
        shards = inside[0]
        return (
            f"{here} is not a shards folder, but {printable(shards)} is: {_line(command, shards)}"
        )
    steps = _steps(("convert", "photos.zip", "shards"), (command, "shards"))
    return f"{here} is not a shards folder (no {MANIFEST}). {steps}"


def want_runs(path: Path, command: str) -> None:
    """UserError, with what to do, where `hpc-mlp COMMAND path` was given no folder of runs."""
    here = printable(path)
    match kind_of(path):
        case "shards" if not _has_runs(path, _names(path)):
            steps = _steps(("train", path), (command, "runs"))
            raise UserError(f"{here} is a shards folder, not a folder of runs. {steps}")
        case "archive" | "images":
            steps = _steps(("convert", path, "shards"), ("train", "shards"), (command, "runs"))
            raise UserError(f"{here} holds images, not runs. {steps}")
        case "run":
            raise UserError(
                f"{here} is one run. Name the folder that it is in: {_line(command, path.parent)}"
            )


def want_run(path: Path, command: str) -> None:
    """UserError, with what to do, where `hpc-mlp COMMAND path` was given a dataset and no run."""
    kind, run = kind_of(path), Path("runs/baseline-s0")
    if kind in ("shards", "archive", "images"):
        shards = path if kind == "shards" else Path("shards")
        first = [] if kind == "shards" else [("convert", path, shards)]
        raise UserError(
            f"{printable(path)} holds images, not a run. "
            f"{_steps(*first, ('train', shards), (command, run))}"
        )


def _has_runs(path: Path, names: list[str]) -> bool:
    return any((path / name / CONFIG).is_file() for name in names)


def _names(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in islice(entries, _ENOUGH))
    except OSError:
        return []


def _steps(*commands: tuple[object, ...]) -> str:
    """`First: hpc-mlp convert photos.zip shards; then: hpc-mlp train shards`"""
    return "First: " + "; then: ".join(_line(*command) for command in commands)


def _line(verb: object, *words: object) -> str:
    return " ".join(["hpc-mlp", str(verb), *(shlex.quote(printable(word)) for word in words)])
