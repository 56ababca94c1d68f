"""Which images carry a doubtful label, as folds say that were not trained on them: where each is in
the archive, and what it probably shows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import RenderableType
from rich.text import Text

from hpc_mlp.data.limits import SPLITS
from hpc_mlp.data.manifest import Manifest
from hpc_mlp.data.names import read_names
from hpc_mlp.errors import HpcMlpError, RunError, UserError, printable
from hpc_mlp.reporting.confident import find_doubtful
from hpc_mlp.reporting.context import read_shards
from hpc_mlp.reporting.groups import Group, val_loss_order
from hpc_mlp.reporting.predictions import Array, read_predictions
from hpc_mlp.reporting.records import csv_text
from hpc_mlp.reporting.table import plain_table
from hpc_mlp.terminal.shown import Showable
from hpc_mlp.terminal.text import count, listed, one_of, spans

# That are listed for people; the file has all.
MOST = 40
# Characters.
_SHORT = 30
NO_FOLDS = (
    "Which labels are doubtful is not known: no variant here has held out every image once. "
    "`hpc-mlp train OUT --folds 5` makes it do so, and then they are listed."
)


@dataclass(frozen=True)
class DoubtfulLabel:
    """`name`: in the archive; empty where the shards do not say, as `split` then may be. `row`: the
    image's key in the shards, its place in all splits. `suggested`: the most probable class."""

    name: str
    split: str
    row: int
    label: str
    suggested: str
    label_probability: float
    suggested_probability: float

    @property
    def place(self) -> str:
        return self.name or f"{self.split or 'image'} {self.row:06d}"

    @property
    def short_place(self) -> str:
        """As many of its last folders as stand below a picture."""
        place = shown = printable(self.place)
        while len(shown) > _SHORT and "/" in shown:
            shown = shown.partition("/")[2]
        shown = shown if len(shown) <= _SHORT else f"…{shown[1 - _SHORT :]}"
        return shown if shown == place or shown[0] == "…" else f"…/{shown}"


@dataclass(frozen=True, repr=False)
class DoubtfulLabels(Showable):
    """`found`: the most doubtful first, of `num_images`, by the mean probabilities of `seeds` of
    the row `group`. `notes`: what could not be had, in sentences."""

    found: Sequence[DoubtfulLabel]
    num_images: int
    group: str
    folds: int
    seeds: Sequence[int]
    notes: Sequence[str] = ()

    @property
    def sentence(self) -> str:
        number, share = len(self.found), 100 * len(self.found) / self.num_images
        seeds = f"{one_of(len(self.seeds), 'seed', 'seeds')} {spans(self.seeds)}"
        return (
            f"{number:,} of {count(self.num_images, 'label')} ({share:.1f} %) "
            f"{one_of(number, 'is', 'are')} doubtful, by what {self.group} says of images that it "
            f"was not trained on ({self.folds} folds, {seeds})."
        )

    def parts(self) -> Iterable[RenderableType]:
        yield Text(self.sentence)
        if self.found:
            table = plain_table()
            for name in ("image", "label", "suggested"):
                table.add_column(name, overflow="fold")
            table.add_column("probability", justify="right")
            for one in self.found[:MOST]:
                percent = f"{100 * one.suggested_probability:.1f} %"
                table.add_row(one.place, one.label, one.suggested, percent)
            yield table
        if (more := len(self.found) - MOST) > 0:
            yield Text(f"{more:,} more: --format csv has them all.")
        yield from map(Text, self.notes)

    def records(self) -> list[dict[str, Any]]:
        """A label each; probabilities are fractions."""
        whence = {"variant": self.group, "folds": self.folds, "seeds": [*self.seeds]}
        return [
            {
                key: round(value, 6) if isinstance(value, float) else value
                for key, value in asdict(one).items()
            }
            | whence
            for one in self.found
        ]

    def as_csv(self) -> str:
        names = [*(field.name for field in fields(DoubtfulLabel)), "variant", "folds", "seeds"]
        return csv_text(self.records(), names)


def doubtful_labels(
    rows: Sequence[Group], shards: Path | None, option: str = "doubtful --data"
) -> DoubtfulLabels:
    """Of the best by validation loss among `rows` that are of folds. `shards` overrides the folder
    that the runs name; `option` does so. UserError where no row has all its folds, RunError where
    their predictions cannot be used."""
    whole = [row for row in rows if row.folds > 1 and row.n and row.complete]
    if not whole:
        begun = [row for row in rows if row.folds > 1]
        so_far = "; ".join(f"{row.name}: {row.folds_done} of {row.folds} folds" for row in begun)
        raise UserError(f"{NO_FOLDS}{f' So far: {so_far}.' if begun else ''}")
    # Of several datasets' best rows, the one with the most runs, as on the page.
    row = max((row for row in whole if row.best), key=lambda row: row.n, default=None)
    row = row or min(whole, key=val_loss_order)
    probabilities, labels, folds, seeds, notes = _out_of_fold(row)
    classes = row.runs[0].config.dataset.classes
    judged = _known_classes(labels, folds, classes, notes)
    found = [
        DoubtfulLabel(
            name="",
            split="",
            row=place,
            label=classes[labels[place]],
            suggested=classes[int(probabilities[place].argmax())],
            label_probability=float(probabilities[place, labels[place]]),
            suggested_probability=float(probabilities[place].max()),
        )
        for place in judged[find_doubtful(probabilities[judged], labels[judged])].tolist()
    ]
    try:
        folder, manifest = read_shards(shards, row.runs[0].config.dataset, option)
        found = _located(found, folder, manifest, notes)
    except HpcMlpError as error:
        notes.append(f"Doubtful labels without the names of their files: {error}")
    return DoubtfulLabels(found, judged.size, row.name, row.folds, seeds, notes)


def _known_classes(labels: Array, folds: Array, classes: Sequence[str], notes: list[str]) -> Array:
    """Places of the images that a fold which knows their class holds out: none of a class that one
    fold holds out whole. It was trained on none, and would doubt each of them."""
    pairs = np.unique(np.stack([labels, folds]), axis=1)
    unknown = np.flatnonzero(np.bincount(pairs[0], minlength=len(classes)) == 1).tolist()
    if unknown:
        names = listed([repr(printable(classes[label])) for label in unknown], 3)
        notes.append(
            f"Labels that are not judged: {names}. One fold holds out all images of such a class, "
            "and was trained on none."
        )
    return np.flatnonzero(~np.isin(labels, unknown))


def _out_of_fold(row: Group) -> tuple[Array, Array, Array, list[int], list[str]]:
    """Mean probabilities float64 [N, K] over the seeds, labels [N] and folds [N] of all images that
    the folds are made of, by row; the seeds, and what is missing. RunError where there are none."""
    first, total, seeds, notes = None, np.zeros(()), list[int](), list[str]()
    for run in row.tested:
        try:
            own = read_predictions(run)
        except RunError as error:
            notes.append(str(error))
            continue
        if own is None or not own.same_images(first or own):
            notes.append(f"{run.name} has no predictions of these images: it does not count.")
            continue
        first, total = first or own, total + own.probabilities
        seeds.append(run.seed)
    if first is None or first.folds is None:
        raise RunError(f"no doubtful labels: {' '.join(notes)}")
    return total / len(seeds), first.labels, first.folds, sorted({*seeds}), notes


def _located(
    found: Sequence[DoubtfulLabel], folder: Path, manifest: Manifest, notes: list[str]
) -> list[DoubtfulLabel]:
    """With split and name."""
    rows = [one.row for one in found]
    ends = np.cumsum([manifest.split(name).num_images for name in SPLITS])
    if max(rows, default=-1) >= ends[-1]:
        raise UserError(f"{folder} has {ends[-1]:,} images, the predictions are of more.")
    names = read_names(folder, manifest, rows)
    if names is None:
        names = {}
        notes.append(
            f"{folder} does not say how images are named in the archive: they are told by their "
            "key. Convert the images again for names."
        )
    splits = np.searchsorted(ends, rows, side="right").tolist()
    return [
        replace(one, split=SPLITS[split], name=names.get(one.row, ""))
        for one, split in zip(found, splits, strict=True)
    ]
