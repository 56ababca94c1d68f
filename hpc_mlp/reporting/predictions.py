"""predictions.npz of a run: what it said of the test images."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_mlp.errors import RunError
from hpc_mlp.files.checked import damaged
from hpc_mlp.runs.folder import PREDICTIONS, Run

Array = NDArray[Any]


@dataclass(frozen=True)
class RunPredictions:
    """Test probabilities float32 [N, K] and labels int64 [N], in the order of the shards."""

    probabilities: Array
    labels: Array

    @property
    def predicted(self) -> Array:
        return np.asarray(self.probabilities.argmax(axis=1))

    @property
    def confidence(self) -> Array:
        return np.asarray(self.probabilities.max(axis=1))


def read_predictions(run: Run) -> RunPredictions | None:
    """Test predictions of a run, None where there are none. RunError where the file is damaged, or
    is not of the images and classes that the run's other files tell of."""
    path = run.path / PREDICTIONS
    try:
        # Stored as they are: what is packed may be a thousand times as large as the file.
        with zipfile.ZipFile(path) as archive:
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise ValueError("its arrays are compressed")
        with np.load(path, allow_pickle=False) as arrays:
            found = RunPredictions(arrays["probabilities"], arrays["labels"])
        _check(found, run)
    except FileNotFoundError:
        return None
    # zipfile, numpy and zlib each have errors of their own.
    except Exception as error:
        why = str(error) or type(error).__name__
        raise damaged(path, why, "Delete the run folder and train again.") from None
    if not np.isfinite(found.probabilities).all():
        raise RunError(f"{path} holds probabilities that are not numbers: the run diverged.")
    return found


def _check(found: RunPredictions, run: Run) -> None:
    """ValueError where the arrays do not fit each other, the classes or the images."""
    probabilities, labels = found.probabilities, found.labels
    if probabilities.dtype.kind != "f" or labels.dtype.kind not in "iu":
        raise ValueError(f"probabilities are {probabilities.dtype}, labels {labels.dtype}")
    images = run.test.num_images if run.test else len(labels)
    classes = len(run.config.dataset.classes)
    if not images or probabilities.shape != (images, classes) or labels.shape != (images,):
        shapes = f"probabilities {list(probabilities.shape)} and labels {list(labels.shape)}"
        raise ValueError(f"{shapes} of {images} images and {classes} classes")
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"a label is not in 0..{classes - 1}")
