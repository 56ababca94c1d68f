"""Which runs, of which folders, and which rows of them: `--where`, `--top`, several RUNS."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hpc_mlp.config.sections import flat, known_keys
from hpc_mlp.errors import UserError
from hpc_mlp.files.wrong_path import want_runs
from hpc_mlp.reporting.groups import lookup, show, val_loss_order
from hpc_mlp.reporting.records import sort_rows
from hpc_mlp.reporting.summary import Summary
from hpc_mlp.reporting.values import statistic, statistics
from hpc_mlp.runs.condition import Condition, parse_condition
from hpc_mlp.runs.folder import Run, list_runs
from hpc_mlp.terminal.text import count

# Of a run, beside its configuration keys; the names are those of `table --format json`.
FIELDS = ("name", "variant", "seed", "fold", "status", "dataset", "folder", "parameters")
# Values of a field that a message names.
_MOST_VALUES = 8


@dataclass(frozen=True)
class Chosen:
    """`notes`: what was left out."""

    runs: list[Run]
    notes: list[str]


def choose_runs(roots: Sequence[Path], where: str | None, command: str) -> Chosen:
    """The runs below `roots` that meet the condition. Of several folders, a run's name begins with
    its folder. UserError where there are none."""
    for root in roots:
        want_runs(root, command)
    runs = [
        run if len(roots) == 1 else replace(run, name=f"{root}/{run.name}")
        for root in roots
        for run in list_runs(root)
    ]
    if not where:
        return Chosen(runs, [])
    condition = parse_condition(where, known_fields(runs))
    found = [run for run in runs if condition.test(lambda key, run=run: field(run, key))]  # type: ignore[misc]
    if not found:
        raise UserError(nothing_found(condition, runs))
    notes = [f"--where {where}: {len(found):,} of {count(len(runs), 'run')}."]
    on_test = [key for key, path in statistics(runs).items() if path[0] in ("test", "held_out")]
    if tested := [key for key in condition.fields if key in on_test]:
        notes.append(
            f"Chosen by {' and '.join(tested)}, on the test images: what is compared below is no "
            "longer a test."
        )
    return Chosen(found, notes)


def known_fields(runs: Sequence[Run]) -> list[str]:
    keys = dict.fromkeys(key for run in runs for key in flat(run.config.config))
    free = {
        f"model.options.{name}": None
        for run in runs
        for name in run.config.config.get("model", {}).get("options") or ()
    }
    return list(dict.fromkeys([*FIELDS, *statistics(runs), *keys, *free, *known_keys()]))


def field(run: Run, key: str) -> Any:
    """The run's value of one of `FIELDS`, `statistics` or configuration keys; None without."""
    if key in statistics([run]):
        return statistic(run, key)
    own = {"name": run.path.name, "variant": run.variant, "status": run.state}
    if key == "parameters":
        return (run.result or run.config).num_parameters
    return own[key] if key in own else lookup(run, key)


def nothing_found(condition: Condition, runs: Sequence[Run]) -> str:
    """With the values that there are."""
    lines = [f"--where {condition.text!r}: none of {count(len(runs), 'run')}."]
    for key in condition.fields:
        values = list(dict.fromkeys(show(field(run, key)) for run in runs))
        more = f" and {len(values) - _MOST_VALUES:,} more" if len(values) > _MOST_VALUES else ""
        lines.append(f"{key}: {', '.join(values[:_MOST_VALUES])}{more}")
    return "\n  ".join(lines)


def top_rows(summary: Summary, number: int, sort: str | None) -> Summary:
    """The first rows by the column `sort`, without one by validation loss, as the best is chosen.
    What is said of all rows stays."""
    if sort is None:
        rows = sorted(summary.rows, key=lambda row: (not row.n, val_loss_order(row)))
        summary = replace(summary, rows=rows)
    else:
        summary = sort_rows(summary, sort)
    if len(summary.rows) <= number:
        return summary
    rows = summary.rows[:number]
    names = [row.name for row in rows]
    by = "validation loss" if sort is None else sort
    note = f"Shown: {number} of {count(len(summary.rows), 'row')}, the first by {by}."
    return replace(
        summary,
        rows=rows,
        comparisons=[c for c in summary.comparisons if c.name in names],
        sentences=[note, *summary.sentences],
    )
