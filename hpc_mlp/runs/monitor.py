"""Which epoch of a run is its best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

L = TypeVar("L", bound=Mapping[str, Any])


class Monitor(NamedTuple):
    """What decides which epoch is best: `train.monitor`. `higher_is_better`: of a metric of the
    user's own."""

    name: str
    higher_is_better: bool = True


BY_LOSS = Monitor("loss")


def best_line(lines: Sequence[L], monitor: Monitor = BY_LOSS) -> L | None:
    """The line of metrics.jsonl of the best epoch, whose weights are kept: that of the lowest
    validation loss; by "accuracy" or "f1" that of the highest, and of those the lowest loss; so
    by a metric of the user's own; by "last" the last. Of equal ones the first, and none whose loss
    is not finite."""

    def order(line: L) -> tuple[float, float]:
        return rank(line, monitor), line["val_loss"]

    losses = ((line, line.get("val_loss")) for line in lines)
    finite = [
        line for line, loss in losses if isinstance(loss, int | float) and math.isfinite(loss)
    ]
    return min(finite, key=order, default=None)


def rank(line: Mapping[str, Any], monitor: Monitor) -> float:
    """The lower, the better, before the loss counts."""
    if monitor.name == "loss":
        return 0.0
    if key := {"accuracy": "val_accuracy", "last": "epoch"}.get(monitor.name):
        return -(line.get(key) or 0.0)
    value = line.get("val_f1") if monitor.name == "f1" else None
    if value is None:
        value = line.get("metrics", {}).get(monitor.name)
    return math.inf if value is None else -value if monitor.higher_is_better else value
