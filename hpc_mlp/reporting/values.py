"""The numbers that are told of runs, and their mean and standard deviation."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hpc_mlp.runs.folder import Json, Run
from hpc_mlp.runs.monitor import best_line

# Statistic of a group: where it stands in result.json. See `statistics` for metrics of one's own.
STATISTICS: dict[str, tuple[str, ...]] = {
    "best_epoch": ("best_epoch",),
    "val_loss": ("best_val_loss",),
    "val_accuracy": ("best_val_accuracy",),
    "val_f1": ("best_val_f1",),
    "test_accuracy": ("test", "accuracy"),
    "precision": ("test", "precision"),
    "recall": ("test", "recall"),
    "f1": ("test", "f1"),
    "test_loss": ("test", "loss"),
    "temperature": ("temperature",),
    "calibrated_loss": ("test", "calibrated_loss"),
    "calibrated_ece": ("test", "calibrated_ece"),
    "images_per_second": ("images_per_second",),
    "seconds": ("seconds",),
}
# Of folds, where the archive brought a test split of its own.
HELD_OUT = {f"held_out_{name}": ("held_out", name) for name in ("accuracy", "precision", "recall")}
HELD_OUT |= {"held_out_f1": ("held_out", "f1"), "held_out_loss": ("held_out", "loss")}


@dataclass(frozen=True)
class Value:
    """Mean and standard deviation (n - 1) over the runs of a group, or over its folds (see
    `folds.values`); no `sd` for a single one."""

    mean: float
    sd: float | None = None


def statistics(runs: Iterable[Run]) -> dict[str, tuple[str, ...]]:
    """STATISTICS, and the runs' own metrics."""
    runs = list(runs)
    names = own_metrics(runs)
    return (
        STATISTICS
        | (HELD_OUT if any(run.result and run.result.held_out for run in runs) else {})
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


def progress(run: Run) -> Json:
    """What an unfinished or failed run has reached, as a result without test metrics."""
    best, lines = best_line(run.metrics, run.monitor), run.metrics
    if best is None:
        return {}
    return {
        "best_epoch": best.epoch,
        "best_val_loss": best.val_loss,
        "best_val_accuracy": best.val_accuracy,
        "best_val_f1": best.val_f1,
        "best_val_metrics": best.metrics,
        "images_per_second": lines[-1].images_per_second,
        "seconds": sum(line.seconds or 0.0 for line in lines),
    }


def statistic(run: Run, name: str) -> Any:
    """One of `statistics`: of an unfinished run what it has reached."""
    return at(run.result or progress(run), statistics([run])[name])


def mean_sd(numbers: Sequence[float | None]) -> Value | None:
    """None unless every run has the number: a mean over some of them would mislead."""
    known = [number for number in numbers if number is not None and math.isfinite(number)]
    if not known or len(known) < len(numbers):
        return None
    mean = math.fsum(known) / len(known)
    if len(known) == 1:
        return Value(mean)
    return Value(mean, math.sqrt(math.fsum((x - mean) ** 2 for x in known) / (len(known) - 1)))


def at(tree: Any, path: Iterable[str]) -> Any:
    for part in path:
        tree = tree.get(part) if isinstance(tree, Mapping) else None
    return tree
