"""Plans and states as tables for people."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from hpc_mlp.config.search import FOLDER as TRIALS
from hpc_mlp.config.sections import LaunchConfig
from hpc_mlp.errors import HpcMlpError
from hpc_mlp.files.wrong_path import want_runs
from hpc_mlp.launch import selection
from hpc_mlp.launch.jobs import JobPlan
from hpc_mlp.launch.status import require_statuses
from hpc_mlp.live.live_file import folder_status
from hpc_mlp.live.render import STYLES
from hpc_mlp.live.rows import RunStatus, summary
from hpc_mlp.runs.folder import RunsLike, folders_and_own
from hpc_mlp.runs.search_records import read_records
from hpc_mlp.terminal.shown import Showable
from hpc_mlp.terminal.text import count, duration, spans

# So many names stand before a note.
_NAMED = 3
_MAX_ROWS = 60


def status(
    runs: RunsLike = "runs", *, where: str | None = None, top: int | None = None
) -> Statuses:
    """The state of every run of a folder, or of several, or of what `train` returned, as `hpc-mlp
    status` shows it; `where` and `top` are its options. UserError where there is none."""
    roots, own = folders_and_own(runs)
    for root in roots:
        want_runs(root, "status")
    found = require_statuses(roots)
    if own is not None:
        found = {name: one for name, one in found.items() if one[0] in own}
    return Statuses(selection.choose(found, where, top))


class Statuses(Showable, list[RunStatus]):
    """One `RunStatus` a run: `status.name`, `status.state`, `status.progress`."""

    def parts(self) -> Iterable[RenderableType]:
        yield status_table(self)

    def records(self) -> list[dict[str, Any]]:
        """As of `hpc-mlp status --format json`."""
        return [status.as_json() for status in self]


def plan_table(jobs: list[JobPlan], job_ids: dict[int, str] | None = None) -> Table:
    """One row a job: its runs, and its id once it has one."""
    total = sum(len(job.specs) for job in jobs)
    table = Table(title=f"{count(total, 'run')} in {count(len(jobs), 'job')}", title_justify="left")
    for name in ("job", "runs", "variants", "seeds", "epochs"):
        table.add_column(name, justify="right" if name in ("runs", "epochs") else "left")
    for job in jobs[:_MAX_ROWS]:
        variants = ", ".join(dict.fromkeys(spec.variant for spec in job.specs))
        seeds = spans(dict.fromkeys(spec.seed for spec in job.specs))
        epochs = sorted({spec.config.train.epochs for spec in job.specs})
        label = (job_ids or {}).get(job.index, str(job.index))
        table.add_row(
            label, str(len(job.specs)), variants, seeds, "-".join(map(str, epochs[:: len(epochs)]))
        )
    if len(jobs) > _MAX_ROWS:
        table.add_row("…", f"{len(jobs) - _MAX_ROWS} more", "", "", "")
    return table


def resources(launch: LaunchConfig) -> str:
    """The resources of one job in a line."""
    names = ("partition", "account", "qos", "constraint")
    parts = [
        f"{count(launch.nodes, 'node')} × {count(launch.tasks, 'task')}",
        f"{count(launch.gpus_per_job, 'GPU')} per node",
        f"{count(launch.cpus_per_task, 'core')} per task",
        f"{launch.memory_gb:g} GB per node" if launch.memory_gb else "",
        count(launch.time_minutes, "minute"),
        *(f"{name} {value}" for name in names if (value := getattr(launch, name))),
        f"at most {count(launch.array_parallelism, 'job')} at once"
        if launch.array_parallelism
        else "",
    ]
    return ", ".join(part for part in parts if part)


def status_table(statuses: list[RunStatus]) -> Table:
    """One row a run."""
    table, rows = Table(title=summary(statuses), title_justify="left"), [*map(_cells, statuses)]
    # What no run has takes no room.
    titles = [title for title in rows[0] if title in _ALWAYS or any(row[title] for row in rows)]
    for title in titles:
        number = title in ("epoch", "loss", "img/s")
        table.add_column(
            title, justify="right" if number else "left", no_wrap=number, overflow="fold"
        )
    for status, row in zip(statuses, rows, strict=True):
        style = STYLES.get(status.state, "")
        table.add_row(
            *(Text(row[title], style) if title == "state" else row[title] for title in titles)
        )
    return table


def search_lines(runs: Path) -> list[str]:
    """Where the searches below `runs` stand."""
    found = [folder_status(path) for path in sorted((runs / TRIALS).glob("*-t*"))]
    trials = [status for status in found if status is not None]
    if not trials:
        return []
    try:
        notes = [record.note for record in read_records(runs)]
    except HpcMlpError as error:
        notes = [str(error)]
    return [f"trials: {summary(trials)} (hpc-mlp status {runs / TRIALS})", *notes]


_ALWAYS = ("run", "state", "epoch")


def _cells(status: RunStatus) -> dict[str, str]:
    p = status.progress
    return {
        "run": status.name,
        "state": status.state,
        "epoch": f"{p.epoch}/{p.epochs or '?'}" if p.epoch else "",
        "loss": "" if p.train_loss is None else f"{p.train_loss:.4f}",
        "img/s": "" if p.images_per_second is None else f"{p.images_per_second:,.0f}",
        "node": status.node if status.state == "running" else "",
        "left": _left(status),
        "job": status.job,
    }


def status_lines(statuses: list[RunStatus]) -> list[str]:
    """What there is to say of them: a line for all runs of which it is the same."""
    said: dict[str, list[str]] = {}
    for status in statuses:
        if text := notes(status):
            said.setdefault(text, []).append(status.name)
    return [f"{_few(names)}: {text}" for text, names in said.items()]


def _few(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def group_table(groups: dict[str, list[RunStatus]], key: str) -> Table:
    """One row a value of `key`: states, epochs done of those planned, the best validation loss."""
    everything = [run for runs in groups.values() for run in runs]
    table = Table(title=summary(everything), title_justify="left")
    for title in (key, "runs", "states", "epochs", "best val. loss", "of"):
        number = title in ("runs", "epochs", "best val. loss")
        table.add_column(title, justify="right" if number else "left", overflow="fold")
    for value, runs in groups.items():
        losses = [(loss, run.name) for run in runs if (loss := run.progress.best_val_loss)]
        loss, name = min(losses, default=(None, ""))
        done, planned = (
            sum(getattr(run.progress, part) or 0 for run in runs) for part in ("epoch", "epochs")
        )
        table.add_row(
            value,
            f"{len(runs):,}",
            summary(runs),
            f"{done:,}/{planned:,}",
            "" if loss is None else f"{loss:.4f}",
            name,
        )
    return table


def notes(status: RunStatus) -> str:
    parts = [f"requeued {status.requeues}×" if status.requeues else "", status.detail]
    if status.state in ("failed", "lost") and status.log:
        parts.append(f"log: {status.log}")
    return "; ".join(part for part in parts if part)


def _left(status: RunStatus) -> str:
    if status.state != "running":
        return ""
    training = "" if (left := status.progress.seconds_left) is None else duration(left)
    limit = f"limit in {status.time_left}" if status.time_left else ""
    return ", ".join(part for part in (training, limit) if part)
