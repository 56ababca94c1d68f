"""Several variants over the same seeds and the same test images: one test for all differences.

Seeds and images are crossed, every seed's models see every image. A variant's accuracies a[v, s]
vary over seeds, and the mean difference of two variants has a part of its variance from the seeds
and one from the images (studies with several readers and cases: Obuchowski & Rockette 1995). Two to
five seeds tell little about one difference: a t-test with S - 1 degrees of freedom sees hardly
anything. So the seeds' variance is pooled over the V variants, and never below what a difference
itself shows:

    MS    = sum over v, s of (a[v,s] - a[v,.] - a[.,s] + a[.,.])^2 / ((V - 1)(S - 1))
    seeds = max(2 MS, variance over seeds of the difference) / S
    SE^2  = seeds + images

Folds of a cross-validation take the seeds' place (their mean over the seeds of each), and there is
no part of the images by itself, as every fold has others. Their training sets overlap, so their
mean varies more than that of independent ones: by Nadeau & Bengio (2003), (1 / K + n_test /
n_train) in place of 1 / K, which is `overlap` = 1 + N / n_train times as much for N images in K
folds. With two variants that is their corrected t-test with K - 1 degrees of freedom.

The largest |t| of all differences is held against draws of the same statistic (max-|t|: Dunnett
1955, Hothorn, Bretz & Westfall 2008), in which every variant has seeds' variances as estimated
(Grubbs 1948, shrunk to their mean with the weight of one seed, or the noisiest variant would go
unnoticed). What is not the largest is held against the largest of the rest (step-down: Romano &
Wolf 2005). With two variants it is Student's t with S - 1 degrees of freedom.

Simultaneous 95 % intervals are from the same draws. They hold 0 exactly where the largest-of-all
test says nothing; a difference that only the step-down shows has an interval that ends at 0.
tools/simulate_comparison.py has the levels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
Pairs = Sequence[tuple[int, int]]

ALPHA = 0.05
POWER = 0.8
DRAWS = 19_999
# For the power (two digits are enough) fewer where many seeds are tried: 0.02 s each.
FEWER_DRAWS = 9_999
MOST_EFFECTS = 600_000
# Draws times differences, or times runs: what 200 of them may take of memory (32 MB) and time.
MOST_NUMBERS = 4_000_000
# Numbers drawn at once.
_AT_ONCE = 100_000
# How many seeds are looked at for a difference that is to be found.
MOST_SEEDS = 100
# Squared accuracies below it are rounding.
TINY = 1e-15


@dataclass(frozen=True)
class Moments:
    """What the test needs of correctness [V, S, N]: `accuracy` [V, S], and `images` [V, V], the
    covariance of the variants' mean accuracies over test images as they could have been drawn.
    `overlap`: how many times as much the mean over the S varies as one of S independent ones.
    In another metric (see `metrics`) an image is worth `one`, and differences are below `most`."""

    accuracy: Floats
    images: Floats
    num_images: int
    overlap: float = 1.0
    one: float = 1.0
    most: float = 1.0


@dataclass(frozen=True)
class Differences:
    """Of each pair, float64 [C]: first minus second, in fractions. `p` is for a single comparison,
    `p_adjusted` for all of them; `low` and `high` are the simultaneous 95 % interval."""

    difference: Floats
    low: Floats
    high: Floats
    p: Floats
    p_adjusted: Floats


def moments(correct: Floats) -> Moments:
    """From correctness [V, S >= 2, N >= 2] in 0..1 (fractions where several runs were averaged)."""
    num_variants, num_seeds, num_images = correct.shape
    accuracy, by_image = correct.mean(2), correct.mean(1)
    centred = by_image - accuracy.mean(1, keepdims=True)
    rest = (correct - accuracy[:, :, None] - centred[:, None]).reshape(num_variants, -1)
    images = centred @ centred.T / (num_images - 1)
    images -= rest @ rest.T / ((num_seeds - 1) * (num_images - 1) * num_seeds)
    return Moments(accuracy, images / num_images, num_images)


def differences(found: Moments, pairs: Pairs, families: int = 1, draws: int = DRAWS) -> Differences:
    """All `pairs` of variants against each other; p and intervals corrected for all of them, and
    for `families` sets of pairs that are tested apart. Deterministic."""
    first, second = np.array(pairs).T
    num_seeds = found.accuracy.shape[1]
    drawn = _draw(found, first, second, num_seeds, draws)
    seeds = found.overlap * _seed_variance(found.accuracy, first, second, _trust(num_seeds))
    images = _floor(drawn.image_variance, seeds, found)
    error = np.sqrt(seeds + images)
    apart = found.accuracy[first].mean(1) - found.accuracy[second].mean(1)
    noise = np.abs(drawn.seeds * np.sqrt(seeds) + drawn.images * np.sqrt(images)) / error
    t = np.abs(apart) / error
    p_adjusted = np.minimum(1.0, families * _step_down(noise, t))
    width = _quantile(noise.max(1), families)
    low, high = agree(apart - width * error, apart + width * error, apart, p_adjusted < ALPHA)
    return Differences(
        apart,
        np.maximum(low, -found.most),
        np.minimum(high, found.most),
        _share(noise, t),
        p_adjusted,
    )


def agree(
    low: Floats, high: Floats, difference: Floats, shown: NDArray[np.bool_]
) -> tuple[Floats, Floats]:
    """Ends of intervals that leave 0 out exactly where a difference is `shown`: where the interval
    alone would have it otherwise, it ends at 0."""
    low = np.where(shown, np.where(difference > 0, np.maximum(low, 0.0), low), np.minimum(low, 0.0))
    high = np.where(
        shown, np.where(difference < 0, np.minimum(high, 0.0), high), np.maximum(high, 0.0)
    )
    return low, high


def detectable(found: Moments, pairs: Pairs, num_seeds: int, families: int = 1) -> Floats:
    """The smallest true difference of each pair that `num_seeds` seeds find with 80 % power on as
    many test images: from the variances alone, never from the differences that were seen."""
    first, second = np.array(pairs).T
    draws = min(FEWER_DRAWS, max(MOST_EFFECTS // (len(found.accuracy) * num_seeds), 999))
    drawn = _draw(found, first, second, num_seeds, draws)
    pooled = found.overlap * drawn.pooled
    seeds, images = (pooled * drawn.variance, _floor(drawn.image_variance, pooled, found))
    typical = seeds.mean(0)
    noise = np.abs(drawn.seeds * np.sqrt(typical) + drawn.images * np.sqrt(images)) / np.sqrt(
        typical + images
    )
    moved = drawn.effects * math.sqrt(pooled) + drawn.images * np.sqrt(images)
    width = _quantile(noise.max(1), families)
    # Found where moved + difference > width * SE: the other side hardly ever counts.
    return np.asarray(np.quantile(width * np.sqrt(seeds + images) - moved, POWER, axis=0))


def seeds_needed(
    found: Moments, pairs: Pairs, which: Iterable[int], target: float, families: int = 1
) -> list[int | None]:
    """Of the pairs `which`, the fewest seeds (2 or more) with which a true difference of `target`
    is found with 80 % power on as many test images; None where 100 do not do. From the variances
    alone, as of `detectable`."""
    known: dict[int, Floats] = {}

    def found_with(num_seeds: int) -> Floats:
        if num_seeds not in known:
            known[num_seeds] = detectable(found, pairs, num_seeds, families)
        return known[num_seeds]

    def fewest(c: int) -> int | None:
        low, high = 1, 2
        while found_with(high)[c] > target:
            if high == MOST_SEEDS:
                return None
            low, high = high, min(2 * high, MOST_SEEDS)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if found_with(middle)[c] <= target else (middle, high)
        return high

    return [fewest(c) for c in which]


# Parts of the variance


def _seed_variance(accuracy: Floats, first: Indices, second: Indices, trust: float) -> Floats:
    """Of the mean difference of each pair, its variance from the seeds: accuracy [..., V, S] ->
    [..., C]. `trust`: how far its own variance counts where it exceeds the pooled one."""
    num_seeds = accuracy.shape[-1]
    pooled = 2 * _interaction(accuracy).sum(-1, keepdims=True) / (accuracy.shape[-2] - 1)
    own = (accuracy[..., first, :] - accuracy[..., second, :]).var(-1, ddof=1)
    return np.asarray((pooled + trust * np.maximum(own - pooled, 0.0)) / num_seeds)


def _interaction(accuracy: Floats) -> Floats:
    """Squares of what neither variant nor seed explains, summed over seeds, over S - 1: [..., V, S]
    -> [..., V]. Their sum over V - 1 is MS."""
    rest = accuracy - accuracy.mean(-1, keepdims=True)
    rest -= rest.mean(-2, keepdims=True)
    return np.asarray((rest**2).sum(-1) / (accuracy.shape[-1] - 1))


def _trust(num_seeds: int) -> float:
    """How far one variant's own variance is believed: the pooled one weighs as much as one seed."""
    return (num_seeds - 1) / num_seeds


def _spreads(accuracy: Floats) -> tuple[Floats, float]:
    """Relative variances over seeds, [V] with mean 1 (Grubbs' estimates, shrunk), and MS."""
    num_variants, num_seeds = accuracy.shape
    squares = _interaction(accuracy)
    pooled = float(squares.sum() / (num_variants - 1))
    if num_variants == 2 or pooled < TINY:
        return np.ones(num_variants), max(pooled, 0.0)
    own = (squares / pooled - 1 / num_variants) * num_variants / (num_variants - 2)
    spread = 1 + _trust(num_seeds) * (np.maximum(own, 0.0) - 1)
    return spread / spread.mean(), pooled


# Draws


@dataclass(frozen=True)
class _Draws:
    """Of each difference, [D, C]: `effects`, the mean over the seeds in units of sqrt(MS), and its
    `variance` as it would be estimated; `seeds`, their ratio (Student's t, more or less); `images`,
    the images' part in units of its standard deviation. And that part's variance, [C]; and MS."""

    effects: Floats
    variance: Floats
    seeds: Floats
    images: Floats
    image_variance: Floats
    pooled: float


def _draw(found: Moments, first: Indices, second: Indices, num_seeds: int, draws: int) -> _Draws:
    num_variants = len(found.accuracy)
    draws = min(draws, max(MOST_NUMBERS // max(len(first), num_variants * num_seeds), 999))
    rng = np.random.default_rng(0)
    spread, pooled = _spreads(found.accuracy)
    parts: list[tuple[Floats, Floats, Floats]] = []
    most = max(1, _AT_ONCE // (num_variants * num_seeds))
    # By parts, as all of them at once may take hundreds of megabytes; the numbers are the same.
    for start in range(0, draws, most):
        size = (min(most, draws - start), num_variants, num_seeds)
        accuracy = rng.standard_normal(size) * np.sqrt(spread)[:, None]
        means = accuracy.mean(2)
        variance = _seed_variance(accuracy, first, second, _trust(num_seeds))
        # Two seeds cannot tell a noisy variant from chance: there the draws do not take back what
        # raises the variance.
        divisor = variance if num_seeds > 2 else _seed_variance(accuracy, first, second, 0.0)
        parts.append((means[:, first] - means[:, second], variance, divisor))
    effects, variance, divisor = map(np.concatenate, zip(*parts, strict=True))
    values, vectors = np.linalg.eigh(found.images)
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    plain = rng.standard_normal((draws, num_variants))
    images = plain @ root.T
    image_variance = ((root[first] - root[second]) ** 2).sum(1)
    known = image_variance > TINY
    scaled = (images[:, first] - images[:, second]) / np.sqrt(np.where(known, image_variance, 1.0))
    return _Draws(
        effects=effects,
        variance=variance,
        seeds=effects / np.sqrt(divisor),
        # A pair and its mirror image have opposite draws.
        images=np.where(
            known, scaled, plain[:, np.minimum(first, second)] * np.sign(second - first)
        ),
        image_variance=np.where(known, image_variance, 0.0),
        pooled=pooled,
    )


def _floor(images: Floats, seeds: Floats | float, found: Moments) -> Floats:
    """Nothing is exact: where nothing varies, as if an image more were right on either side, and
    never less than if each seed had such images of its own. Of few images and seeds accuracies are
    equal by chance, and both parts nearly 0: two seeds, each better by another one of 24 images,
    gave p < 0.001."""
    one = 2 * found.one**2 / found.num_images**2
    least = np.maximum(images, one / found.accuracy.shape[1] - seeds)
    return np.where(seeds + images < TINY, one, least)


def _step_down(noise: Floats, t: Floats) -> Floats:
    """Adjusted p-values: each |t| against the largest noise of those that are no larger, never
    below the p of a larger one."""
    order = np.argsort(t, kind="stable")
    largest = np.maximum.accumulate(noise[:, order], axis=1)
    p = _share(largest, t[order])
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(p[::-1])[::-1]
    return adjusted


def _share(noise: Floats, t: Floats) -> Floats:
    return np.asarray(((noise >= t).sum(0) + 1) / (len(noise) + 1))


def _quantile(largest: Floats, families: int) -> float:
    """The largest value not yet shown: only a |t| above it has families * p < 5 %."""
    above = int(ALPHA * (largest.size + 1) / families)
    while above > 0 and families * ((above + 1) / (largest.size + 1)) >= ALPHA:
        above -= 1
    return float(np.partition(largest, largest.size - 1 - above)[largest.size - 1 - above])
