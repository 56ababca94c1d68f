#!/usr/bin/env python3
"""Levels of the comparison in macro F1, loss and calibration error, by simulation.

    python tools/simulate_metrics.py
        the table, Markdown (three minutes on a core)
    python tools/simulate_metrics.py --repetitions 100
        the same, roughly

Logits of V variants, S seeds, N images and K classes: that of the label is mean[v] + D[i] + W[v, i]
+ e[v, s] + noise, those of the others are noise, all times `sharp`; sd(D) 2, sd(W) 0.5, sd(e) 0.1
or as the cell says, sd(noise) 1. Each class is half as frequent as the one before it, but never
less than a twenty-fifth of the first. Equal variants differ in nothing; else the first two are
`above` the others, and the true differences are the means over 200 other draws. All draws are a
function of --seed. A rate of 5 % is uncertain by +- 1.4 points (1,000 repetitions, 2 sd)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from simulate_comparison import print_parts

from hpc_mlp.reporting import pooled
from hpc_mlp.reporting.metrics import METRICS, image_values, one_image
from hpc_mlp.reporting.pooled import Moments
from hpc_mlp.reporting.predictions import RunPredictions

Floats = NDArray[np.float64]
SD_IMAGE, SD_OWN, MEAN = 2.0, 0.5, 3.5


@dataclass(frozen=True)
class Cell:
    """`above`: what is added to the first two variants' logits of the right class."""

    name: str
    num_images: int
    num_seeds: int = 5
    num_variants: int = 4
    num_classes: int = 7
    sd: float = 0.1
    above: float = 0.0
    sharp: float = 1.0

    @property
    def shares(self) -> Floats:
        shares = np.maximum(0.5 ** np.arange(self.num_classes), 0.04)
        return np.asarray(shares / shares.sum())


def draw(cell: Cell, rng: np.random.Generator) -> dict[str, Moments]:
    """What the comparison sees, in each metric."""
    v, s, n, k = cell.num_variants, cell.num_seeds, cell.num_images, cell.num_classes
    labels = rng.choice(k, n, p=cell.shares)
    mean = MEAN + np.where(np.arange(v) < 2, cell.above, 0.0)[:, None, None]
    right = mean + SD_IMAGE * rng.standard_normal(n) + SD_OWN * rng.standard_normal((v, 1, n))
    right = right + cell.sd * rng.standard_normal((v, s, 1))
    logits = rng.standard_normal((v, s, n, k), np.float32)
    logits[..., np.arange(n), labels] += right
    logits *= cell.sharp
    probabilities = np.exp(logits - logits.max(-1, keepdims=True))
    probabilities /= probabilities.sum(-1, keepdims=True)
    several = [[RunPredictions(one, labels) for one in seeds] for seeds in probabilities]
    found = {}
    for name in METRICS:
        values = np.array(
            [[image_values(name, one) for one in seeds] for seeds in several], np.float64
        )
        moments, most = pooled.moments(values), 1.0 if METRICS[name].share else np.inf
        one = one_image(name, values)
        found[name] = Moments(moments.accuracy, moments.images, n, one=one, most=most)
    return found


def truth(cell: Cell, seed: int) -> dict[str, Floats]:
    """Of each variant, in each metric: the mean over 200 draws of as many images."""
    if not cell.above:
        return {name: np.zeros(cell.num_variants) for name in METRICS}
    rng = np.random.default_rng([seed, 1])
    several = [draw(replace(cell, num_seeds=2), rng) for _ in range(200)]
    return {name: np.mean([m[name].accuracy.mean(1) for m in several], 0) for name in METRICS}


def rates(cell: Cell, repetitions: int, seed: int = 0) -> dict[str, tuple[float, float, float]]:
    """Of each metric, in percent: any difference shown, the last variant's shown, and all intervals
    right."""
    rng = np.random.default_rng([seed, cell.num_images, cell.num_seeds])
    true = truth(cell, seed)
    pairs = [(v, 0) for v in range(1, cell.num_variants)]
    shown: dict[str, list[NDArray[np.bool_]]] = {name: [] for name in METRICS}
    covered: dict[str, list[bool]] = {name: [] for name in METRICS}
    for _ in range(repetitions):
        for name, found in draw(cell, rng).items():
            tested = pooled.differences(found, pairs, draws=999)
            apart = true[name][1:] - true[name][0]
            shown[name].append(tested.p_adjusted < pooled.ALPHA)
            covered[name].append(bool(((tested.low <= apart) & (apart <= tested.high)).all()))
    return {
        name: (
            100 * float(np.mean([one.any() for one in shown[name]])),
            100 * float(np.mean([one[-1] for one in shown[name]])),
            100 * float(np.mean(covered[name])),
        )
        for name in METRICS
    }


CELLS = [
    Cell("equal", 200),
    Cell("equal", 1000),
    Cell("equal", 4000),
    Cell("equal, seeds' sd 0.3", 1000, sd=0.3),
    Cell("equal, overconfident", 1000, sharp=2.0),
    Cell("two better", 1000, above=0.3),
]


def print_level(repetitions: int, seed: int) -> None:
    print("| variants | S | N | metric | any shown % | last shown % | all intervals right % |")
    print("|:---|---:|---:|:---|---:|---:|---:|")
    for cell in CELLS:
        for name, numbers in rates(cell, repetitions, seed).items():
            head = f"{cell.name} | {cell.num_seeds} | {cell.num_images:,} | {name}"
            print(f"| {head} | {' | '.join(f'{x:.1f}' for x in numbers)} |", flush=True)


if __name__ == "__main__":
    print_parts(__doc__, {"level": print_level})
