"""live.json in a run folder: where in its epoch a run is, for those who watch from elsewhere. It may be lost."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

from hpc_mlp.live.rows import RunRow, Usage, number
from hpc_mlp.runs import LIVE, METRICS
from hpc_mlp.texts import json_text

_STALE_SECONDS = 60.0


def write_beat(folder: Path, row: RunRow) -> None:
    """Atomic, not synced to disk; a folder that is gone stays gone."""
    content = {"part": row.progress.part, "images_per_second": row.progress.images_per_second,
               "usage": asdict(row.usage) if row.usage else None}  # fmt: skip
    temporary = folder / f".{LIVE}.{os.getpid()}"
    try:
        temporary.write_text(json_text(content))
        os.replace(temporary, folder / LIVE)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def with_beat(row: RunRow, folder: Path) -> RunRow:
    """The row of a run that is being trained, with what its trainer last said of the epoch under way."""
    try:
        written = (folder / LIVE).stat().st_mtime
        beat = json.loads((folder / LIVE).read_bytes())
        usage = None if beat["usage"] is None else Usage(**beat["usage"])
        if time.time() - written > _STALE_SECONDS:
            return row
        metrics = folder / METRICS
        if metrics.exists() and metrics.stat().st_mtime > written:  # of the epoch before
            return replace(row, usage=usage)
        progress = replace(
            row.progress,
            part=number(beat["part"]) or 0.0,
            images_per_second=number(beat["images_per_second"]),
        )
        return replace(row, usage=usage, progress=progress)
    except (OSError, ValueError, KeyError, TypeError):
        return row
