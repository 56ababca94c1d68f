"""live.json in a run folder: where in its epoch a run is, for those who watch from elsewhere; and
what a run's folder as a whole tells. live.json may be lost at any time."""

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
from hpc_mlp.live.rows import Amount, RunStatus, State, Usage, progress_of
from hpc_mlp.runs.folder import LIVE, METRICS, Run, read_run
from hpc_mlp.runs.lease import is_held, read_owner
from hpc_mlp.runs.records import Failed
from hpc_mlp.terminal.text import json_text

_STALE_SECONDS = 60.0


class _LiveRecord(Record):
    part: Annotated[FiniteFloat, Field(ge=0, le=1)] | None = None
    images_per_second: Amount | None = None
    usage: Usage | None = None


def write_live(folder: Path, status: RunStatus) -> None:
    """Atomic, not synced to disk; a folder that is gone stays gone."""
    content = {
        "part": status.progress.part,
        "images_per_second": status.progress.images_per_second,
        "usage": asdict(status.usage) if status.usage else None,
    }
    with suppress(OSError), replacing(folder / LIVE) as temporary:
        temporary.write_text(json_text(content))


def with_live(status: RunStatus, folder: Path) -> RunStatus:
    """The status of a running run, with what its trainer last said of the epoch under way."""
    try:
        written = (folder / LIVE).stat().st_mtime
        live = read(folder / LIVE, _LiveRecord, "")
        metrics = folder / METRICS
        is_of_epoch_before = metrics.exists() and metrics.stat().st_mtime > written
    except (OSError, RunError):
        return status
    if live is None or time.time() - written > _STALE_SECONDS:
        return status
    progress = status.progress
    if not is_of_epoch_before:
        rate = live.images_per_second
        progress = replace(progress, part=live.part or 0.0, images_per_second=rate)
    return replace(status, usage=live.usage, progress=progress)


def folder_status(folder: Path) -> RunStatus | None:
    """What the run folder alone says; None where it is no run's. `stopped` where it has neither
    result nor failure and nobody trains it."""
    # Held or not is asked first: what its owner wrote before it let go is then read.
    held = is_held(folder)
    run = read_run(folder)
    if run is None:
        return None
    status = _status(run)
    if status.state in ("stopped", "failed") and held:
        node = owner.host if (owner := read_owner(folder)) else ""
        status = with_live(replace(status, state="running", detail="", node=node), folder)
    name = run.config.name
    if name and name != folder.name and (folder.parent / name).is_dir():
        detail = " ".join(filter(None, [status.detail, f"(a copy of {name})"]))
        status = replace(status, detail=detail)
    return status


def _status(run: Run) -> RunStatus:
    state: State = "stopped" if run.state == "unfinished" else run.state
    detail = _last_line(run.failed) if state == "failed" and run.failed else run.problem
    return RunStatus(
        name=run.name,
        variant=run.variant,
        seed=run.seed,
        state=state,
        detail=detail,
        progress=progress_of(run.metrics, run.epochs, run.monitor),
        test_accuracy=run.test.accuracy if run.test else None,
    )


def _last_line(failed: Failed) -> str:
    lines = (failed.traceback or failed.error).strip().splitlines()
    return lines[-1].strip() if lines else ""
