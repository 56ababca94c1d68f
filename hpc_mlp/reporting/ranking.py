"""What predicted probabilities are worth: one-vs-rest ROC and precision–recall, calibration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hpc_mlp.reporting.predictions import Array, RunPredictions
from hpc_mlp.reporting.values import Value, mean_sd
from hpc_mlp.runs.calibration import NUM_BINS, bin_numbers, calibration_error

# Draws of all labels: the mean is then known to 1 % of itself or so.
NULL_DRAWS = 100
# False-positive rates, dense near 0 where good curves turn.
RATES = np.linspace(0.0, 1.0, 201) ** 2
RECALLS = np.linspace(0.0, 1.0, 201)


@dataclass(frozen=True)
class Curves:
    """One-vs-rest curves on one grid x [201]: `lines` [K, 201] and their `areas` [K], NaN for
    classes without test images; `micro` takes every pair of image and class as one decision."""

    x: Array
    lines: Array
    areas: Array
    micro: Array
    micro_area: float

    @property
    def known(self) -> list[int]:
        """Classes with test images."""
        return [int(k) for k in np.flatnonzero(np.isfinite(self.areas))]

    @property
    def macro(self) -> Array:
        """Mean curve over classes; where all images are of one class there is none."""
        mean: Array = self.lines[self.known].mean(axis=0)
        return mean

    @property
    def macro_area(self) -> float:
        return float(self.areas[self.known].mean()) if self.known else math.nan


@dataclass(frozen=True)
class Ranking:
    """`roc`: true- over false-positive rate, area AUC. `pr`: precision over recall, area AP."""

    roc: Curves
    pr: Curves

    def curves(self, kind: Literal["roc", "pr"]) -> Curves:
        return self.roc if kind == "roc" else self.pr


def rank(predictions: RunPredictions) -> Ranking:
    """Every one-vs-rest curve of one run."""
    scores, labels = predictions.probabilities, predictions.labels
    truth = labels[:, None] == np.arange(scores.shape[1])
    roc, pr = zip(
        *[_measure(truth[:, k], scores[:, k]) for k in range(scores.shape[1])], strict=True
    )
    micro_roc, micro_pr = _measure(truth.ravel(), scores.ravel())
    return Ranking(_collect(RATES, roc, micro_roc), _collect(RECALLS, pr, micro_pr))


# A curve on its grid, and its area.
Line = tuple[Array, float]


def _collect(x: Array, lines: Sequence[Line], micro: Line) -> Curves:
    return Curves(
        x, np.stack([line for line, _ in lines]), np.array([area for _, area in lines]), *micro
    )


def _measure(truth: Array, scores: Array) -> tuple[Line, Line]:
    """ROC and precision–recall of one decision for all images, in one pass over thresholds.
    Precision is a step function of recall, with the first threshold that reaches a recall: its area
    is the AP."""
    from sklearn.metrics import auc, roc_curve

    positives = int(truth.sum())
    if not 0 < positives < len(truth):
        nothing = np.full(len(RATES), np.nan), float("nan")
        return nothing, nothing
    false_rate, true_rate, _ = roc_curve(truth, scores, drop_intermediate=False)
    right, wrong = true_rate[1:] * positives, false_rate[1:] * (len(truth) - positives)
    precision = right / (right + wrong)
    average_precision = float(np.sum(np.diff(true_rate) * precision))
    # At recall 0, the precision where the first positive is found.
    least = np.maximum(RECALLS, 0.5 / positives)
    reached = np.searchsorted(true_rate[1:], least - 1e-12, side="left")
    roc = np.interp(RATES, false_rate, true_rate), float(auc(false_rate, true_rate))
    return roc, (precision[reached], average_precision)


@dataclass(frozen=True)
class Calibration:
    """Top-label calibration in equal-width bins of confidence, of one run or of several seeds
    pooled: `confidence` and `accuracy` float64 [bins] (NaN in empty bins), `share` of all images.
    `eces`: of each run by itself the mean gap weighted by share (0 is perfect), as pooling first
    would hide gaps of opposite sign; `null`: what perfectly calibrated models with these
    confidences would show on as many images, on average."""

    confidence: Array
    accuracy: Array
    share: Array
    eces: tuple[float, ...]
    null: float

    @property
    def ece(self) -> Value:
        """Mean and standard deviation over the runs."""
        found = mean_sd(self.eces)
        return found or Value(math.nan)


def calibrate(predictions: Sequence[RunPredictions]) -> Calibration:
    """Calibration of one run, or of several seeds."""
    runs = [(p.confidence.astype(np.float64), p.predicted == p.labels) for p in predictions]
    confidence, right = (np.concatenate(parts) for parts in zip(*runs, strict=True))
    bins = bin_numbers(confidence)
    counts = np.bincount(bins, minlength=NUM_BINS)
    sums = [np.bincount(bins, weights, minlength=NUM_BINS) for weights in (confidence, right)]
    empty = np.full(NUM_BINS, np.nan)
    means = [np.divide(total, counts, out=empty.copy(), where=counts > 0) for total in sums]
    eces = tuple(calibration_error(*run) for run in runs)
    null = float(np.mean([_null(confidence) for confidence, _ in runs]))
    return Calibration(means[0], means[1], counts / len(confidence), eces, null)


def signed_gaps(found: RunPredictions) -> NDArray[np.float64]:
    """Whether each image is right, less its confidence, times the sign of this sum over its bin,
    [N]: their mean is the ECE."""
    confidence = found.confidence.astype(np.float64)
    gaps, bins = (found.predicted == found.labels) - confidence, bin_numbers(confidence)
    return np.asarray(np.sign(np.bincount(bins, gaps, NUM_BINS))[bins] * gaps)


def _null(confidence: Array) -> float:
    """Mean ECE over labels drawn from the run's own probabilities: all that counts is whether the
    predicted class is drawn, which it is with the probability `confidence`. Deterministic."""
    rng = np.random.default_rng(0)
    return calibration_error(confidence, rng.random((NULL_DRAWS, len(confidence))) < confidence)
