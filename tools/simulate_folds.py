#!/usr/bin/env python3
"""Levels and power of the comparison over folds, by simulation, beside one split at equal cost.

    python tools/simulate_folds.py
        the tables, Markdown (a quarter of an hour on a busy core)
    python tools/simulate_folds.py --repetitions 200
        the same, roughly
    python tools/simulate_folds.py level
        parts of it: level, power, detect

What is asked: do recipes differ, trained on sets of this size? Correctness is the latent probit of
simulate_comparison.py, with one more term: what a run's training set adds to its expected accuracy.
Every image has an influence on each recipe, N(0, 1), and a training set adds their sum, scaled so
that over training sets its standard deviation is `train_sd` points; two sets correlate by the share
of images that they have in common. Seeds add `seed_sd` points, anew for every run (that a seed
would favour a recipe in all folds is not in the model).

Folds are made as training makes them: fold k is held out, a tenth of all images, of fold k + 1,
validates, the rest trains; every image is tested once. One split trains on eight tenths, and all
its seeds on the same, and tests on a tenth. Equal cost: as many runs of each variant. Everything is
a function of --seed; a rate of 5 % over 1,000 repetitions is uncertain by +- 1.4 points (2 sd)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from simulate_comparison import ACCURACY, SD_IMAGE, SD_OWN, print_parts

from hpc_mlp.reporting import pooled
from hpc_mlp.reporting.pooled import Moments

Floats = NDArray[np.float64]
SPREAD = math.sqrt(SD_IMAGE**2 + SD_OWN**2 + 1)


@dataclass(frozen=True)
class World:
    """A dataset of `num_images`, and recipes: sd of a run's expected accuracy over seeds and over
    training sets, in points; `above`: the second variant's true accuracy over the others'."""

    num_images: int = 4000
    seed_sd: float = 0.5
    train_sd: float = 0.5
    num_folds: int = 5
    num_seeds: int = 1
    num_variants: int = 4
    above: float = 0.0

    @property
    def pairs(self) -> list[tuple[int, int]]:
        return [(v, 0) for v in range(1, self.num_variants)]

    @property
    def runs(self) -> int:
        return self.num_folds * self.num_seeds


def blocks(num_folds: int) -> tuple[Floats, NDArray[np.bool_]]:
    """The parts that training sets are made of, as shares of all images [2 K], and which of them
    each fold trains on [K, 2 K]: a fold's first part validates the fold before."""
    held_out = 1 / num_folds
    validation = min(0.1, held_out)
    shares = np.tile([validation, held_out - validation], num_folds)
    trains = np.ones((num_folds, 2 * num_folds), bool)
    for k in range(num_folds):
        trains[k, [2 * k, 2 * k + 1, 2 * ((k + 1) % num_folds)]] = False
    return shares, trains


def train_effects(world: World, trains: NDArray[np.bool_], shares: Floats, draw: Floats) -> Floats:
    """What the training sets add, in points: draws N(0, 1) [V, parts] -> [V, sets]."""
    weights = np.where(trains, np.sqrt(shares), 0.0)
    weights /= np.sqrt(np.maximum(np.where(trains, shares, 0.0).sum(1, keepdims=True), 1e-12))
    return np.asarray(world.train_sd * draw @ weights.T)


def correct(world: World, effects: Floats, num_images: int, rng: np.random.Generator) -> Floats:
    """`effects` in points [V, R] -> correctness of R runs on the same images [V, R, N]."""
    above = np.zeros((world.num_variants, 1))
    above[1] = world.above
    latent = SPREAD * stats.norm.ppf(ACCURACY + (above + effects) / 100)[:, :, None]
    latent = latent + SD_IMAGE * rng.standard_normal(num_images)
    latent = latent + SD_OWN * rng.standard_normal((world.num_variants, 1, num_images))
    latent += rng.standard_normal((world.num_variants, effects.shape[1], num_images))
    return np.asarray(latent > 0, np.float64)


def folds(world: World, rng: np.random.Generator) -> Moments:
    """All runs of a cross-validation; the seeds of a fold are averaged."""
    num_variants, num_folds = world.num_variants, world.num_folds
    shares, trains = blocks(num_folds)
    draw = rng.standard_normal((num_variants, shares.size))
    by_fold = train_effects(world, trains, shares, draw)
    size = world.num_images // num_folds
    accuracy = np.empty((num_variants, num_folds))
    for k in range(num_folds):
        seeds = world.seed_sd * rng.standard_normal((num_variants, world.num_seeds))
        answers = correct(world, by_fold[:, [k]] + seeds, size, rng)
        accuracy[:, k] = answers.mean((1, 2))
    overlap = 1 + 1 / float(shares[trains[0]].sum())
    return Moments(accuracy, np.zeros((num_variants,) * 2), world.num_images, overlap)


def split(world: World, rng: np.random.Generator) -> Moments:
    """As many runs, all on one split: one training set, a tenth of the images to test."""
    common = world.train_sd * rng.standard_normal((world.num_variants, 1))
    seeds = world.seed_sd * rng.standard_normal((world.num_variants, world.runs))
    return pooled.moments(correct(world, common + seeds, world.num_images // 10, rng))


def naive(world: World, rng: np.random.Generator) -> Moments:
    """The folds, as if their training sets were independent."""
    return replace(folds(world, rng), overlap=1.0)


Way = Callable[[World, np.random.Generator], Moments]
WAYS: dict[str, Way] = {"folds": folds, "naive": naive, "split": split}


@dataclass(frozen=True)
class Rates:
    """In percent: `any`, of all variants but the second any that is shown to differ (where all are
    equal, the family-wise error); `found`, the second; `covered`, all intervals hold the truth.
    `width`: of half an interval, `sd` of the second difference, in points."""

    any: float
    found: float
    covered: float
    width: float
    sd: float


def rates(world: World, way: str, repetitions: int, seed: int = 0, draws: int = 999) -> Rates:
    """Deterministic."""
    rng = np.random.default_rng([seed, world.num_images, world.num_folds, world.num_seeds])
    truth = np.zeros(world.num_variants - 1)
    truth[0] = world.above / 100
    shown, covered, width, seen = [], [], [], []
    for _ in range(repetitions):
        tested = pooled.differences(WAYS[way](world, rng), world.pairs, draws=draws)
        shown.append(tested.p_adjusted < pooled.ALPHA)
        covered.append(((tested.low <= truth) & (truth <= tested.high)).all())
        width.append((tested.high - tested.low)[0] / 2)
        seen.append(tested.difference[0])
    table = np.array(shown)
    equal = table if not world.above else table[:, 1:]
    return Rates(
        100 * float(equal.any(1).mean()),
        100 * float(table[:, 0].mean()),
        100 * float(np.mean(covered)),
        100 * float(np.mean(width)),
        100 * float(np.std(seen)),
    )


def detection(world: World, repetitions: int, seed: int = 0) -> tuple[float, float]:
    """What `detectable` says of the first difference on average, in points, and the percent of
    repetitions in which it is found where it is the true one."""
    rng = np.random.default_rng([seed, 1, world.num_images, world.num_folds])
    experiments = [folds(world, rng) for _ in range(2 * repetitions)]
    said = [
        pooled.detectable(found, world.pairs, world.num_folds)[0]
        for found in experiments[:repetitions]
    ]
    mean = float(np.mean(said))
    higher = np.eye(world.num_variants)[1][:, None] * mean
    moved = [replace(one, accuracy=one.accuracy + higher) for one in experiments[repetitions:]]
    tested = [pooled.differences(one, world.pairs, draws=999) for one in moved]
    return 100 * mean, 100 * float(np.mean([one.p_adjusted[0] < pooled.ALPHA for one in tested]))


# The tables

WORLDS = [
    World(num_images, seed_sd, train_sd)
    for num_images, seed_sd in ((1000, 0.5), (4000, 0.5), (4000, 1.0))
    for train_sd in (0.0, 0.5, 1.0)
]
OTHERS = [
    World(20_000),
    *(World(num_folds=k) for k in (2, 3, 10)),
    World(num_seeds=2),
    World(num_seeds=3),
    World(num_variants=2),
    World(num_variants=3),
]
HEAD = "images | seed sd | training-set sd | folds × seeds | variants"


def named(world: World) -> str:
    return (
        f"{world.num_images:,} | {world.seed_sd:g} | {world.train_sd:g} | "
        f"{world.num_folds} × {world.num_seeds} | {world.num_variants}"
    )


def print_level(repetitions: int, seed: int) -> None:
    print(f"| {HEAD} | folds | uncorrected | one split | all intervals right %: folds | split |")
    print("|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    for world in [*WORLDS, *OTHERS]:
        found = [rates(world, way, repetitions, seed) for way in ("folds", "naive", "split")]
        cells = [*(one.any for one in found), found[0].covered, found[2].covered]
        print(f"| {named(world)} | {' | '.join(f'{x:.1f}' for x in cells)} |", flush=True)


def print_power(repetitions: int, seed: int) -> None:
    sizes = (1.0, 2.0, 3.0)
    titles = " | ".join(f"+{size:g}: folds | split" for size in sizes)
    print(f"\n| {HEAD} | half width, sd: folds | split | {titles} |")
    print("|---:|---:|---:|---:|---:|---:|---:|" + "---:|---:|" * len(sizes))
    for world in [*WORLDS, *OTHERS]:
        cells: list[str] = []
        for size in sizes:
            both = [
                rates(replace(world, above=size), way, repetitions, seed)
                for way in ("folds", "split")
            ]
            if not cells:
                cells += [f"{one.width:.1f}, {one.sd:.2f}" for one in both]
            cells += [f"{one.found:.0f}" for one in both]
        print(f"| {named(world)} | {' | '.join(cells)} |", flush=True)


def print_detect(repetitions: int, seed: int) -> None:
    print(f"\n| {HEAD} | stated, points (mean) | found %, where that is true |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    for world in [*WORLDS, *OTHERS]:
        said, found = detection(world, repetitions, seed)
        print(f"| {named(world)} | {said:.2f} | {found:.0f} |", flush=True)


if __name__ == "__main__":
    print_parts(__doc__, {"level": print_level, "power": print_power, "detect": print_detect})
