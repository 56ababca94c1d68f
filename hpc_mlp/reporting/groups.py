"""Runs by groups: one row of the table each, with the mean and standard deviation over its runs.

A group is a variant, and within it one value of every key in `by` (by default the keys that a sweep
varied). Its runs differ in the seed, and in the fold (see `folds`). Numbers of a group rest on the
runs that have test metrics: a diverged run counts with its best epoch before that."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from hpc_mlp.config.sections import flat
from hpc_mlp.errors import unknown_name
from hpc_mlp.reporting.folds import FoldedRun, folded, has_test_split, num_folds
from hpc_mlp.reporting.folds import values as of_folds
from hpc_mlp.reporting.predictions import Array
from hpc_mlp.reporting.values import Value, at, mean_sd, progress, statistics
from hpc_mlp.runs.folder import Run, State
from hpc_mlp.terminal.text import last_parts, natural_key

# The order in which a person expects the variants; others follow by name.
ORDER = ("baseline", "dropout", "batchnorm", "dropout_batchnorm", "dropout_l2")

# More would make names of rows that nobody reads.
_MOST_APART = 3
# What groups can be made by beside configuration keys.
SPECIAL = ("seed", "fold", "dataset", "folder")
FOLDS = "data.folds"


@dataclass(frozen=True)
class Group:
    """`by`: the values of dotted keys that, beside the variant, name the group. `seeds`: of every
    run, finished or not. `tested`: runs with test metrics, on which `values` (see `statistics`)
    rest, of folds one for each seed; `n`: their number, each fold counted. `folds`: as planned, 1
    without, or where each fold is a group of its own. `dataset`: its digest. `status`: "done",
    "failed", "2 done, 1 failed". `index` decides its colour and line style in all figures."""

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
    # Its name among others, see `naming.labelled`.
    label: str = ""
    tested: list[Run] = field(default_factory=list)
    folds: int = 1
    # First of its dataset in `val_loss_order`.
    best: bool = False
    # The share of draws in which it is the best, and what was drawn: see `winner`.
    wins: float | None = None
    drawn: str = ""
    # Its runs as one model, and of such a row, how many runs: see `ensembles`.
    ensemble: Group | None = None
    averaged: int = 0

    @property
    def name(self) -> str:
        """`dropout`, `dropout lr=0.01`; keys in full where their last parts are the same."""
        keys = last_parts(list(self.by))
        return " ".join([self.variant, *map("{}={}".format, keys, map(show, self.by.values()))])

    @property
    def shown(self) -> str:
        return self.label or self.name

    @property
    def slug(self) -> str:
        """The name as part of a file name, and of an element's id."""
        return re.sub(r"[^A-Za-z0-9_.-]+", "_", self.name)

    @property
    def peers(self) -> tuple[str, int, int | None]:
        """What makes rows comparable: their dataset, into how many folds it was dealt, and where
        each fold is a row, which."""
        return self.dataset, self.folds, self.by.get("fold")

    @property
    def folds_done(self) -> int:
        """Those with results, of the seed that has most."""
        return max((len(parts_of(run)) for run in self.tested), default=0)

    @property
    def complete(self) -> bool:
        """Whether each image was held out, by every seed that counts: always so without folds."""
        return self.folds == 1 or self.folds_done == self.folds

    @property
    def held_out(self) -> int | None:
        """Images that the folds held out, where the archive brought a test split of its own."""
        first = next(iter(self.tested), None)
        test = first.result.held_out if first and first.result else None
        return test.num_images if test and self.folds > 1 else None

    @property
    def chosen(self) -> Run | None:
        """The seed with the lowest validation loss; the test images had no say."""
        return min(self.tested, key=best_loss, default=None)

    @property
    def models(self) -> list[Run]:
        """Those of `tested`, each fold by itself."""
        return [part for run in self.tested for part in parts_of(run)]

    @property
    def best_model(self) -> Run | None:
        """Of `chosen`, the fold with the lowest validation loss."""
        return min(parts_of(self.chosen), key=best_loss) if self.chosen else None


def group_runs(runs: Iterable[Run], by: Sequence[str]) -> list[Group]:
    """In the customary order, `best` marked."""
    found: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: (run.seed, run.fold or 0)):
        key = repr([run.variant, *(lookup(run, key) for key in by)])
        found.setdefault(key, []).append(run)

    def order(runs: list[Run]) -> Any:
        variant = runs[0].variant
        rank = ORDER.index(variant) if variant in ORDER else len(ORDER)
        return rank, natural_key(variant), [_natural(lookup(runs[0], key)) for key in by]

    parts = sorted(found.values(), key=order)
    known = statistics(run for part in parts for run in part)
    return mark_best([make_group(by, part, known, index) for index, part in enumerate(parts)])


def _natural(value: Any) -> tuple[int, float, Any]:
    number = isinstance(value, int | float)
    return (0, float(value), ()) if number else (1, 0.0, natural_key(show(value)))


def make_group(
    by: Sequence[str], runs: list[Run], known: Mapping[str, tuple[str, ...]], index: int = 0
) -> Group:
    number = 1 if "fold" in by else max(map(num_folds, runs))
    seeds = folded(runs) if number > 1 else []
    tested = [part for run in seeds for part in run.members] or [run for run in runs if run.test]
    results = [run.result or progress(run) for run in tested or runs]
    sizes = (run.test.num_images for run in tested if run.test)
    if seeds and not has_test_split(seeds[0]):
        sizes = (run.test.num_images for run in seeds if run.test)
    return Group(
        variant=runs[0].variant,
        by={key: lookup(runs[0], key) for key in by},
        runs=runs,
        seeds=sorted({run.seed for run in runs}),
        n=len(tested),
        parameters=_common((run.result or run.config).num_parameters for run in tested or runs),
        values=of_folds(seeds, known)
        if seeds
        else {
            name: mean_sd([at(result, path) for result in results]) for name, path in known.items()
        },
        test_images=_common(sizes),
        dataset=runs[0].config.dataset.digest,
        status=status(runs),
        index=index,
        tested=[*seeds] or tested,
        folds=number,
    )


def damaged_group(by: Sequence[str], run: Run, known: Mapping[str, tuple[str, ...]]) -> Group:
    """A row of its own: nothing that its files say counts."""
    group = make_group(by, [run], known)
    return replace(group, by=dict.fromkeys(by), seeds=[], status=f"damaged: {run.problem}")


def _common(values: Iterable[int | None]) -> int | None:
    """The value that all have; None where there are several, or none."""
    found = set(values)
    return found.pop() if len(found) == 1 else None


def mark_best(groups: list[Group]) -> list[Group]:
    """`best` on the first by validation loss of its peers, among those with test metrics."""
    best: dict[tuple[object, ...], Group] = {}
    for group in sorted(groups, key=val_loss_order):
        if group.n and group.values["val_loss"]:
            best.setdefault(group.peers, group)
    return [replace(group, best=best.get(group.peers) is group) for group in groups]


def val_loss_order(group: Group) -> tuple[bool, float]:
    """Lowest mean validation loss first; groups in which a run diverged, or that lack a fold, stand
    back, as their mean covers the lucky ones only."""
    loss = group.values["val_loss"]
    return diverged(group) or not group.complete, loss.mean if loss else math.inf


def diverged(group: Group) -> bool:
    return any(run.state == "diverged" for run in group.runs)


def status(runs: Sequence[Run]) -> str:
    counts = Counter(run.state for run in runs)
    if len(counts) == 1:
        return runs[0].state
    order: tuple[State, ...] = ("done", "diverged", "failed", "unfinished")
    return ", ".join(f"{counts[state]} {state}" for state in order if state in counts)


def drawable(groups: Sequence[Group], most: int) -> list[Group]:
    """At most `most` groups to draw, in their order: see `reference_and_best`."""
    chosen = {id(group) for group in reference_and_best(groups)[:most]}
    return [group for group in groups if id(group) in chosen]


def reference_and_best(groups: Sequence[Group]) -> list[Group]:
    """The first, with which others are compared, then the others, the best by validation loss
    first and those without test metrics last."""

    def order(group: Group) -> float:
        value = group.values["val_loss"] if group.n else None
        return value.mean if value else math.inf

    return [*groups[:1], *sorted(groups[1:], key=order)]


# What is known of single runs


def parts_of(run: Run) -> Sequence[Run]:
    """The folds' runs; of a run without folds, itself."""
    return run.members if isinstance(run, FoldedRun) else [run]


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
    if key in ("seed", "fold"):
        return run.seed if key == "seed" else run.fold
    # Older runs do not have it.
    if key == FOLDS:
        return run.config.value(key) or 1
    if key == "folder":
        return str(run.path.parent)
    return run.config.dataset.digest[:12] if key == "dataset" else run.config.value(key)


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
    keys = [key for key in keys if key not in ("seed", "fold", "dataset.digest", *swept_keys(runs))]
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
