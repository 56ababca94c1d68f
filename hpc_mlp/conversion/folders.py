"""Classes and splits from folders (cat/1.jpg, train/cat/1.jpg, cat/train/1.jpg), however deep."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from hpc_mlp.conversion.archive import Names
from hpc_mlp.conversion.reading import SPLIT_NAMES, Reading, loose_split, words

NOT_IN_CLASS = "not in a class folder"
NOT_BELOW_SPLIT = "not in a class folder below train, val or test"
NOT_IN_SPLIT = "not in a folder train, val or test below its class folder"

Folder = tuple[str, ...]
_PART_WORDS = frozenset(words("image images img imgs photo photos part parts batch chunk shard"))


class Tree:
    """The folders of `images` (indices into `names`) of an archive, below those that hold all."""

    def __init__(self, names: Names, images: npt.NDArray[np.int64]) -> None:
        self.names, self.images = names, images
        # In order of appearance.
        numbers: dict[Folder, int] = {}
        # Image → its folder.
        self.places = np.empty(len(images), np.int32)
        for position, index in enumerate(images.tolist()):
            parts = tuple(part for part in names[index].split("/")[:-1] if part not in ("", "."))
            self.places[position] = numbers.setdefault(parts, len(numbers))
        top = _top(list(numbers))
        self.below = [folder[top:] for folder in numbers]
        self.first = {folder[0] for folder in self.below if folder}

    def brings_splits(self, others_train: bool) -> bool:
        """`others_train`: whether another archive of the same data set has a training split."""
        splits = _splits_of(self.first)
        all_splits = all(name.lower() in SPLIT_NAMES for name in self.first)
        return (0 in splits and (len(splits) > 1 or all_splits)) or (
            others_train and bool(splits) and all_splits
        )

    def names_classes(self, split_folders: bool) -> bool:
        """Whether there are two class folders at least, which are called neither as splits are
        nor as parts (images_1, images_2)."""
        placed = (
            _below_splits(self.below) if split_folders else [(f[0], -1) for f in self.below if f]
        )
        classes = {place[0] for place in placed if place}
        return len(classes) > 1 and not _loosely_splits(classes) and not _parts(classes)

    def is_classless(self, beside_table: bool) -> bool:
        """Whether its folders are called nearly as splits are, train among them; or as parts,
        where that is more than a guess: `beside_table`."""
        splits = _loosely_splits(self.first) and 0 in map(_loosely, self.first)
        return splits or (beside_table and len(self.first) > 1 and _parts(self.first))

    def read(self, split_folders: bool) -> Reading:
        if split_folders:
            return self._reading("split folders", _below_splits(self.below), NOT_BELOW_SPLIT, [])
        second = {folder[1] for folder in self.below if len(folder) > 1}
        splits = _splits_of(second)
        if 0 in splits and (len(splits) > 1 or all(len(folder) > 1 for folder in self.below)):
            placed = [
                (f[0], SPLIT_NAMES[f[1].lower()])
                if len(f) > 1 and f[1].lower() in SPLIT_NAMES
                else None
                for f in self.below
            ]
            return self._reading("class folders with splits inside", placed, NOT_IN_SPLIT, [])
        notes = []
        if second:
            example = next(folder for folder in self.below if len(folder) > 1)
            notes = [
                f"sub-folders of a class folder count as the class: {'/'.join(example[:2])} as "
                f"{example[0]}"
            ]
        plain = [(f[0], -1) if f else None for f in self.below]
        return self._reading("class folders", plain, NOT_IN_CLASS, notes)

    def _reading(
        self, kind: str, placed: Sequence[tuple[str, int] | None], reason: str, notes: list[str]
    ) -> Reading:
        """`placed`: class and split of each folder; None: not to be placed, for `reason`."""
        classes = list(dict.fromkeys(place[0] for place in placed if place))
        number = {name: i for i, name in enumerate(classes)}
        rows = [(number[place[0]], place[1]) if place else (-1, -1) for place in placed]
        table = np.array(rows, np.int32).reshape(-1, 2)
        labels, splits = table[self.places, 0], table[self.places, 1].astype(np.int8)
        keep = labels >= 0
        lost = [(self.names[int(i)], reason) for i in self.images[~keep].tolist()]
        images, labels, splits = self.images[keep], labels[keep], splits[keep]
        return Reading(kind, classes, images, labels, splits, lost, notes, coded=True)


def split_of_folders(names: Names, images: npt.NDArray[np.int64]) -> npt.NDArray[np.int8] | None:
    """Each image's split by its folder, where there are split folders; -1 outside of them."""
    tree = Tree(names, images)
    if not tree.brings_splits(False):
        return None
    of_folder = [SPLIT_NAMES.get(folder[0].lower(), -1) if folder else -1 for folder in tree.below]
    return np.array(of_folder, np.int8)[tree.places]


def _splits_of(names: Iterable[str]) -> set[int]:
    return {SPLIT_NAMES[name.lower()] for name in names if name.lower() in SPLIT_NAMES}


def _top(folders: Sequence[Folder]) -> int:
    """How many folders to go down until there is more than one, or none that holds folders."""
    depth = 0
    while True:
        children = {folder[depth] for folder in folders if len(folder) > depth}
        deeper = any(len(folder) > depth + 1 for folder in folders)
        if len(children) != 1 or not deeper or next(iter(children)).lower() in SPLIT_NAMES:
            return depth
        depth += 1


def _below_splits(below: Sequence[Folder]) -> list[tuple[str, int] | None]:
    """Each split may have folders of its own that hold all of its classes."""
    inside: dict[int, list[Folder]] = {}
    for folder in below:
        if folder and folder[0].lower() in SPLIT_NAMES:
            inside.setdefault(SPLIT_NAMES[folder[0].lower()], []).append(folder[1:])
    top = {split: _top(folders) for split, folders in inside.items()}
    placed: list[tuple[str, int] | None] = []
    for folder in below:
        split = SPLIT_NAMES.get(folder[0].lower(), -1) if folder else -1
        known = split >= 0 and len(folder) > 1 + top[split]
        placed.append((folder[1 + top[split]], split) if known else None)
    return placed


def _loosely(name: str) -> int | None:
    return loose_split(name, alone=True)


def _loosely_splits(names: Iterable[str]) -> bool:
    return all(_loosely(name) is not None for name in names)


def _parts(names: Iterable[str]) -> bool:
    """Whether names differ by a number alone, and say images, or part."""
    stems = {re.sub(r"[\d_\W]+", " ", name.lower()).strip() for name in names}
    return len(stems) == 1 and bool(_PART_WORDS & {*stems.pop().split()})
