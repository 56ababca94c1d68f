"""Class probabilities of images."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from hpc_mlp.errors import UserError, printable
from hpc_mlp.inference.given import given_run
from hpc_mlp.inference.images import Images, bounded
from hpc_mlp.inference.model import TrainedRun
from hpc_mlp.terminal.shown import Showable
from hpc_mlp.terminal.text import count

BATCH = 256
_MOST_SHOWN = 10


@dataclass(frozen=True, repr=False)
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

    def __repr__(self) -> str:
        found = ", ".join(f"{name} {_percent(share)} %" for name, share in self.top(3))
        return f"<Prediction {printable(self.name)}: {printable(found or self.problem)}>"


class Predictions(Showable, Iterator[Prediction]):
    """One for each image, as they are computed; `len()`: of how many images in all.

    `predictions[i]`, `predictions[-1]` and `predictions[2:5]` (a list) compute those again, and
    take nothing from what is still to come."""

    def __init__(self, run: TrainedRun, images: Images, batch_size: int) -> None:
        self._run, self._images = run, images
        self._batch_size = bounded(batch_size, run.image)
        self._next = self._from(0)
        # The batch that was asked for last, and its number.
        self._batch: tuple[int, list[Prediction]] = (-1, [])

    def __next__(self) -> Prediction:
        return next(self._next)

    def __len__(self) -> int:
        return len(self._images)

    @overload
    def __getitem__(self, index: int) -> Prediction: ...

    @overload
    def __getitem__(self, index: slice) -> list[Prediction]: ...

    def __getitem__(self, index: int | slice) -> Prediction | list[Prediction]:
        if isinstance(index, slice):
            return [self._at(i) for i in range(*index.indices(len(self)))]
        # IndexError where there is none.
        return self._at(range(len(self))[index])

    def _at(self, i: int) -> Prediction:
        # By whole batches from the first on, as when they are all computed: the last bits of a
        # product of matrices may depend on its size.
        number, within = divmod(i, self._batch_size)
        if self._batch[0] != number:
            found = self._from(number * self._batch_size)
            with closing(found):
                self._batch = (number, list(islice(found, self._batch_size)))
        return self._batch[1][within]

    def _from(self, first: int) -> Generator[Prediction, None, None]:
        run = self._run
        for batch in self._images.batches(run.image, run.encoding, self._batch_size, first):
            pixels = [image.pixels for image in batch if image.pixels is not None]
            rows = iter(())
            if pixels:
                tensor = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
                rows = iter(run.probabilities(tensor).numpy())
            for image in batch:
                row = next(rows) if image.pixels is not None else None
                yield Prediction(image.name, run.classes, row, image.problem)

    def parts(self) -> Iterable[RenderableType]:
        """The first of them."""
        table = Table("image", "class")
        table.add_column("%", justify="right")
        table.add_column("then")
        for prediction in self[:_MOST_SHOWN]:
            top = prediction.top(3)
            name, share = top[0] if top else (prediction.problem or "", None)
            then = ", ".join(f"{name} {_percent(share)}" for name, share in top[1:])
            table.add_row(prediction.name, name, _percent(share), then)
        yield table
        if (more := len(self) - _MOST_SHOWN) > 0:
            yield Text(f"and {count(more, 'image')} more")

    def records(self) -> list[dict[str, Any]]:
        """All of them: the most probable class and its probability, None where an image cannot be
        read."""
        tops = ((prediction, prediction.top(1)) for prediction in self._from(0))
        return [
            {
                "image": prediction.name,
                "class": top[0][0] if top else None,
                "probability": top[0][1] if top else None,
                "problem": prediction.problem,
            }
            for prediction, top in tops
        ]


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"


def predict(
    run: TrainedRun | str | PathLike[str],
    images: str | Path | Sequence[str | Path],
    *,
    ensemble: bool = False,
    calibrated: bool = False,
    batch_size: int = BATCH,
    trust_plugins: bool = False,
) -> Predictions:
    """Predict every image at `images`: image files, folders, ZIPs, tars, or a sequence of these.

    `run` is a run folder, a run of `train`, or what `load_run` returned (of that, `ensemble`,
    `calibrated` and `trust_plugins` were arguments). Images are decoded and resized exactly as in a
    conversion.
    One `Prediction` for each image, in the order of the paths and of the files in them, as they are
    computed: memory does not grow with their number. UserError, at once, where the run or a path
    cannot be used; an image that cannot be read is a `Prediction` that says so."""
    if batch_size < 1:
        raise UserError(f"the batch size is {batch_size}; it is at least 1.")
    run = given_run(run, ensemble=ensemble, calibrated=calibrated, trust_plugins=trust_plugins)
    paths = [images] if isinstance(images, str | Path) else images
    try:
        found = Images([Path(path) for path in paths])
    except TypeError:
        raise UserError(
            "images are paths of files, folders and archives. For pixels: load_run(run)."
            "probabilities(tensor), a tensor [N, C, H, W] with values in 0..255."
        ) from None
    return Predictions(run, found, batch_size)
