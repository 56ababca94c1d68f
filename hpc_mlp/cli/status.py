"""The command `status`, and following jobs to their end, as `submit --wait` does too."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hpc_mlp.cli.options import (
    Command,
    fail,
    folders,
    log_format_option,
    runs_argument,
    top_option,
    where_option,
)
from hpc_mlp.terminal.output import say
from hpc_mlp.terminal.text import json_text

if TYPE_CHECKING:
    from hpc_mlp.config.plan import LogFormat
    from hpc_mlp.live.rows import RunStatus
    from hpc_mlp.terminal.console import Console

_POLL_SECONDS = 2.0


@click.command(cls=Command)
@runs_argument
@click.option(
    "--watch", "follow", is_flag=True, help="Follow until every run has ended, then show the table."
)
@click.option("--format", "style", default="rich", type=click.Choice(["rich", "json"]))
@where_option
@top_option
@click.option(
    "--by", "--group-by", metavar="KEY", help="One row a value of KEY, e.g. variant or optim.lr."
)
@log_format_option
def status(
    runs: tuple[Path, ...],
    follow: bool,
    style: str,
    where: str | None,
    top: int | None,
    by: str | None,
    log_format: LogFormat,
) -> None:
    """Show the state of every run in a folder (default: runs): queued, running, done, failed, lost.
    Exit code 1 when any run failed.

    \b
    hpc-mlp status runs
    hpc-mlp status runs more --where 'state==failed or optim.lr>0.01'
    hpc-mlp status runs --by variant
    hpc-mlp status runs --watch

    --log-format is for --watch: as with `train`, and with json no table follows.
    """
    from hpc_mlp.files.wrong_path import want_runs
    from hpc_mlp.launch import selection, show
    from hpc_mlp.launch.status import require_statuses
    from hpc_mlp.terminal.console import Console

    roots = folders(runs)
    for root in roots:
        want_runs(root, "status")
    everything = require_statuses(roots)
    statuses = selection.choose(everything, where, top)
    if follow:
        only = {item.name for item in statuses} if where or top else None
        statuses = watch(roots, Console(), log_format, only)
        if style == "rich":
            finish(statuses, roots, log_format)
    if style == "json":
        say(json_text([item.as_json() for item in statuses], indent=1))
    elif by is not None:
        Console().print(show.group_table(selection.group_by(everything, statuses, by), by))
    else:
        Console().print(show.status_table(statuses))
        for line in show.status_lines(statuses):
            say(line)
        for line in (line for root in roots for line in show.search_lines(root)):
            say(line)
    sys.exit(_code(statuses))


def watch(
    runs: list[Path], console: Console, log_format: LogFormat, only: set[str] | None = None
) -> list[RunStatus]:
    """Show the states, again and again, until none of them is active; returns the last ones."""
    from hpc_mlp.launch.status import read_statuses
    from hpc_mlp.live.display import open_display
    from hpc_mlp.live.rows import ACTIVE

    statuses: list[RunStatus] = []
    try:
        with open_display(console, lambda: statuses, log_format) as display:
            while True:
                everything = [item for _, item in read_statuses(runs).values()]
                statuses = [item for item in everything if only is None or item.name in only]
                display.update(statuses)
                if not any(item.state in ACTIVE for item in statuses):
                    return statuses
                time.sleep(_POLL_SECONDS)
    except KeyboardInterrupt:
        named = " ".join(map(str, runs))
        fail(
            "stopped watching; the jobs go on.\n"
            f"  follow them: hpc-mlp status {named} --watch\n"
            f"  end them:    {'; '.join(f'hpc-mlp cancel {root}' for root in runs)}",
            130,
        )


def _code(statuses: list[RunStatus]) -> int:
    from hpc_mlp.live.rows import BAD

    return 1 if any(item.state in BAD for item in statuses) else 0


def finish(statuses: list[RunStatus], runs: list[Path], log_format: LogFormat) -> None:
    """The table, what went wrong, and the exit code."""
    from hpc_mlp.launch import show
    from hpc_mlp.live.display import text_line
    from hpc_mlp.live.rows import BAD, COMPLETE
    from hpc_mlp.reporting.table import print_table
    from hpc_mlp.terminal.console import Console

    if log_format != "json" and any(item.state in COMPLETE for item in statuses):
        print_table(runs[0], Console(), *runs[1:])
    for item in statuses:
        if item.state in BAD:
            say(f"{text_line(item)} {show.notes(item)}", err=True)
    sys.exit(_code(statuses))
