"""The page's last section: commands, configuration, versions and hardware to get the same runs
again. Plain data for `page.html.j2`."""

from __future__ import annotations

from collections.abc import Iterable

from hpc_mlp.config.sections import flat
from hpc_mlp.reporting.context import Context
from hpc_mlp.reporting.figures import Named
from hpc_mlp.reporting.groups import show
from hpc_mlp.runs.folder import Json, Run
from hpc_mlp.terminal.text import listed

MOST_VALUES = 6


def section(context: Context) -> Json:
    runs = [run for group in context.groups for run in group.runs]
    tables = {
        run.path: {key: show(value) for key, value in flat(run.config.config).items()}
        for run in runs
    }
    keys = dict.fromkeys(key for table in tables.values() for key in table)
    apart = [key for key in keys if len({table.get(key) for table in tables.values()}) > 1]
    shared = tables[runs[0].path].items()
    return {
        "commands": unique(run.config.command for run in runs),
        "apart": apart,
        "differences": [
            [
                Named(group),
                *(_either(tables[run.path].get(key) for run in group.runs) for key in apart),
            ]
            for group in context.groups
        ],
        "shared": [f"{key} = {value}" for key, value in shared if key not in apart],
        "machines": _machines(runs),
    }


def unique(values: Iterable[object]) -> list[str]:
    return list(dict.fromkeys(str(value) for value in values if value not in (None, "")))


def _either(values: Iterable[object]) -> str:
    return " or ".join(unique(values)[:MOST_VALUES])


def _machines(runs: list[Run]) -> list[tuple[str, str]]:
    """Versions, devices and hosts; where runs differ, every value with the number of runs."""
    tables = [
        {**run.config.versions, "device": run.config.device, "host": run.config.hostname}
        for run in runs
    ]
    rows = []
    for key in dict.fromkeys(key for table in tables for key in table):
        values = [str(table.get(key)) for table in tables if table.get(key) not in (None, "")]
        texts = unique(values)
        if len(texts) > 1:
            texts = [f"{value} ({values.count(value)} runs)" for value in texts]
        rows.append((key, listed(texts, MOST_VALUES) or "not recorded"))
    return rows
