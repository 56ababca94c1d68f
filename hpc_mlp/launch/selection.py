"""Some of many runs' states: `status --where`, `--top` and `--by`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hpc_mlp.config.sections import known_keys
from hpc_mlp.errors import UserError, unknown_name
from hpc_mlp.live.rows import RunStatus
from hpc_mlp.runs.condition import parse_condition
from hpc_mlp.runs.folder import RunFolder
from hpc_mlp.runs.records import RunConfig
from hpc_mlp.terminal.text import count

Statuses = Mapping[str, tuple[Path, RunStatus]]
FIELDS: tuple[str, ...] = (
    "name",
    "variant",
    "seed",
    "state",
    "epoch",
    "epochs",
    "loss",
    "val_loss",
)
FIELDS += ("val_accuracy", "best_epoch", "best_val_loss", "test_accuracy", "node", "job")


def choose(statuses: Statuses, where: str | None, top: int | None) -> list[RunStatus]:
    """Those that meet the condition, and of them the `top` with the lowest validation loss.
    UserError where there are none."""
    chosen = [status for _, status in statuses.values()]
    if where:
        look = _Values(statuses)
        condition = parse_condition(where, [*FIELDS, *known_keys()])
        chosen = [run for run in chosen if condition.test(look.of(run))]
        if not chosen:
            raise UserError(f"--where {where!r}: none of {count(len(statuses), 'run')}.")
    if top is not None:
        chosen = sorted(chosen, key=_best)[:top]
    return chosen


def group_by(
    statuses: Statuses, chosen: Sequence[RunStatus], key: str
) -> dict[str, list[RunStatus]]:
    """By the runs' values of a field or a configuration key, as text."""
    known = [*FIELDS, *known_keys()]
    if key not in known:
        raise unknown_name("key to group by", key, known)
    look, groups = _Values(statuses), dict[str, list[RunStatus]]()
    for run in chosen:
        groups.setdefault(str(look.of(run)(key)), []).append(run)
    return groups


def _best(run: RunStatus) -> float:
    loss = run.progress.best_val_loss
    return math.inf if loss is None else loss


class _Values:
    """Of `FIELDS` and of configuration keys; a run without a folder yet has no configuration."""

    def __init__(self, statuses: Statuses) -> None:
        self._statuses = statuses
        self._configs: dict[str, RunConfig | None] = {}

    def of(self, run: RunStatus) -> Callable[[str], Any]:
        return lambda key: run.as_json()[key] if key in FIELDS else self._config(run.name, key)

    def _config(self, name: str, key: str) -> Any:
        if name not in self._configs:
            folder, status = self._statuses[name]
            damaged = status.state == "damaged"
            self._configs[name] = None if damaged else RunFolder(folder).config()
        config = self._configs[name]
        return config.value(key) if config else None
