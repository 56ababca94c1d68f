"""live.json in a run folder: where in its epoch a run is, for those who watch from elsewhere. It may be lost."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

from pydantic import Field, FiniteFloat

from hpc_mlp.errors import RunError
from hpc_mlp.files.atomic import replacing
from hpc_mlp.files.checked import Record, read
from hpc_mlp.live.rows import RunRow, Usage
from hpc_mlp.runs.folder import LIVE, METRICS
from hpc_mlp.terminal.text import json_text

_STALE_SECONDS = 60.0


_Amount = Annotated[FiniteFloat, Field(ge=0)]
_Bytes = Annotated[int, Field(ge=0, lt=1 << 63)]


class _Usage(Record):
    device: str
    memory: _Bytes | None = None
    total: _Bytes | None = None
    percent: _Amount | None = None
    waiting: _Amount | None = None


class _Beat(Record):
    part: Annotated[FiniteFloat, Field(ge=0, le=1)] | None = None
    images_per_second: _Amount | None = None
    usage: _Usage | None = None


def write_beat(folder: Path, row: RunRow) -> None:
    """Atomic, not synced to disk; a folder that is gone stays gone."""
    content = {"part": row.progress.part, "images_per_second": row.progress.images_per_second,
               "usage": asdict(row.usage) if row.usage else None}  # fmt: skip
    with suppress(OSError), replacing(folder / LIVE) as temporary:
        temporary.write_text(json_text(content))


def with_beat(row: RunRow, folder: Path) -> RunRow:
    """The row of a run that is being trained, with what its trainer last said of the epoch under way."""
    try:
        written = (folder / LIVE).stat().st_mtime
        beat = read(folder / LIVE, _Beat, "")
        metrics = folder / METRICS
        older = metrics.exists() and metrics.stat().st_mtime > written
    except (OSError, RunError):
        return row
    if beat is None or time.time() - written > _STALE_SECONDS:
        return row
    usage = None if beat.usage is None else Usage(**beat.usage.model_dump())
    if older:  # of the epoch before
        return replace(row, usage=usage)
    progress = replace(row.progress, part=beat.part or 0.0, images_per_second=beat.images_per_second)
    return replace(row, usage=usage, progress=progress)
