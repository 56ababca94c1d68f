"""Paired tests for the difference of two accuracies on the same test images.

Seeds and images are crossed: every seed's pair of models sees every image. A difference d[s, i] is then
mean + seed effect + image effect + the rest, and its mean over S seeds and N images has the variance
(MS_seeds + MS_images − MS_rest) / (S N), from the mean squares of the two-way table (the analysis known
from studies with several readers and cases: Obuchowski & Rockette 1995). Three seeds are too few to be
resampled: in a simulation the 95 % percentile interval of a bootstrap over seeds and images covered 84 %
where seeds matter (3 seeds, 4,000 images, 500 repetitions) and 99 % where they do not. So the images are
bootstrapped, and the seeds' part is drawn from Student's t with S − 1 degrees of freedom, which pays the
price of few seeds in full: 96–99 % in the same simulation (tests/test_compare.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

DRAWS = 20_000
Z95 = 1.959963984540054


def paired_bootstrap(differences: NDArray[np.float64], seed: int = 0) -> tuple[float, float, float]:
    """`differences` [S ≥ 2, N] of correctness (1, 0 or −1, fractions where runs were averaged) → lower and
    upper end of the 95 % interval of their mean, and the two-sided p-value for mean 0 (never below
    2 / 20,001). Never narrower than the images alone would have it. Deterministic."""
    num_seeds, num_images = differences.shape
    rng = np.random.default_rng(seed)
    mean, by_image = float(differences.mean()), differences.mean(0)
    seeds, images, rest = variances(differences)
    # Resampling N images is drawing counts of the few values that occur.
    values, counts = np.unique(by_image.round(9), return_counts=True)
    drawn = rng.multinomial(num_images, counts / num_images, size=DRAWS) @ values / num_images - mean
    own = math.sqrt(max(images - rest, 0.0) / images) if images > 0 else 0.0  # the seeds' part holds the rest
    both = own * drawn + math.sqrt(seeds) * rng.standard_t(num_seeds - 1, size=DRAWS)
    ends = np.array([np.quantile(mean + draws, [0.025, 0.975]) for draws in (drawn, both)])
    p = max(_two_sided(mean + draws) for draws in (drawn, both))
    return max(float(ends[:, 0].min()), -1.0), min(float(ends[:, 1].max()), 1.0), p


def variances(differences: NDArray[np.float64]) -> tuple[float, float, float]:
    """MS_seeds, MS_images and MS_rest of the two-way table [S, N], each over S N: parts of the variance of
    its mean."""
    num_seeds, num_images = differences.shape
    mean, by_seed, by_image = differences.mean(), differences.mean(1), differences.mean(0)
    rest = float(((differences - by_seed[:, None] - by_image + mean) ** 2).sum())
    rest /= (num_seeds - 1) * (num_images - 1) * num_seeds * num_images
    return float(by_seed.var(ddof=1)) / num_seeds, float(by_image.var(ddof=1)) / num_images, rest


def _two_sided(draws: NDArray[np.float64]) -> float:
    tail = min(int((draws <= 0).sum()), int((draws >= 0).sum()))
    return min(1.0, 2 * (tail + 1) / (draws.size + 1))


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p-value from the images that only one of two models gets right: a sign test."""
    count, fewer = only_first + only_second, min(only_first, only_second)
    if only_first == only_second:
        return 1.0
    log_all = math.lgamma(count + 1) - count * math.log(2)
    terms = [log_all - math.lgamma(k + 1) - math.lgamma(count - k + 1) for k in range(fewer + 1)]
    return min(1.0, 2 * math.fsum(map(math.exp, terms)))


def paired_interval(only_first: int, only_second: int, num_images: int) -> tuple[float, float]:
    """95 % interval of accuracy(first) − accuracy(second) on the same images: Wald with one discordant
    image added on either side (Bonett & Price 2012), which holds its level for few discordant images."""
    count = num_images + 2
    first, second = (only_first + 1) / count, (only_second + 1) / count
    half = Z95 * math.sqrt((first + second - (first - second) ** 2) / count)
    return first - second - half, first - second + half


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction: p-values that may each be held against 0.05 (family-wise error rate)."""
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted
