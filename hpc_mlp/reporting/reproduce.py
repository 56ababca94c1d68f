"""The page's last section: commands, configuration, versions and hardware to get the same runs again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hpc_mlp.config import sections
from hpc_mlp.reporting import html
from hpc_mlp.reporting.groups import Group
from hpc_mlp.reporting.html import Html, Section
from hpc_mlp.reporting.material import Material
from hpc_mlp.reporting.overview import named
from hpc_mlp.reporting.summary import show
from hpc_mlp.runs.folder import Run

MOST_VALUES = 6


def reproduce_section(material: Material) -> Section:
    runs = [run for group in material.groups for run in group.runs]
    return Section("reproduce", "Reproduce", html.join(
        html.heading("Commands"), _commands(runs),
        html.heading("What differs between the groups"), _differences(material.groups),
        html.details("The configuration they share", html.preformatted(_shared(runs))),
        html.heading("Versions and hardware"), _machines(runs),
    ))  # fmt: skip


def _commands(runs: Sequence[Run]) -> Html:
    commands = unique(run.config.command for run in runs)
    if not commands:
        return html.paragraph("The runs do not say which command made them.")
    return html.preformatted("\n".join(commands))


def unique(values: Iterable[object]) -> list[str]:
    return list(dict.fromkeys(str(value) for value in values if value not in (None, "")))


def flat(run: Run) -> dict[str, str]:
    """A run's configuration as `{"optim.lr": "0.001", …}`."""
    return {key: show(value) for key, value in sections.flat(run.config.config).items()}


def differing(runs: Sequence[Run]) -> list[str]:
    """Keys whose value is not the same in all runs, in the order of the configuration."""
    tables = [flat(run) for run in runs]
    keys = dict.fromkeys(key for table in tables for key in table)
    return [key for key in keys if len({table.get(key) for table in tables}) > 1]


def _differences(groups: Sequence[Group]) -> Html:
    keys = differing([run for group in groups for run in group.runs])
    if not keys:
        return html.paragraph("Nothing but the seed: all runs have the same configuration.")
    rows = [
        [
            named(group),
            *(" or ".join(unique(flat(run).get(key) for run in group.runs)[:MOST_VALUES]) for key in keys),
        ]
        for group in groups
    ]
    return html.table(["group", *keys], rows)


def _shared(runs: Sequence[Run]) -> str:
    apart = set(differing(runs))
    return "\n".join(f"{key} = {value}" for key, value in flat(runs[0]).items() if key not in apart)


def _machines(runs: Sequence[Run]) -> Html:
    """Versions, devices and hosts; where runs differ, every value with the number of runs."""
    tables = [
        {
            **run.config.versions,
            "device": run.config.device,
            "host": run.config.hostname,
        }
        for run in runs
    ]
    keys = dict.fromkeys(key for table in tables for key in table)
    rows = []
    for key in keys:
        values = [str(table.get(key)) for table in tables if table.get(key) not in (None, "")]
        several = len(set(values)) > 1
        text = [f"{value} ({values.count(value)} runs)" if several else value for value in unique(values)]
        more = f" and {len(text) - MOST_VALUES} more" if len(text) > MOST_VALUES else ""
        rows.append((key, ", ".join(text[:MOST_VALUES]) + more if text else "not recorded"))
    return html.table(["", ""], rows)
