"""Plans and states as tables for people."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from hpc_mlp.config.sections import LaunchConfig
from hpc_mlp.launch.packs import JobPlan
from hpc_mlp.live.render import STYLES
from hpc_mlp.live.rows import RunStatus, summary
from hpc_mlp.terminal.text import count, duration, spans

_MAX_ROWS = 60


def plan_table(packs: list[JobPlan], job_ids: dict[int, str] | None = None) -> Table:
    """One row a job: its runs, and its id once it has one."""
    total = sum(len(pack.specs) for pack in packs)
    table = Table(
        title=f"{count(total, 'run')} in {count(len(packs), 'job')}", title_justify="left"
    )
    for name in ("job", "runs", "variants", "seeds", "epochs"):
        table.add_column(name, justify="right" if name in ("runs", "epochs") else "left")
    for pack in packs[:_MAX_ROWS]:
        variants = ", ".join(dict.fromkeys(spec.variant for spec in pack.specs))
        seeds = spans(dict.fromkeys(spec.seed for spec in pack.specs))
        epochs = sorted({spec.config.train.epochs for spec in pack.specs})
        label = (job_ids or {}).get(pack.index, str(pack.index))
        table.add_row(
            label, str(len(pack.specs)), variants, seeds, "-".join(map(str, epochs[:: len(epochs)]))
        )
    if len(packs) > _MAX_ROWS:
        table.add_row("…", f"{len(packs) - _MAX_ROWS} more", "", "", "")
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
    """One row a run; what failed first gets its log's path underneath."""
    table = Table(title=summary(statuses), title_justify="left")
    table.add_column("run", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for name in ("epoch", "loss", "img/s"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("node", "left", "job", "notes"):
        table.add_column(name, overflow="fold")
    for status in statuses:
        table.add_row(
            status.name,
            Text(status.state, style=STYLES.get(status.state, "")),
            f"{p.epoch}/{p.epochs or '?'}" if (p := status.progress).epoch else "",
            "" if p.train_loss is None else f"{p.train_loss:.4f}",
            "" if p.images_per_second is None else f"{p.images_per_second:,.0f}",
            status.node if status.state == "running" else "",
            _left(status),
            status.job,
            notes(status),
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
