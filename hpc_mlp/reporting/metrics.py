"""In which metric rows are compared, and what each image is worth in it.

Accuracy and loss are means over images. Macro F1 and the calibration error are not: there an image
is worth its pseudo-value t + N dt/dw, of a run's metric t of N images and the image's weight w at 1
(infinitesimal jackknife: Jaeckel 1972, Efron 1982). Their mean is t itself, and over images they
vary as t does over draws of as many images, as far as t is smooth. So they take the place of
correctness in the analysis of seeds and images, as in Dorfman, Berbaum & Metz (1992), who do this
for the area under the ROC curve. tools/simulate_metrics.py has the levels.

Macro F1 (mean over the K classes that occur or are predicted, of F_k = 2 hits_k / D_k, where D_k
counts images of label k and predictions of k): an image of label y predicted as p is worth

    t + N / K (2 [y = p] / D_y - F_y / D_y - F_p / D_p)

The expected calibration error: the gap (right - confidence) times the sign of its bin's sum. It is
not smooth where a bin's gap is 0, and never below 0: of few images it is too large."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_mlp.errors import RunError
from hpc_mlp.reporting.groups import Group
from hpc_mlp.reporting.predictions import RunPredictions, read_predictions
from hpc_mlp.reporting.ranking import calibrate, signed_gaps
from hpc_mlp.reporting.values import Value

# Below it the logarithm of float32 probabilities has no end.
_LEAST = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Metric:
    """`noun`: in sentences; `title`: of a column, of which `column` is the name. `share`: in 0..1,
    told in points."""

    name: str
    noun: str
    title: str
    column: str
    lower_is_better: bool = False
    share: bool = True

    @property
    def held_out(self) -> str:
        """The column of what folds hold out, where the archive brought a test split."""
        return f"held_out_{self.name}"


METRICS = {
    one.name: one
    for one in (
        Metric("accuracy", "accuracy", "acc.", "test_accuracy"),
        Metric("f1", "macro F1", "F1", "f1"),
        Metric("loss", "loss", "loss", "test_loss", lower_is_better=True, share=False),
        Metric("ece", "ECE", "ECE", "ece", lower_is_better=True),
    )
}


def image_values(name: str, found: RunPredictions) -> NDArray[Any]:
    """What each image is worth [N], whose mean is the run's metric: bool where it is accuracy, else
    float64."""
    labels, predicted = found.labels, found.predicted
    if name == "accuracy":
        return np.asarray(predicted == labels)
    if name == "loss":
        right = found.probabilities[np.arange(labels.size), labels].astype(np.float64)
        return np.asarray(-np.log(np.maximum(right, _LEAST)))
    if name == "ece":
        return signed_gaps(found)
    return _f1_values(predicted, labels, found.probabilities.shape[1])


def _f1_values(
    predicted: NDArray[Any], labels: NDArray[Any], num_classes: int
) -> NDArray[np.float64]:
    right = predicted == labels
    count = [np.bincount(some, minlength=num_classes) for some in (labels, predicted)]
    both = np.maximum(count[0] + count[1], 1)
    f1 = 2 * np.bincount(labels[right], minlength=num_classes) / both
    present = np.count_nonzero(count[0] + count[1])
    moved = (2 * right - f1[labels]) / both[labels] - f1[predicted] / both[predicted]
    return np.asarray(f1.sum() / present + labels.size / present * moved)


def one_image(name: str, values: NDArray[np.float64]) -> float:
    """How far apart an image may be in two rows: what `pooled` takes an image to be worth where
    nothing varies. 1 of correctness."""
    if name == "accuracy":
        return 1.0
    # A loss has no end, and two are hardly equal by chance.
    return float(values.std() if name == "loss" else np.ptp(values))


def most(name: str) -> float:
    """How far apart two rows can be."""
    return 1.0 if METRICS[name].share else math.inf


def with_ece(rows: Sequence[Group]) -> tuple[list[Group], dict[str, float]]:
    """Rows with `values["ece"]` (see `of_row`), of the images of their comparison; and by name what
    it would be were they calibrated. What cannot be read has none: the comparison says why."""
    found, null = [], dict[str, float]()
    for row in rows:
        value: Value | None = None
        try:
            read = [read_predictions(run) for run in row.tested] if row.complete else []
        except RunError:
            read = []
        predictions = [one for one in read if one]
        if predictions and len(predictions) == len(read):
            calibration = calibrate(predictions)
            value, null[row.name] = of_row(row, calibration.ece), calibration.null
        found.append(replace(row, values=row.values | {"ece": value}))
    return found, null


def of_row(row: Group, ece: Value | None) -> Value | None:
    """Mean and standard deviation over the seeds; of folds, where ± is over these, the mean alone:
    a fold by itself has few images for an ECE."""
    return Value(ece.mean) if ece and row.folds > 1 else ece
