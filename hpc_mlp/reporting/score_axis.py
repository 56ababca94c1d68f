"""The axis of validation scores in the figures of searches and sweeps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter

from hpc_mlp.reporting.predictions import Array

# Scores that lie further from the best than so many times the median are shown at the edge.
_REACH = 3
# Losses further apart than this factor stand by their logarithms.
_WIDE = 8


@dataclass(frozen=True)
class ScoreAxis:
    """`best`: of all scores; `edge`: the worst that has its place, as far worse ones would flatten
    the others. Drawn times `factor`."""

    best: float
    edge: float
    log: bool = False
    factor: float = 1.0

    @property
    def bounds(self) -> tuple[float, float]:
        low, high = sorted((self.best, self.edge))
        return low, high

    def shows(self, score: float) -> bool:
        return self.bounds[0] <= score <= self.bounds[1]

    def at(self, share: float) -> float:
        """As drawn, what lies at this share of the way from the best to the edge."""
        if self.log:
            span = math.log(self.edge / self.best)
            return self.factor * self.best * math.exp(share * span)
        return self.factor * (self.best + share * (self.edge - self.best))

    def around(self, scores: Array) -> ScoreAxis:
        """With room for so much of `scores` alone as this one shows."""
        low, high = np.clip([scores.min(), scores.max()], *self.bounds).tolist()
        if low == high:
            return self
        rising = self.best > self.edge
        return replace(self, best=high if rising else low, edge=low if rising else high)

    def set_up(self, axes: Axes, before: float, beyond: float) -> None:
        """Scale, ticks, and limits, which leave such shares free before the best and beyond the
        edge."""
        if self.log:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=9))
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.yaxis.set_major_formatter("{x:g}")
        axes.set_ylim(*sorted((self.at(-before), self.at(1 + beyond))))


def score_axis(
    scores: Sequence[float], higher_is_better: bool, *, percent: bool, loss: bool
) -> ScoreAxis:
    """Of all `scores` of a figure, at least one. `percent`: they are shares; `loss`: of 0 and
    more."""
    log = loss and 0 < _WIDE * min(scores) < max(scores)
    sign = -1.0 if higher_is_better else 1.0
    values = sign * np.asarray(scores, np.float64)
    values = np.log(values) if log else values
    best, middle, worst = float(values.min()), float(np.median(values)), float(values.max())
    edge = min(worst, best + _REACH * (middle - best)) if middle > best else worst
    edge = edge if edge > best else best + (0.05 * abs(best) or 1.0)
    if log:
        best, edge = math.exp(best), math.exp(edge)
        # Not lost by rounding.
        best = min(best, min(scores))
    return ScoreAxis(sign * best, sign * edge, log, 100.0 if percent else 1.0)
