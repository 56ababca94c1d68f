"""predictions.npz of a run: what it said of the test images, or of those that its fold held out."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_mlp.errors import RunError
from hpc_mlp.files.checked import damaged
from hpc_mlp.reporting.folds import FoldedRun, has_test_split
from hpc_mlp.runs.folder import HELD_OUT_PREDICTIONS, PREDICTIONS, Run
from hpc_mlp.runs.records import TestMetrics

Array = NDArray[Any]


@dataclass(frozen=True)
class RunPredictions:
    """Probabilities float32 [N, K] and labels int64 [N] of the test images, in the order of the
    shards. Of folds: `rows` int64 [N], rising, the images' places in the sequence of all images of
    `splits`, and `folds` int64 [N], the fold that held each out."""

    probabilities: Array
    labels: Array
    rows: Array | None = None
    folds: Array | None = None
    splits: tuple[str, ...] = ("test",)

    @property
    def predicted(self) -> Array:
        return np.asarray(self.probabilities.argmax(axis=1))

    @property
    def confidence(self) -> Array:
        return np.asarray(self.probabilities.max(axis=1))

    @property
    def places(self) -> Array:
        """Of the images in the sequence of those of `splits`, int64 [N]."""
        return np.arange(len(self.labels)) if self.rows is None else self.rows

    def same_images(self, other: RunPredictions) -> bool:
        """Whether the other's are of the same images (as far as labels tell), in the same folds."""
        return all(
            np.array_equal(getattr(self, name), getattr(other, name))
            for name in ("labels", *_OF_FOLDS)
        )


_OF_FOLDS = ("rows", "folds")


def read_predictions(run: Run) -> RunPredictions | None:
    """Test predictions of a run (see `folds.FoldedRun`: of all images that its folds held out),
    None where there are none. RunError where the file is damaged, or is not of the images and
    classes that the run's other files tell of."""
    if not isinstance(run, FoldedRun):
        return _read(run, PREDICTIONS, run.test)
    parts = [read_held_out(part) for part in run.members]
    return None if None in parts else _joined(run, [part for part in parts if part])


def read_held_out(run: Run) -> RunPredictions | None:
    """What the run of a fold said of the images that the fold held out; else as
    `read_predictions`."""
    name = HELD_OUT_PREDICTIONS if has_test_split(run) else PREDICTIONS
    found = _read(run, name, run.held_out)
    if found is not None and found.rows is None:
        remedy = "Delete the run folder and train again."
        raise damaged(run.path / name, "it does not say which images it is of", remedy)
    return found


def _joined(run: FoldedRun, parts: Sequence[RunPredictions]) -> RunPredictions:
    """In the order of the rows."""
    probabilities, labels, rows, folds = (
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("probabilities", "labels", *_OF_FOLDS)
    )
    order = np.argsort(rows, kind="stable")
    rows = rows[order]
    whole = np.arange(rows.size) if run.complete else np.unique(rows)
    if not np.array_equal(rows, whole):
        raise RunError(f"{run.name}: its folds do not hold out each image once")
    return RunPredictions(probabilities[order], labels[order], rows, folds[order], parts[0].splits)


def _read(run: Run, name: str, test: TestMetrics | None) -> RunPredictions | None:
    path = run.path / name
    try:
        # Stored as they are: what is packed may be a thousand times as large as the file.
        with zipfile.ZipFile(path) as archive:
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise ValueError("its arrays are compressed")
        with np.load(path, allow_pickle=False) as arrays:
            found = RunPredictions(arrays["probabilities"], arrays["labels"])
            if "rows" in arrays:
                found = _of_fold(found, arrays["rows"], run)
        _check(found, run, test)
    except FileNotFoundError:
        return None
    # zipfile, numpy and zlib each have errors of their own.
    except Exception as error:
        why = str(error) or type(error).__name__
        raise damaged(path, why, "Delete the run folder and train again.") from None
    if not np.isfinite(found.probabilities).all():
        raise RunError(f"{path} holds probabilities that are not numbers: the run diverged.")
    return found


def _of_fold(found: RunPredictions, rows: Array, run: Run) -> RunPredictions:
    """ValueError where `rows` are none."""
    if rows.dtype.kind not in "iu" or rows.shape != found.labels.shape or rows.min(initial=0) < 0:
        raise ValueError(f"rows are {rows.dtype} {list(rows.shape)}")
    order = np.argsort(rows, kind="stable")
    return RunPredictions(
        found.probabilities[order],
        found.labels[order],
        rows[order],
        np.full(rows.size, run.fold or 0),
        ("train", "val") if has_test_split(run) else ("train", "val", "test"),
    )


def _check(found: RunPredictions, run: Run, test: TestMetrics | None) -> None:
    """ValueError where the arrays do not fit each other, the classes or the images."""
    probabilities, labels = found.probabilities, found.labels
    if probabilities.dtype.kind != "f" or labels.dtype.kind not in "iu":
        raise ValueError(f"probabilities are {probabilities.dtype}, labels {labels.dtype}")
    images = test.num_images if test else len(labels)
    classes = len(run.config.dataset.classes)
    if not images or probabilities.shape != (images, classes) or labels.shape != (images,):
        shapes = f"probabilities {list(probabilities.shape)} and labels {list(labels.shape)}"
        raise ValueError(f"{shapes} of {images} images and {classes} classes")
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"a label is not in 0..{classes - 1}")
