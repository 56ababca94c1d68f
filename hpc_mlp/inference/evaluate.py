"""A trained run on another dataset of the same classes."""

from __future__ import annotations

from collections.abc import Iterator
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from hpc_mlp.bank import evaluate as training_evaluate
from hpc_mlp.bank.evaluate import EVAL_BATCH
from hpc_mlp.bank.own_metrics import measure
from hpc_mlp.data.folds import fold_splits
from hpc_mlp.data.manifest import Manifest
from hpc_mlp.data.remote import DatasetLocation, dataset_location, load_manifest
from hpc_mlp.data.streaming import StreamingSplit
from hpc_mlp.errors import UserError
from hpc_mlp.inference.given import given_run
from hpc_mlp.inference.model import Classifier, TrainedRun, load_own_metrics
from hpc_mlp.machine.memory import num_cpus
from hpc_mlp.runs.folder import Json
from hpc_mlp.terminal.text import listed


class _Logits(nn.Module):
    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model.logits(images)


def evaluate(
    run: TrainedRun | str | PathLike[str],
    shards: str | Path,
    *,
    split: str = "test",
    ensemble: bool = False,
    calibrated: bool = False,
    trust_plugins: bool = False,
) -> Json:
    """Metrics of `run` on a split of the shards folder (or URL) `shards`, as under "test" in
    result.json: num_images, loss (mean cross entropy), accuracy and macro precision, recall and f1
    (fractions), per_class, confusion_matrix (true row, predicted column). Classes are matched by
    name; rows are in the run's order. "metrics" has the user's own metrics that the run was trained
    with, where their Python file may be run.

    Pixels are normalised as in training of the run. `ensemble`, `calibrated` and `trust_plugins`:
    as of `load_run`.
    UserError where the classes or the image size differ."""
    location = dataset_location(shards)
    run = given_run(run, ensemble=ensemble, calibrated=calibrated, trust_plugins=trust_plugins)
    manifest = load_manifest(location)
    _check_unseen(run, manifest, location, split)
    to_ours = torch.from_numpy(_match(run, manifest, location)).to(run.device)
    data = StreamingSplit(location, manifest, split, workers=num_cpus(), device=run.device)
    if not len(data):
        raise UserError(f"{location} has no {split} images.")

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for batch in data.in_order(EVAL_BATCH):
            yield batch.images, to_ours[batch.labels]

    measured = training_evaluate.evaluate(_Logits(run.model), batches(), run.device)
    found = measured.metrics.as_json(run.classes)
    if own := load_own_metrics(run, trust_plugins=trust_plugins):
        probabilities, labels = map(torch.from_numpy, (measured.probabilities, measured.labels))
        found["metrics"] = measure(own, probabilities, labels, run.name)
    return found


def _check_unseen(
    run: TrainedRun, manifest: Manifest, location: DatasetLocation, split: str
) -> None:
    """UserError for a run of a fold and the dataset whose images the folds were made of."""
    if (
        run.fold is not None
        and run.config.dataset.digest == manifest.digest
        and split in fold_splits(manifest)
    ):
        raise UserError(
            f"{run.name} was trained on other folds of {location}: most of its {split} images are "
            "among them. The metrics of those that its fold holds out are in its result.json, and "
            "of all folds together in the table."
        )


def _match(
    run: TrainedRun, manifest: Manifest, location: DatasetLocation
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """int64 [K]: the dataset's class index → the run's."""
    ours = {name: i for i, name in enumerate(run.classes)}
    missing = [name for name in ours if name not in manifest.classes]
    unknown = [name for name in manifest.classes if name not in ours]
    if missing or unknown:
        parts = [f"it lacks {_quoted(missing)}"] if missing else []
        parts += [f"{run.name} does not know its {_quoted(unknown)}"] if unknown else []
        raise UserError(f"{location} has other classes than {run.name}: {'; '.join(parts)}.")
    size, other = [run.image.height, run.image.width], list(manifest.image_size)
    if size != other or manifest.channels != run.image.channels:
        gray = " --grayscale" if run.image.channels == 1 else ""
        raise UserError(
            f"{location} has images of {other[0]}×{other[1]} with {manifest.channels} channels; "
            f"{run.name} takes {size[0]}×{size[1]} with {run.image.channels}. Convert the images "
            f"again: hpc-mlp convert ZIP OUT --size {size[0]}x{size[1]}{gray}"
        )
    return np.array([ours[name] for name in manifest.classes], np.int64)


def _quoted(names: list[str]) -> str:
    return listed([repr(name) for name in names], 10)
