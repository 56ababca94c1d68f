"""What the runs of a row got right, of the same images for all rows that are compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_mlp.errors import RunError
from hpc_mlp.reporting.groups import Group
from hpc_mlp.reporting.metrics import image_values
from hpc_mlp.reporting.predictions import RunPredictions, read_predictions
from hpc_mlp.runs.folder import PREDICTIONS, Run

# Whether each image was predicted right, or what it is worth in another metric (see
# `metrics.image_values`), [N], by seed; several runs of a seed only where `--by` put recipes
# together.
BySeed = dict[int, list[NDArray[Any]]]


def by_seed(
    row: Group, images: RunPredictions | None, notes: list[str], metric: str = "accuracy"
) -> tuple[BySeed, RunPredictions | None]:
    """What the row's runs got right of `images` (by default, those of its first run), and one run's
    predictions of these. What cannot be used is left out and named in `notes`."""
    found: BySeed = {}
    if not row.complete:
        notes.append(f"{row.name} has {row.folds_done} of {row.folds} folds: not compared.")
        return found, images
    for run in row.tested:
        try:
            own, correct = _read(run, metric)
        except RunError as error:
            notes.append(f"{run.name}: {error}: not compared.")
            continue
        images = images or own
        if own.same_images(images):
            found.setdefault(run.seed, []).append(correct)
        else:
            what = "in other folds, or " if own.folds is not None else ""
            notes.append(
                f"{run.name} was tested {what}on other labels, though its dataset has the same "
                "digest: not compared."
            )
    return found, images


def by_fold(
    correct: Sequence[NDArray[np.float64]], folds: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Shares that each variant got right in each fold, of correctness [V][N] and the fold of each
    image [N] -> [V, K]: moved so that their mean is that of all images, also where folds are not
    of one size (each fold's distance from it counts by its images)."""
    sizes = np.bincount(folds)
    found = np.array([np.bincount(folds, weights) for weights in correct]) / sizes
    mean = np.array([[weights.mean()] for weights in correct])
    return np.asarray(mean + (found - mean) * sizes * sizes.size / folds.size)


def train_images(row: Group) -> float:
    """Of a fold, on average; by the number of folds where its runs do not say."""
    known = [part.config.dataset.num_images.get("train", 0) for part in row.models]
    return float(np.mean(known)) if all(known) else _images(row) * (1 - 1 / row.folds)


def overlap(row: Group) -> float:
    """How many times as much the mean over its folds varies as that of folds whose training sets
    share nothing: see `pooled`."""
    return 1 + _images(row) / train_images(row)


def _images(row: Group) -> int:
    return row.held_out or row.test_images or 0


def _read(run: Run, metric: str) -> tuple[RunPredictions, NDArray[Any]]:
    """The predictions, without their probabilities, and what each is worth. RunError, without a
    full stop, where predictions.npz cannot be compared."""
    try:
        predictions = read_predictions(run)
    except RunError:
        raise RunError(f"{PREDICTIONS} is damaged") from None
    if predictions is None:
        raise RunError(f"no {PREDICTIONS}")
    labels = predictions.labels
    if labels.size < 2:
        raise RunError(f"{PREDICTIONS} has one image")
    correct = predictions.predicted == labels
    accuracy = run.test.accuracy if run.test else 0.0
    # Ties may fall either way.
    if abs(float(correct.mean()) - accuracy) > 0.002 + 2 / labels.size:
        raise RunError(f"{PREDICTIONS} does not belong to its result.json")
    # Not a view, which would keep all of them.
    nothing = np.empty((0, 0), np.float32)
    return replace(predictions, probabilities=nothing), image_values(metric, predictions)
