"""Two trained models on the same test images: how single runs are compared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p-value (sign test) of the images that only one model gets right."""
    count, fewer = only_first + only_second, min(only_first, only_second)
    if only_first == only_second:
        return 1.0
    log_all = math.lgamma(count + 1) - count * math.log(2)
    terms = [log_all - math.lgamma(k + 1) - math.lgamma(count - k + 1) for k in range(fewer + 1)]
    return min(1.0, 2 * math.fsum(map(math.exp, terms)))


def paired_interval(
    only_first: int, only_second: int, num_images: int, level: float = 0.95
) -> tuple[float, float]:
    """Interval of accuracy(first) − accuracy(second) on the same images: Wald with one discordant
    image added on either side (Bonett & Price 2012), also right for few."""
    count = num_images + 2
    first, second = (only_first + 1) / count, (only_second + 1) / count
    z = NormalDist().inv_cdf((1 + level) / 2)
    half = z * math.sqrt((first + second - (first - second) ** 2) / count)
    return first - second - half, first - second + half


def paired_t(
    first: NDArray[np.float64], second: NDArray[np.float64], level: float, one: float
) -> tuple[float, float, tuple[float, float]]:
    """Of what each image is worth in two models [N]: the mean difference, Student's two-sided p and
    the interval. The variance is never less than if one image were worth `one` more on either
    side."""
    from scipy.special import stdtr, stdtrit

    apart, size = first - second, first.size
    mean = float(apart.mean())
    error = math.sqrt(max(float(apart.var(ddof=1)) / size, 2 * one**2 / size**2))
    # Equal everywhere.
    if error == 0:
        return 0.0, 1.0, (0.0, 0.0)
    half = float(stdtrit(size - 1, (1 + level) / 2)) * error
    p = 2 * float(stdtr(size - 1, -abs(mean) / error))
    return mean, p, (mean - half, mean + half)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction: p-values that may each be held against 0.05 (family-wise error rate)."""
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted
