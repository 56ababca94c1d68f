"""predictions.npz of a run: what it said of the test images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_mlp.errors import RunError
from hpc_mlp.runs import PREDICTIONS, Run

Array = NDArray[Any]


@dataclass(frozen=True)
class Predictions:
    """Test probabilities float32 [N, K] and labels int64 [N]; row i is the i-th test sample of the shards."""

    probabilities: Array
    labels: Array

    @property
    def predicted(self) -> Array:
        return np.asarray(self.probabilities.argmax(axis=1))

    @property
    def confidence(self) -> Array:
        return np.asarray(self.probabilities.max(axis=1))


def read_predictions(run: Run) -> Predictions | None:
    """Test predictions of a run, None where there are none. RunError where the file is damaged."""
    path = run.path / PREDICTIONS
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = Predictions(arrays["probabilities"], arrays["labels"])
    except FileNotFoundError:
        return None
    except Exception as error:  # zipfile, numpy and zlib each have errors of their own
        raise RunError(f"{path} is damaged ({error}). Delete the run folder and train again.") from None
    if (
        found.probabilities.ndim != 2
        or len(found.probabilities) != len(found.labels)
        or not len(found.labels)
    ):
        raise RunError(f"{path} is damaged (its arrays do not fit). Delete the run folder and train again.")
    if not np.isfinite(found.probabilities).all():
        raise RunError(f"{path} holds probabilities that are not numbers: the run diverged.")
    return found
