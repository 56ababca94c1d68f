"""How surely the best row is the best: how often it would be, had other seeds and validation images
been drawn.

Seeds are drawn with replacement from the runs' own, the same ones for all rows where all have them,
and spread by sqrt(S / (S - 1)), as resampling S of S seeds varies too little. The validation
images' part of the mean losses is drawn from a normal distribution, with the covariance that the
rows' losses have over the test images, for as many validation images as there are: losses of single
validation images are not kept, and both splits are drawn from the same images. The test images say
here how much losses vary, never which row is better.

Of cross-validated rows the folds are drawn so, each with the mean over its seeds; they hold the
validation images, which are others in each. As their training sets overlap, the draws are spread by
the factor with which `pooled` corrects the variance of a difference (Nadeau & Bengio 2003)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hpc_mlp.errors import RunError
from hpc_mlp.reporting.answers import overlap
from hpc_mlp.reporting.groups import Group, best_loss, diverged, val_loss_order
from hpc_mlp.reporting.pooled import moments
from hpc_mlp.reporting.predictions import read_predictions
from hpc_mlp.runs.folder import Run

Floats = NDArray[np.float64]

DRAWS = 10_000
# All draws of many seeds together would take as much memory as all else.
_PARTS = 20
# Rows that may win, the best by validation loss: of a large sweep the others hardly do.
MOST_RIVALS = 12


def with_wins(rows: Sequence[Group]) -> list[Group]:
    """`rows` with `wins` and `drawn` where there is something to draw."""
    found: dict[int, Group] = {}
    for peers in {row.peers for row in rows if row.best}:
        rivals = [row for row in rows if row.peers == peers and row.n and row.values["val_loss"]]
        rivals = sorted(rivals, key=val_loss_order)[:MOST_RIVALS]
        rivals = [row for row in rivals if diverged(row) == diverged(rivals[0]) and row.complete]
        if len(rivals) > 1 and not any({"seed", "fold"} & row.by.keys() for row in rivals):
            shares, drawn = _wins(rivals)
            for row, share in zip(rivals, shares, strict=True):
                found[id(row)] = replace(row, wins=share if drawn else None, drawn=drawn)
    return [found.get(id(row), row) for row in rows]


def _wins(rows: Sequence[Group]) -> tuple[list[float], str]:
    rng = np.random.default_rng(0)
    of_folds = rows[0].folds > 1
    by_seed = [_by_fold(row) if of_folds else _by_seed(row) for row in rows]
    losses = [
        np.array([np.mean([best_loss(run) for run in runs]) for runs in seeds.values()])
        for seeds in by_seed
    ]
    common = all(seeds.keys() == by_seed[0].keys() for seeds in by_seed)
    images = None if of_folds else _image_covariance(by_seed, common)
    drawn = np.repeat([[loss.mean()] for loss in losses], DRAWS, axis=1)
    picks = _picks(rng, losses[0].size)
    for v, loss in enumerate(losses):
        if not common:
            picks = _picks(rng, loss.size)
        if loss.size > 1:
            means = np.concatenate([loss[some].mean(1) for some in np.split(picks, _PARTS)])
            spread = loss.size / (loss.size - 1) * (overlap(rows[v]) if of_folds else 1.0)
            drawn[v] += (means - loss.mean()) * math.sqrt(spread)
    if images is not None:
        values, vectors = np.linalg.eigh(images)
        plain = rng.standard_normal((len(rows), DRAWS))
        drawn += (vectors * np.sqrt(np.maximum(values, 0.0))) @ plain
    # Of equal ones the first, as in the table.
    counts = np.bincount(drawn.argmin(0), minlength=len(rows))
    if of_folds:
        return [float(count) / DRAWS for count in counts], "folds"
    what = ["seeds"] if any(loss.size > 1 for loss in losses) else []
    what += ["validation images"] if images is not None else []
    return [float(count) / DRAWS for count in counts], " and ".join(what)


def _picks(rng: np.random.Generator, size: int) -> NDArray[np.int32]:
    """Draws with replacement, [DRAWS, size]."""
    found = np.empty((DRAWS, size), np.int32)
    for some in np.split(found, _PARTS):
        some[:] = rng.integers(size, size=some.shape)
    return found


def _by_seed(row: Group) -> dict[int, list[Run]]:
    found: dict[int, list[Run]] = {}
    for run in row.tested:
        found.setdefault(run.seed, []).append(run)
    return found


def _by_fold(row: Group) -> dict[int, list[Run]]:
    found: dict[int, list[Run]] = {}
    for run in row.models:
        found.setdefault(run.fold or 0, []).append(run)
    return found


def _image_covariance(rows: Sequence[dict[int, list[Run]]], common: bool) -> Floats | None:
    """Of the rows' mean validation losses [V, V]; None where the runs' predictions do not tell."""
    first = next(iter(rows[0].values()))[0]
    num_images = first.config.dataset.num_images.get("val", 0)
    losses: list[Floats] = []
    labels: NDArray[np.int64] | None = None
    for seeds in rows:
        of_seeds = []
        for runs in seeds.values():
            several = [_test_losses(run) for run in runs]
            for found in several:
                if found is None or (labels is not None and not np.array_equal(found[1], labels)):
                    return None
                labels = found[1]
            of_seeds.append(np.mean([found[0] for found in several if found], axis=0))
        losses.append(np.array(of_seeds))
    if labels is None or labels.size < 2 or not num_images:
        return None
    if common and len(losses[0]) > 1:
        return moments(np.stack(losses)).images * labels.size / num_images
    return np.cov(np.stack([loss.mean(0) for loss in losses])) / num_images


def _test_losses(run: Run) -> tuple[Floats, NDArray[np.int64]] | None:
    """Cross entropy of every test image, and the labels."""
    try:
        found = read_predictions(run)
    except RunError:
        return None
    if found is None:
        return None
    right = found.probabilities[np.arange(found.labels.size), found.labels].astype(np.float64)
    return -np.log(np.maximum(right, 1e-12)), found.labels
