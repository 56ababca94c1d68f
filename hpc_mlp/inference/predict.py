"""Class probabilities of images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from hpc_mlp.errors import UserError
from hpc_mlp.inference.images import Images
from hpc_mlp.inference.model import TrainedRun, load_run

BATCH = 256


@dataclass(frozen=True)
class Prediction:
    """`name`: the image's path, or its path inside the folder or archive behind that one's path.
    `probabilities`: float32 [K] in the order of `classes`, summing to 1; None where the image
    cannot be read, for the reason `problem`."""

    name: str
    classes: tuple[str, ...]
    probabilities: NDArray[np.float32] | None
    problem: str | None = None

    def top(self, k: int | None = None) -> list[tuple[str, float]]:
        """The `k` most probable classes (default: all) with their probabilities, best first; []
        where the image cannot be read."""
        if self.probabilities is None:
            return []
        order = np.argsort(-self.probabilities, kind="stable")[:k]
        return [(self.classes[i], float(self.probabilities[i])) for i in order.tolist()]


class Predictions(Iterator[Prediction]):
    """One for each image, as they are computed; `len()`: of how many images in all."""

    def __init__(self, predictions: Iterator[Prediction], total: int) -> None:
        self._predictions, self._total = predictions, total

    def __next__(self) -> Prediction:
        return next(self._predictions)

    def __len__(self) -> int:
        return self._total


def predict(
    run: TrainedRun | str | Path,
    images: str | Path | Sequence[str | Path],
    *,
    ensemble: bool = False,
    batch_size: int = BATCH,
    trust_plugins: bool = False,
) -> Predictions:
    """Predict every image at `images`: image files, folders, ZIPs, tars, or a sequence of these.

    `run` is a run folder, or what `load_run` returned (then `ensemble` and `trust_plugins` were its
    arguments). Images are decoded and resized exactly as in a conversion. One `Prediction` for each
    image, in the order of the paths and of the files in them, as they are computed: memory does not
    grow with their number. UserError, at once, where the run or a path cannot be used; an image
    that cannot be read is a `Prediction` that says so."""
    if batch_size < 1:
        raise UserError(f"the batch size is {batch_size}; it is at least 1.")
    if not isinstance(run, TrainedRun):
        run = load_run(run, ensemble=ensemble, trust_plugins=trust_plugins)
    elif ensemble:
        raise UserError("ensemble is chosen when the run is loaded: load_run(path, ensemble=True).")
    paths = [images] if isinstance(images, str | Path) else images
    found = Images([Path(path) for path in paths])
    return Predictions(_predict(run, found, batch_size), len(found))


def _predict(run: TrainedRun, images: Images, batch_size: int) -> Iterator[Prediction]:
    for batch in images.batches(run.image, run.encoding, batch_size):
        pixels = [image.pixels for image in batch if image.pixels is not None]
        rows = iter(())
        if pixels:
            tensor = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
            rows = iter(run.probabilities(tensor).numpy())
        for image in batch:
            row = next(rows) if image.pixels is not None else None
            yield Prediction(image.name, run.classes, row, image.problem)
