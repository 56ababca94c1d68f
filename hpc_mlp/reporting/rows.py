"""Runs → groups → one row each, with the mean and standard deviation over the runs of a group.

A group is a variant, and within it one value of every key in `by` (by default the keys that a sweep
varied). Its runs differ in the seed. Numbers of a row rest on the runs that have test metrics: a
diverged run counts with its best epoch before that.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hpc_mlp.config.sections import flat
from hpc_mlp.errors import unknown_name
from hpc_mlp.runs.folder import Json, Run, best_line

# The order in which a person expects the variants; others follow by name.
ORDER = ("baseline", "dropout", "batchnorm", "dropout_batchnorm", "dropout_l2")

# Statistic of a row → where it stands in result.json.
STATISTICS = {
    "best_epoch": ("best_epoch",),
    "val_loss": ("best_val_loss",),
    "val_accuracy": ("best_val_accuracy",),
    "test_accuracy": ("test", "accuracy"),
    "precision": ("test", "precision"),
    "recall": ("test", "recall"),
    "f1": ("test", "f1"),
    "images_per_second": ("images_per_second",),
    "seconds": ("seconds",),
}


@dataclass(frozen=True)
class Value:
    """Mean and standard deviation (n - 1) over the runs of a group; no `sd` for a single run."""

    mean: float
    sd: float | None = None


@dataclass(frozen=True)
class Row:
    variant: str
    by: dict[str, Any]  # dotted key → value, what else names the group
    runs: list[Run]
    seeds: list[int]  # of every run, finished or not
    n: int  # runs with test metrics: what the values rest on
    parameters: int | None
    values: dict[str, Value | None]  # keys: STATISTICS
    test_images: int | None
    dataset: str  # digest
    status: str  # "done", "failed", "unfinished", "2 done, 1 failed"
    best: bool = False  # first of its dataset in `val_loss_order`
    # The share of draws in which it is the best, and what was drawn: see `winner`.
    wins: float | None = None
    drawn: str = ""

    @property
    def name(self) -> str:
        """`dropout`, `dropout lr=0.01`; keys in full where their last parts are the same."""
        last = [key.rpartition(".")[2] for key in self.by]
        keys = last if len(set(last)) == len(last) else list(self.by)
        return " ".join([self.variant, *map("{}={}".format, keys, map(show, self.by.values()))])


def groups(runs: Iterable[Run], by: Sequence[str]) -> list[list[Run]]:
    found: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: run.seed):
        found.setdefault(repr([run.variant, *(lookup(run, key) for key in by)]), []).append(run)

    def order(group: list[Run]) -> Any:
        variant = group[0].variant
        rank = ORDER.index(variant) if variant in ORDER else len(ORDER)
        return rank, variant, [_natural(lookup(group[0], key)) for key in by]

    return sorted(found.values(), key=order)


def _natural(value: Any) -> tuple[int, float, str]:
    number = isinstance(value, int | float)
    return (0, float(value), "") if number else (1, 0.0, show(value))


def make_row(by: Sequence[str], runs: list[Run]) -> Row:
    tested = [run for run in runs if run.test]
    shown = tested or runs
    results = [run.result or progress(run) for run in shown]
    sizes = {run.test.num_images for run in tested if run.test}
    parameters = {run.result.num_parameters if run.result else run.config.num_parameters for run in shown}
    values = {name: mean_sd([_at(result, path) for result in results]) for name, path in STATISTICS.items()}
    return Row(
        variant=runs[0].variant,
        by={key: lookup(runs[0], key) for key in by},
        runs=runs,
        seeds=sorted({run.seed for run in runs}),
        n=len(tested),
        parameters=parameters.pop() if len(parameters) == 1 else None,
        values=values,
        test_images=sizes.pop() if len(sizes) == 1 else None,
        dataset=dataset(runs[0]),
        status=status(runs),
    )


def progress(run: Run) -> Json:
    """What an unfinished or failed run has reached so far, in the form of its result; no test metrics."""
    best, lines = best_line(run.metrics, run.monitor), run.metrics
    if best is None:
        return {}
    return {
        "best_epoch": best.epoch,
        "best_val_loss": best.val_loss,
        "best_val_accuracy": best.val_accuracy,
        "images_per_second": lines[-1].images_per_second,
        "seconds": sum(line.seconds or 0.0 for line in lines),
    }


def mean_sd(numbers: Sequence[float | None]) -> Value | None:
    """None unless every run has the number: a mean over some of them would mislead."""
    known = [number for number in numbers if number is not None and math.isfinite(number)]
    if not known or len(known) < len(numbers):
        return None
    mean = math.fsum(known) / len(known)
    if len(known) == 1:
        return Value(mean)
    return Value(mean, math.sqrt(math.fsum((x - mean) ** 2 for x in known) / (len(known) - 1)))


def mark_best(rows: list[Row]) -> list[Row]:
    """`best` on the first row by validation loss on each dataset, among those with test metrics."""
    tested = [row for row in rows if row.n and row.values["val_loss"]]
    best = [min((row for row in tested if row.dataset == name), key=val_loss_order)
            for name in {row.dataset for row in tested}]  # fmt: skip
    return [replace(row, best=any(row is other for other in best)) for row in rows]


def val_loss_order(row: Row) -> tuple[bool, float]:
    """Lowest mean validation loss first; groups in which a run diverged stand back, as their mean covers
    the lucky ones only."""
    loss = row.values["val_loss"]
    return diverged(row), loss.mean if loss else math.inf


def diverged(row: Row) -> bool:
    return any(run.state == "diverged" for run in row.runs)


def status(runs: Sequence[Run]) -> str:
    counts = Counter(run.state for run in runs)
    if len(counts) == 1:
        return runs[0].state
    return ", ".join(f"{counts[state]} {state}" for state in ("done", "diverged", "failed", "unfinished")
                     if counts[state])  # fmt: skip


def damaged_row(by: Sequence[str], run: Run) -> Row:
    """A row of its own: nothing that its files say counts."""
    return replace(make_row(by, [run]), by=dict.fromkeys(by), seeds=[], status=f"damaged: {run.problem}")


# The parts of a run by name

SPECIAL = ("seed", "dataset")


def dataset(run: Run) -> str:
    return run.config.dataset.digest


def lookup(run: Run, key: str) -> Any:
    """The run's value of a dotted configuration key, or of `seed` or `dataset`; None where it has none."""
    if key == "seed":
        return run.seed
    if key == "dataset":
        return dataset(run)[:12]
    return run.config.value(key)


def _at(tree: Any, path: Iterable[str]) -> Any:
    for part in path:
        tree = tree.get(part) if isinstance(tree, Mapping) else None
    return tree


def swept_keys(runs: Iterable[Run]) -> list[str]:
    return list(dict.fromkeys(key for run in runs for key in run.config.swept))


def check_by(runs: Iterable[Run], keys: Iterable[str]) -> None:
    tables = [run.config.config for run in runs]
    known = list(dict.fromkeys(key for table in tables for key in flat(table)))
    for key in keys:
        free = any(_at(table, key.split(".")) is not None for table in tables)
        if key not in known and key not in SPECIAL and not free:
            raise unknown_name("key to group by", key, [*SPECIAL, *known])


def show(value: Any) -> str:
    """A configuration value as a person writes it: `512-256`, `0.001`, `none`."""
    if isinstance(value, list | tuple):
        return "-".join(map(show, value))
    return "none" if value is None else re.sub(r"^(True|False)$", lambda m: m[0].lower(), str(value))
