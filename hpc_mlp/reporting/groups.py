"""Runs by groups: one row of the table each, with the mean and standard deviation over its runs.

A group is a variant, and within it one value of every key in `by` (by default the keys that a sweep
varied). Its runs differ in the seed. Numbers of a group rest on the runs that have test metrics: a
diverged run counts with its best epoch before that."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hpc_mlp.config.sections import flat
from hpc_mlp.errors import unknown_name
from hpc_mlp.reporting.predictions import Array
from hpc_mlp.runs.folder import Json, Run, State, best_line
from hpc_mlp.terminal.text import last_parts

# The order in which a person expects the variants; others follow by name.
ORDER = ("baseline", "dropout", "batchnorm", "dropout_batchnorm", "dropout_l2")

# Statistic of a group: where it stands in result.json. See `statistics` for metrics of one's own.
STATISTICS: dict[str, tuple[str, ...]] = {
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
# More would make names of rows that nobody reads.
_MOST_APART = 3
# What groups can be made by beside configuration keys.
SPECIAL = ("seed", "dataset", "folder")


@dataclass(frozen=True)
class Value:
    """Mean and standard deviation (n - 1) over the runs of a group; no `sd` for a single run."""

    mean: float
    sd: float | None = None


@dataclass(frozen=True)
class Group:
    """`by`: the values of dotted keys that, beside the variant, name the group. `seeds`: of every
    run, finished or not. `n`: runs with test metrics, on which `values` (see `statistics`) rest.
    `dataset`: its digest. `status`: "done", "failed", "2 done, 1 failed". `index` decides its
    colour and line style in all figures."""

    variant: str
    by: dict[str, Any]
    runs: list[Run]
    seeds: list[int]
    n: int
    parameters: int | None
    values: dict[str, Value | None]
    test_images: int | None
    dataset: str
    status: str
    index: int = 0
    # First of its dataset in `val_loss_order`.
    best: bool = False
    # The share of draws in which it is the best, and what was drawn: see `winner`.
    wins: float | None = None
    drawn: str = ""

    @property
    def name(self) -> str:
        """`dropout`, `dropout lr=0.01`; keys in full where their last parts are the same."""
        keys = last_parts(list(self.by))
        return " ".join([self.variant, *map("{}={}".format, keys, map(show, self.by.values()))])

    @property
    def slug(self) -> str:
        """The name as part of a file name, and of an element's id."""
        return re.sub(r"[^A-Za-z0-9_.-]+", "_", self.name)

    @property
    def tested(self) -> list[Run]:
        """Runs with test metrics."""
        return [run for run in self.runs if run.test]

    @property
    def chosen(self) -> Run | None:
        """The seed with the lowest validation loss; the test images had no say."""
        return min(self.tested, key=best_loss, default=None)


def group_runs(runs: Iterable[Run], by: Sequence[str]) -> list[Group]:
    """In the customary order, `best` marked."""
    found: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: run.seed):
        key = repr([run.variant, *(lookup(run, key) for key in by)])
        found.setdefault(key, []).append(run)

    def order(runs: list[Run]) -> Any:
        variant = runs[0].variant
        rank = ORDER.index(variant) if variant in ORDER else len(ORDER)
        return rank, variant, [_natural(lookup(runs[0], key)) for key in by]

    parts = sorted(found.values(), key=order)
    known = statistics(run for part in parts for run in part)
    return mark_best([make_group(by, part, known, index) for index, part in enumerate(parts)])


def statistics(runs: Iterable[Run]) -> dict[str, tuple[str, ...]]:
    """STATISTICS, and the runs' own metrics."""
    names = own_metrics(runs)
    return (
        STATISTICS
        | {f"val_{name}": ("best_val_metrics", name) for name in names}
        | {f"test_{name}": ("test", "metrics", name) for name in names}
    )


def own_metrics(runs: Iterable[Run]) -> dict[str, bool]:
    """Metrics that users have registered: whether more of it is better, as the first run has it."""
    found: dict[str, bool] = {}
    for run in runs:
        for name, metric in run.config.metrics.items():
            found.setdefault(name, metric.higher_is_better)
    return found


def _natural(value: Any) -> tuple[int, float, str]:
    number = isinstance(value, int | float)
    return (0, float(value), "") if number else (1, 0.0, show(value))


def make_group(
    by: Sequence[str], runs: list[Run], known: Mapping[str, tuple[str, ...]], index: int = 0
) -> Group:
    tested = [run for run in runs if run.test]
    shown = tested or runs
    results = [run.result or progress(run) for run in shown]
    return Group(
        variant=runs[0].variant,
        by={key: lookup(runs[0], key) for key in by},
        runs=runs,
        seeds=sorted({run.seed for run in runs}),
        n=len(tested),
        parameters=_common((run.result or run.config).num_parameters for run in shown),
        values={
            name: mean_sd([_at(result, path) for result in results]) for name, path in known.items()
        },
        test_images=_common(run.test.num_images for run in tested if run.test),
        dataset=runs[0].config.dataset.digest,
        status=status(runs),
        index=index,
    )


def damaged_group(by: Sequence[str], run: Run, known: Mapping[str, tuple[str, ...]]) -> Group:
    """A row of its own: nothing that its files say counts."""
    group = make_group(by, [run], known)
    return replace(group, by=dict.fromkeys(by), seeds=[], status=f"damaged: {run.problem}")


def _common(values: Iterable[int | None]) -> int | None:
    """The value that all have; None where there are several, or none."""
    found = set(values)
    return found.pop() if len(found) == 1 else None


def progress(run: Run) -> Json:
    """What an unfinished or failed run has reached, as a result without test metrics."""
    best, lines = best_line(run.metrics, run.monitor), run.metrics
    if best is None:
        return {}
    return {
        "best_epoch": best.epoch,
        "best_val_loss": best.val_loss,
        "best_val_accuracy": best.val_accuracy,
        "best_val_metrics": best.metrics,
        "images_per_second": lines[-1].images_per_second,
        "seconds": sum(line.seconds or 0.0 for line in lines),
    }


def statistic(run: Run, name: str) -> Any:
    """One of `statistics`: of an unfinished run what it has reached."""
    return _at(run.result or progress(run), statistics([run])[name])


def mean_sd(numbers: Sequence[float | None]) -> Value | None:
    """None unless every run has the number: a mean over some of them would mislead."""
    known = [number for number in numbers if number is not None and math.isfinite(number)]
    if not known or len(known) < len(numbers):
        return None
    mean = math.fsum(known) / len(known)
    if len(known) == 1:
        return Value(mean)
    return Value(mean, math.sqrt(math.fsum((x - mean) ** 2 for x in known) / (len(known) - 1)))


def mark_best(groups: list[Group]) -> list[Group]:
    """`best` on the first by validation loss on each dataset, among those with test metrics."""
    best: dict[str, Group] = {}
    for group in sorted(groups, key=val_loss_order):
        if group.n and group.values["val_loss"]:
            best.setdefault(group.dataset, group)
    return [replace(group, best=best.get(group.dataset) is group) for group in groups]


def val_loss_order(group: Group) -> tuple[bool, float]:
    """Lowest mean validation loss first; groups in which a run diverged stand back, as their mean
    covers the lucky ones only."""
    loss = group.values["val_loss"]
    return diverged(group), loss.mean if loss else math.inf


def diverged(group: Group) -> bool:
    return any(run.state == "diverged" for run in group.runs)


def status(runs: Sequence[Run]) -> str:
    counts = Counter(run.state for run in runs)
    if len(counts) == 1:
        return runs[0].state
    order: tuple[State, ...] = ("done", "diverged", "failed", "unfinished")
    return ", ".join(f"{counts[state]} {state}" for state in order if state in counts)


def drawable(groups: Sequence[Group], most: int) -> list[Group]:
    """At most `most` groups to draw: the first, with which others are compared, and the best by
    validation loss of those with test metrics."""

    def order(group: Group) -> float:
        value = group.values["val_loss"] if group.n else None
        return value.mean if value else math.inf

    best = sorted(groups[1:], key=order)[: most - 1]
    return [group for i, group in enumerate(groups) if i == 0 or any(group is one for one in best)]


# What is known of single runs


def best_loss(run: Run) -> float:
    loss = run.result.best_val_loss if run.result else None
    return math.inf if loss is None else loss


def curve(run: Run, key: str) -> Array:
    """One value an epoch, float64 [epochs]; NaN where it was not finite. `key`: of metrics.jsonl,
    or `val_` and a metric of the user's own."""
    own = key.removeprefix("val_")
    return np.array([line.get(key, line.metrics.get(own)) for line in run.metrics], np.float64)


def lookup(run: Run, key: str) -> Any:
    """The run's value of a dotted configuration key or of one of `SPECIAL`; None without."""
    if key == "seed":
        return run.seed
    if key == "folder":
        return str(run.path.parent)
    return run.config.dataset.digest[:12] if key == "dataset" else run.config.value(key)


def _at(tree: Any, path: Iterable[str]) -> Any:
    for part in path:
        tree = tree.get(part) if isinstance(tree, Mapping) else None
    return tree


def swept_keys(runs: Iterable[Run]) -> list[str]:
    return list(dict.fromkeys(key for run in runs for key in run.config.swept))


def keys_apart(runs: Sequence[Run]) -> list[str]:
    """What tells runs of several folders apart: the keys that decide a result and differ within a
    variant; where there are many, the folder."""
    if len({run.path.parent for run in runs}) < 2:
        return []
    values: dict[tuple[str, str], set[str]] = {}
    for run in runs:
        for key, value in run.config.identity().items():
            values.setdefault((run.variant, key), set()).add(repr(value))
    keys = list(dict.fromkeys(key for (_, key), found in values.items() if len(found) > 1))
    keys = [key for key in keys if key not in ("seed", "dataset.digest", *swept_keys(runs))]
    known = {key for run in runs for key in flat(run.config.config)}
    return keys if len(keys) <= _MOST_APART and known.issuperset(keys) else ["folder"]


def check_by(runs: Iterable[Run], keys: Iterable[str]) -> None:
    """UserError for a key that no run has."""
    known = list(dict.fromkeys(key for run in runs for key in flat(run.config.config)))
    for key in keys:
        if key not in (*known, *SPECIAL) and all(lookup(run, key) is None for run in runs):
            raise unknown_name("key to group by", key, [*SPECIAL, *known])


def show(value: Any) -> str:
    """A configuration value as a person writes it: `512-256`, `0.001`, `none`."""
    if isinstance(value, list | tuple):
        return "-".join(map(show, value)) or "none"
    return (
        "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )
