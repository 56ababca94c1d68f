#!/usr/bin/env python3
"""The levels of the comparison, by simulation: the method of before beside the one of today.

    python tools/simulate_comparison.py
        the whole table, Markdown (an hour on a busy core)
    python tools/simulate_comparison.py --repetitions 200
        the same, roughly
    python tools/simulate_comparison.py power detect
        parts of it: level, power, detect

Correctness of V variants, S seeds and N images is a latent probit: right where mean[v] + D[i] +
W[v, i] + e[v, s] + noise > 0, with sd(D) 1.5, sd(W) 0.4, sd(noise) 1 and an accuracy of 88 %; e[v,
s] is scaled so that a run's expected accuracy has the given standard deviation over seeds, in
points, and has the correlation `rho` between variants. For N of 10,000 only what the methods look
at is drawn: accuracies (normal, variance .0605 / N of chance) and the images' part of a difference
(variance .0091 / N), both as the latent model gives them. Everything is a function of --seed. Small
rates are uncertain by +- 1.4 points (5 %, 1,000 repetitions, 2 sd)."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hpc_mlp.reporting import pooled
from hpc_mlp.reporting.pooled import Moments

Floats = NDArray[np.float64]
CHANCE, IMAGES = 0.0605, 0.0091
SD_IMAGE, SD_OWN, ACCURACY = 1.5, 0.4, 0.88
# Seeds' standard deviations as measured, reference first: the recipe fair_four, 120 runs on a
# subset of Fashion-MNIST.
FAIR_FOUR, SUBSET = (0.52, 0.34, 0.37, 0.22), (0.78, 0.55, 0.52, 0.39)
TRUE = (0.0, -3.4, 1.6, -1.0)
FEW, MANY = 50, 10_000


@dataclass(frozen=True)
class Cell:
    """One experiment: `sd` of every variant over seeds, and its true accuracy above the first
    one's, in points."""

    sd: tuple[float, ...]
    num_seeds: int
    num_images: int
    above: tuple[float, ...] = ()
    rho: float = 0.0

    @property
    def pairs(self) -> list[tuple[int, int]]:
        return [(v, 0) for v in range(1, len(self.sd))]


def draw(cell: Cell, rng: np.random.Generator) -> Moments:
    num_variants, num_seeds, num_images = len(cell.sd), cell.num_seeds, cell.num_images
    above = np.array(cell.above or [0.0] * num_variants)[:, None] / 100
    common, own = (
        rng.standard_normal((1, num_seeds)),
        rng.standard_normal((num_variants, num_seeds)),
    )
    effects = (
        (math.sqrt(cell.rho) * common + math.sqrt(1 - cell.rho) * own)
        * np.array(cell.sd)[:, None]
        / 100
    )
    if num_images >= MANY:
        chance = rng.standard_normal((num_variants, num_seeds)) * math.sqrt(CHANCE / num_images)
        image = rng.standard_normal((num_variants, 1)) * math.sqrt(IMAGES / 2 / num_images)
        return Moments(
            above + effects + chance + image,
            np.eye(num_variants) * IMAGES / 2 / num_images,
            num_images,
        )
    spread = math.sqrt(SD_IMAGE**2 + SD_OWN**2 + 1)
    centre = stats.norm.ppf(ACCURACY)
    # A point of accuracy on the latent scale.
    slope = stats.norm.pdf(centre) / spread
    latent = centre * spread + (above + effects)[:, :, None] / slope
    latent = latent + SD_IMAGE * rng.standard_normal(num_images)
    latent = latent + SD_OWN * rng.standard_normal((num_variants, 1, num_images))
    latent += rng.standard_normal(latent.shape)
    return pooled.moments((latent > 0).astype(np.float64))


def old(found: Moments, pairs: Sequence[tuple[int, int]]) -> NDArray[np.bool_]:
    """Until version 0.1: each difference by itself, images bootstrapped (here: normal), seeds with
    Student's t of S - 1 degrees of freedom, never below the images alone; p-values corrected by
    Holm. -> shown [C]."""
    first, second = np.array(pairs).T
    difference = found.accuracy[first] - found.accuracy[second]
    num_seeds, mean = difference.shape[1], np.abs(difference.mean(1))
    seeds = difference.std(1, ddof=1) / math.sqrt(num_seeds)
    apart = np.eye(len(found.accuracy))[first] - np.eye(len(found.accuracy))[second]
    images = np.sqrt(np.maximum(np.einsum("cv,vw,cw->c", apart, found.images, apart), 0.0))
    z = stats.norm.ppf((np.arange(200) + 0.5) / 200) * images[:, None]
    both = [
        stats.t.sf(
            (mean[:, None] + side * z) / np.maximum(seeds, 1e-12)[:, None], num_seeds - 1
        ).mean(1)
        for side in (1, -1)
    ]
    # The images alone hold the chance of single answers too.
    alone = np.sqrt(images**2 + 2 * CHANCE / (found.num_images * num_seeds))
    p = np.maximum(sum(both), 2 * stats.norm.sf(mean / alone))
    order = np.argsort(p)
    falls = np.cumprod(p[order] * (len(p) - np.arange(len(p))) < pooled.ALPHA).astype(bool)
    shown = np.empty(len(p), bool)
    shown[order] = falls
    return shown


@dataclass(frozen=True)
class Rates:
    """In percent: `old` and `new` of each difference shown, any of them shown, and of simultaneous
    intervals that hold every true difference."""

    old: Floats
    new: Floats
    any_old: float
    any_new: float
    covered: float


def rates(cell: Cell, repetitions: int, seed: int = 0, draws: int = 1999) -> Rates:
    """Monte-Carlo rates of one cell; deterministic."""
    rng = np.random.default_rng([seed, cell.num_seeds, cell.num_images, len(cell.sd)])
    truth = np.array((cell.above or (0.0,) * len(cell.sd))[1:]) / 100
    before, after, covered = [], [], []
    for _ in range(repetitions):
        found = draw(cell, rng)
        tested = pooled.differences(found, cell.pairs, draws=draws)
        before.append(old(found, cell.pairs))
        after.append(tested.p_adjusted < pooled.ALPHA)
        covered.append(((tested.low <= truth) & (truth <= tested.high)).all())
    shown_old, shown_new = np.array(before), np.array(after)
    return Rates(
        100 * shown_old.mean(0),
        100 * shown_new.mean(0),
        100 * float(shown_old.any(1).mean()),
        100 * float(shown_new.any(1).mean()),
        100 * float(np.mean(covered)),
    )


def detection(cell: Cell, repetitions: int, seed: int = 0) -> tuple[float, float, float]:
    """The difference of the first variant that `detectable` says on average, in points, and the
    percent of repetitions in which it is found where it is the true one; then the same where each
    experiment's own statement is the truth."""
    rng = np.random.default_rng([seed, 1, cell.num_seeds, cell.num_images])
    experiments = [draw(cell, rng) for _ in range(2 * repetitions)]
    said = [
        pooled.detectable(found, cell.pairs, cell.num_seeds)[0]
        for found in experiments[:repetitions]
    ]
    mean = float(np.mean(said))
    unit = np.eye(len(cell.sd))[1][:, None]

    def share(several: Sequence[Moments], sizes: Sequence[float]) -> float:
        moved = [
            Moments(m.accuracy + unit * size, m.images, m.num_images)
            for m, size in zip(several, sizes, strict=True)
        ]
        found = [
            pooled.differences(m, cell.pairs, draws=1999).p_adjusted[0] < pooled.ALPHA
            for m in moved
        ]
        return 100 * float(np.mean(found))

    return (
        100 * mean,
        share(experiments[repetitions:], [mean] * repetitions),
        share(experiments[:repetitions], said),
    )


# The table


def equal(num_variants: int, sd: float, num_seeds: int, num_images: int) -> Cell:
    return Cell((sd,) * num_variants, num_seeds, num_images)


def level_cells() -> list[tuple[str, Cell]]:
    cells = [
        (f"equal, {sd:g}", equal(4, sd, s, n))
        for n in (FEW, 400, MANY)
        for s in (2, 3, 5, 10)
        for sd in (0, 0.5, 1)
    ]
    cells += [("equal, 0.5", equal(v, 0.5, s, MANY)) for v in (2, 3, 5) for s in (2, 3, 5, 10)]
    for name, sd in (
        ("fair_four", FAIR_FOUR),
        ("subset", SUBSET),
        ("reference 4:1", (1.0, 0.25, 0.25, 0.25)),
    ):
        cells += [(name, Cell(sd, s, MANY, rho=rho)) for rho in (0.0, 0.35) for s in (2, 3, 5, 10)]
    return cells


def print_level(repetitions: int, seed: int) -> None:
    print(
        "| seed sd (points) | rho | V | S | N | FWER % old | FWER % new | all intervals right % |"
    )
    print("|:---|---:|---:|---:|---:|---:|---:|---:|")
    for name, cell in level_cells():
        found = rates(cell, repetitions, seed)
        head = f"{name} | {cell.rho:g} | {len(cell.sd)} | {cell.num_seeds} | {cell.num_images:,}"
        print(
            f"| {head} | {found.any_old:.1f} | {found.any_new:.1f} | {found.covered:.1f} |",
            flush=True,
        )


def print_power(repetitions: int, seed: int) -> None:
    print(
        "\n| seed sd | rho | S | true differences | found % old | found % new | all intervals "
        "right % |"
    )
    print("|:---|---:|---:|:---|:---|:---|---:|")
    alone = (0.0, 1.0, 0.0, 0.0)
    cells = [("subset", Cell(SUBSET, s, MANY, TRUE, rho)) for rho in (0.0, 0.35) for s in (2, 3, 5)]
    cells += [("equal, 0.5", Cell((0.5,) * 4, s, MANY, alone)) for s in (2, 3, 5, 10)]
    for name, cell in cells:
        found = rates(cell, repetitions, seed)
        texts = [" / ".join(f"{x:.0f}" for x in one) for one in (found.old, found.new)]
        truth = " / ".join(f"{x:+g}" for x in cell.above[1:])
        print(
            f"| {name} | {cell.rho:g} | {cell.num_seeds} | {truth} | {texts[0]} | {texts[1]} | "
            f"{found.covered:.1f} |",
            flush=True,
        )


def print_detect(repetitions: int, seed: int) -> None:
    print(
        "\n| seed sd | S | N | stated, points (mean) | found %, where that is true | where each "
        "run's own is true |"
    )
    print("|:---|---:|---:|---:|---:|---:|")
    for name, sd in (("equal, 0.5", (0.5,) * 4), ("subset", SUBSET)):
        for num_seeds, num_images in ((2, MANY), (3, MANY), (5, MANY), (10, MANY), (3, 400)):
            mean, found, own = detection(Cell(sd, num_seeds, num_images), repetitions, seed)
            print(
                f"| {name} | {num_seeds} | {num_images:,} | {mean:.2f} | {found:.0f} | {own:.0f} |",
                flush=True,
            )


def print_parts(description: str | None, parts: dict[str, Callable[[int, int], None]]) -> None:
    """The command line of a simulation: its tables, each printed from repetitions and seed."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", help=f"{', '.join(parts)} [default: all]")
    parser.add_argument("--repetitions", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for part in arguments.parts or parts:
        parts[part](arguments.repetitions, arguments.seed)


if __name__ == "__main__":
    print_parts(__doc__, {"level": print_level, "power": print_power, "detect": print_detect})
