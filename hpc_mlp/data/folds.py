"""Cross-validation: which images each fold trains on, validates on and holds out.

Folds are rows of the dataset, so nothing is converted again. A row is an image's place in the
splits train, val and test, one after the other, each in shard order. Where the archive brought a
test split, that stays apart, and folds are made of the other two."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpc_mlp.config.sections import DataConfig
from hpc_mlp.data.deal import Rows, deal
from hpc_mlp.data.groups import load_groups
from hpc_mlp.data.image_sums import ImageSums, image_sums
from hpc_mlp.data.limits import SPLITS
from hpc_mlp.data.manifest import Manifest
from hpc_mlp.data.moments import mean_and_std
from hpc_mlp.data.normalise import PixelMoments
from hpc_mlp.data.remote import DatasetLocation
from hpc_mlp.errors import UserError, printable
from hpc_mlp.terminal.text import count, listed, one_of

# The share of all images that a fold validates on, where parts of folds can make it up.
_VAL_SHARE = 0.1
# How many times the images of the smallest fold the largest has, from which on it is said.
_UNEVEN = 1.2
_NAMED = 3


@dataclass(frozen=True)
class Fold:
    """Rows, in order: of training, of validation (for early stopping), and those held out, on which
    the fold is tested. `moments`: of its training pixels. `class_counts`: of training images."""

    train: Rows
    val: Rows
    held_out: Rows
    moments: PixelMoments
    class_counts: tuple[int, ...]

    @property
    def num_images(self) -> dict[str, int]:
        return {"train": len(self.train), "val": len(self.val), "held_out": len(self.held_out)}


@dataclass(frozen=True)
class Folds:
    """`splits`: what the folds are made of. `epoch_images`: of the smallest training part. Every
    fold's epoch has so many, so that all take the same steps: of a larger one each epoch leaves out
    others."""

    splits: tuple[str, ...]
    folds: tuple[Fold, ...]

    def __getitem__(self, number: int) -> Fold:
        return self.folds[number]

    def __len__(self) -> int:
        return len(self.folds)

    @property
    def epoch_images(self) -> int:
        return min(len(fold.train) for fold in self.folds)


def fold_splits(manifest: Manifest) -> tuple[str, ...]:
    """What folds are made of."""
    given = manifest.given_splits
    # Of before 0.2: the layout says whether there were some.
    has_test = "split" in manifest.layout if given is None else "test" in given
    return SPLITS[:2] if has_test else SPLITS


def fold_notes(location: DatasetLocation, manifest: Manifest, folds: Folds) -> Iterator[str]:
    """A line for each thing about these folds that a person should know: what they cannot keep
    together, sizes that groups make uneven, classes of which a fold has no image to learn from."""
    if manifest.groups is None and manifest.given_splits is None:
        yield (
            f"{location} was converted before version 0.2: folds keep equal images together, but "
            "not near copies or groups. Convert the images again for that."
        )
    begin = f"data.folds={len(folds)}:"
    held_out = sorted(len(fold.held_out) for fold in folds.folds)
    train = sorted(len(fold.train) for fold in folds.folds)
    if any(sizes[-1] > max(_UNEVEN * sizes[0], sizes[0] + 2) for sizes in (held_out, train)):
        yield (
            f"{begin} groups of images that belong together make the folds uneven: they hold out "
            f"{held_out[0]:,} to {held_out[-1]:,} images and train on {train[0]:,} to "
            f"{train[-1]:,}, {folds.epoch_images:,} of them in each epoch."
        )
    unknown = {
        name: [str(k) for k, fold in enumerate(folds.folds) if not fold.class_counts[label]]
        for label, name in enumerate(manifest.classes)
    }
    lacking = [
        f"{printable(name)!r} ({one_of(len(numbers), 'fold', 'folds')} {', '.join(numbers)})"
        for name, numbers in unknown.items()
        if numbers
    ]
    if lacking:
        yield (
            f"WARNING: {begin} no training image of {listed(lacking, _NAMED)}: such a fold does "
            "not know the class, and all that it holds out of it is wrong."
        )


def make_folds(location: DatasetLocation, manifest: Manifest, config: DataConfig) -> Folds:
    """`config.folds` folds, a function of the dataset and their number alone.

    Every image is held out in one fold. Images of equal pixels, near copies and groups lie in one
    fold (in a folder of before 0.2: of equal pixels only); classes are spread evenly. A fold
    validates on about a tenth of all images, which are of the next fold, but not on all that it
    would have of a class to train on. One pass over the images, the first time. UserError where
    there are too few."""
    splits, number = fold_splits(manifest), config.folds
    images = image_sums(location, manifest, splits, config)
    groups = load_groups(location, manifest)
    if len(np.unique(images.equal)) < number:
        raise UserError(
            f"data.folds={number}: {location} has only {count(len(images.equal), 'image')} to make "
            f"folds of ({', '.join(splits)})."
        )
    together = images.equal if groups is None else groups[: len(images.labels)]
    fold_of, validates = _dealt(images.labels, together, number)
    folds = []
    for k in range(number):
        held_out = fold_of == k
        val = validates & (fold_of == (k + 1) % number)
        val &= ~_needed(images.labels, together, ~(held_out | val), val)
        train = ~(held_out | val)
        if not (held_out.any() and val.any() and train.any()):
            raise UserError(
                f"data.folds={number}: fold {k} of {location} would have no images to "
                f"{'test' if not held_out.any() else 'validate' if not val.any() else 'train'} "
                "on: there are too few images, or too few groups. Take fewer folds."
            )
        folds.append(_fold(images, train, val, held_out, manifest))
    return Folds(splits, tuple(folds))


def _dealt(labels: Rows, together: Rows, number: int) -> tuple[Rows, NDArray[np.bool_]]:
    """The fold of each image, and whether the fold before that one validates on it.

    Folds first, then each into parts: of few images of a class, or few groups, parts that were
    dealt at once would give one fold several and another none."""
    fold_of = deal(labels, together, number)
    validates = np.zeros(len(labels), bool)
    for k in range(number):
        rows = np.flatnonzero(fold_of == k)
        part = deal(labels[rows], together[rows], max(1, round(_VAL_SHARE**-1 / number)))
        sizes = np.bincount(part, minlength=1)
        # Groups may make some large, and leave others empty.
        off = np.where(sizes > 0, np.abs(sizes - _VAL_SHARE * len(labels)), np.inf)
        validates[rows[part == off.argmin()]] = True
    return fold_of, validates


def _needed(
    labels: Rows, together: Rows, train: NDArray[np.bool_], val: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Of `val` what training needs: images of classes that `train` has none of, and what belongs
    together with them. None where that is all of it."""
    lacking = np.setdiff1d(labels[val], labels[train])
    needed = val & np.isin(together, together[val & np.isin(labels, lacking)])
    return needed & (val & ~needed).any()


def _fold(
    images: ImageSums,
    train: NDArray[np.bool_],
    val: NDArray[np.bool_],
    held_out: NDArray[np.bool_],
    manifest: Manifest,
) -> Fold:
    values = int(train.sum()) * manifest.num_features // manifest.channels
    sums, squares = (table[train].sum(0).tolist() for table in (images.sums, images.squares))
    counts = np.bincount(images.labels[train], minlength=len(manifest.classes))
    return Fold(
        np.flatnonzero(train),
        np.flatnonzero(val),
        np.flatnonzero(held_out),
        PixelMoments(*mean_and_std(sums, squares, values)),
        tuple(counts.tolist()),
    )
