"""Classes and splits from folders (cat/1.jpg, train/cat/1.jpg, cat/train/1.jpg), however deep."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from hpc_mlp.conversion.archive import Names
from hpc_mlp.conversion.reading import SPLIT_NAMES, Reading, loose_split, split_and_rest, words
from hpc_mlp.data.limits import SPLITS
from hpc_mlp.errors import printable
from hpc_mlp.terminal.text import count, listed

NOT_IN_CLASS = "not in a class folder"
NOT_BELOW_SPLIT = "not in a class folder below train, val or test"
NOT_IN_SPLIT = "not in a folder train, val or test below its class folder"

Folder = tuple[str, ...]
# Split folders further down count where they hold this part of the images at least.
_NEARLY_ALL = 0.8
_MASK = re.compile(r"_mask(_\d+)?\.\w+$")
_PART_WORDS = frozenset(words("image images img imgs photo photos part parts batch chunk shard"))


class Tree:
    """The folders of `images` (indices into `names`) of an archive, below those that hold all."""

    def __init__(self, names: Names, images: npt.NDArray[np.int64]) -> None:
        self.names, self.images = names, images
        # In order of appearance.
        numbers: dict[Folder, int] = {}
        # Image → its folder.
        self.places = np.empty(len(images), np.int32)
        self._maybe_masks: list[str] = []
        for position, index in enumerate(images.tolist()):
            name = names[index]
            if "_mask" in name:
                self._maybe_masks.append(name)
            parts = tuple(part for part in name.split("/")[:-1] if part not in ("", "."))
            self.places[position] = numbers.setdefault(parts, len(numbers))
        top = _top(list(numbers))
        self.below = [folder[top:] for folder in numbers]
        # What is above split folders, or holds a copy.
        self.notes: list[str] = []
        if not self.brings_splits(False):
            self._go_down()
            self._leave_copies()

    @property
    def first(self) -> set[str]:
        return {folder[0] for folder in self.below if folder}

    def brings_splits(self, others_train: bool) -> bool:
        """`others_train`: whether another archive of the same data set has a training split."""
        splits = {*_named_splits(self.first).values()}
        all_splits = all(name.lower() in SPLIT_NAMES for name in self.first)
        return (0 in splits and (len(splits) > 1 or all_splits)) or (
            others_train and bool(splits) and all_splits
        )

    def _go_down(self) -> None:
        """To the only folder that holds split folders of classes, and nearly all images."""
        splits: dict[Folder, set[int]] = {}
        classes: dict[Folder, set[str]] = {}
        for folder in self.below:
            for depth in range(1, len(folder)):
                if (split := SPLIT_NAMES.get(folder[depth].lower())) is not None:
                    splits.setdefault(folder[:depth], set()).add(split)
                    classes.setdefault(folder[:depth], set()).update(folder[depth + 1 : depth + 2])
        roots = [
            root
            for root, found in splits.items()
            if 0 in found and len(found) > 1 and len(classes[root]) > 1
        ]
        if len(roots) != 1:
            return
        depth = len(roots[0])
        inside = np.array([folder[:depth] == roots[0] for folder in self.below])
        if inside[self.places].mean() >= _NEARLY_ALL:
            self.below = [
                folder[depth:] if there else ()
                for folder, there in zip(self.below, inside.tolist(), strict=True)
            ]
            self.notes = [f"took the split folders in {printable('/'.join(roots[0]))}"]

    def _leave_copies(self) -> None:
        """A folder that holds what lies beside it once more (cat, dog, all/cat, all/dog) is no
        class."""
        inside: dict[str, set[str]] = {}
        for folder in self.below:
            if folder:
                inside.setdefault(folder[0], set()).update(folder[1:2] or ("",))
        for name, subfolders in inside.items():
            if len(subfolders) > 1 and subfolders == inside.keys() - {name}:
                self.below = [() if f[:1] == (name,) else f for f in self.below]
                again = listed([printable(one) for one in sorted(subfolders)], 3)
                self.notes.append(
                    f"left out: {printable(name)}, which holds the folders beside it again "
                    f"({again})"
                )

    def classes(self, split_folders: bool) -> set[str]:
        if not split_folders:
            return self.first
        return {place[0] for place in self._below_splits() if place}

    def names_classes(self, split_folders: bool) -> bool:
        """Whether there are two class folders at least, which are called neither as splits are
        nor as parts (images_1, images_2)."""
        classes = self.classes(split_folders)
        return len(classes) > 1 and not _loosely_splits(classes) and not _parts(classes)

    def is_classless(self, beside_table: bool) -> bool:
        """Whether its folders are called nearly as splits are, train among them; or as parts,
        where that is more than a guess: `beside_table`."""
        splits = _loosely_splits(self.first) and 0 in map(_loosely, self.first)
        return splits or (beside_table and len(self.first) > 1 and _parts(self.first))

    def read(self, split_folders: bool) -> Reading:
        self.notes += self._mask_lines()
        if split_folders:
            found = _named_splits(self.first)
            if loose := [name for name in found if name.lower() not in SPLIT_NAMES]:
                self.notes += [
                    f"took the folder {printable(name)} as {SPLITS[found[name]]}"
                    for name in sorted(loose)
                ]
            return self._reading("split folders", self._below_splits(), NOT_BELOW_SPLIT)
        second = {folder[1] for folder in self.below if len(folder) > 1}
        splits = {SPLIT_NAMES[name.lower()] for name in second if name.lower() in SPLIT_NAMES}
        if 0 in splits and (len(splits) > 1 or all(len(folder) > 1 for folder in self.below)):
            placed = [
                (f[0], SPLIT_NAMES[f[1].lower()])
                if len(f) > 1 and f[1].lower() in SPLIT_NAMES
                else None
                for f in self.below
            ]
            return self._reading("class folders with splits inside", placed, NOT_IN_SPLIT)
        if second:
            self.notes.append(self._subfolder_line())
        plain = [(f[0], -1) if f else None for f in self.below]
        return self._reading("class folders", plain, NOT_IN_CLASS)

    def _subfolder_line(self) -> str:
        """That sub-folders do not count; where all classes have the same, what to do if they are
        the classes, or images and something else."""
        example = next(folder for folder in self.below if len(folder) > 1)
        line = (
            f"sub-folders of a class folder count as the class: {'/'.join(example[:2])} as "
            f"{example[0]}"
        )
        times = Counter(name for _, name in {f[:2] for f in self.below if len(f) > 1})
        if len(times) > 1 and {*times.values()} == {len(self.first)}:
            names = listed([printable(name) for name in sorted(times)], 3)
            if inside := _called_images(times):
                return f"{line}; for those in {inside} alone: --class-from-name '([^/]+)/{inside}/'"
            above = _called_images(self.first)
            pattern = f"{above}/([^/]+)/" if above else "([^/]+)/[^/]+$"
            line += f"; if the classes are {names}: --class-from-name '{pattern}'"
        return line

    def _mask_lines(self) -> Iterator[str]:
        """That some are called as masks of others: x.png, x_mask.png."""
        if not self._maybe_masks:
            return
        stems = {self.names[i].rpartition(".")[0] for i in self.images.tolist()}
        masks = [
            name
            for name in self._maybe_masks
            if re.sub(_MASK, "", name) != name and re.sub(_MASK, "", name) in stems
        ]
        if masks:
            yield (
                f"WARNING: {count(len(masks), 'image')} called as the mask of another count as "
                f"images ({printable(masks[0])}): without them, --class-from-name "
                "'([^/]+)/(?![^/]*_mask)[^/]+$'"
            )

    def _below_splits(self) -> list[tuple[str, int] | None]:
        """Each split may have folders of its own that hold all of its classes."""
        splits = _named_splits(self.first)
        inside: dict[int, list[Folder]] = {}
        for folder in self.below:
            if folder and folder[0] in splits:
                inside.setdefault(splits[folder[0]], []).append(folder[1:])
        top = {split: _top(folders) for split, folders in inside.items()}
        placed: list[tuple[str, int] | None] = []
        for folder in self.below:
            split = splits.get(folder[0], -1) if folder else -1
            known = split >= 0 and len(folder) > 1 + top[split]
            placed.append((folder[1 + top[split]], split) if known else None)
        return placed

    def _reading(self, kind: str, placed: Sequence[tuple[str, int] | None], reason: str) -> Reading:
        """`placed`: class and split of each folder; None: not to be placed, for `reason`."""
        classes = list(dict.fromkeys(place[0] for place in placed if place))
        number = {name: i for i, name in enumerate(classes)}
        rows = [(number[place[0]], place[1]) if place else (-1, -1) for place in placed]
        table = np.array(rows, np.int32).reshape(-1, 2)
        labels, splits = table[self.places, 0], table[self.places, 1].astype(np.int8)
        keep = labels >= 0
        lost = [(self.names[int(i)], reason) for i in self.images[~keep].tolist()]
        images, labels, splits = self.images[keep], labels[keep], splits[keep]
        return Reading(kind, classes, images, labels, splits, lost, self.notes, coded=True)


def split_of_folders(names: Names, images: npt.NDArray[np.int64]) -> npt.NDArray[np.int8] | None:
    """Each image's split by its folder, where there are split folders; -1 outside of them."""
    tree = Tree(names, images)
    if not tree.brings_splits(False):
        return None
    named = _named_splits(tree.first)
    of_folder = [named.get(folder[0], -1) if folder else -1 for folder in tree.below]
    return np.array(of_folder, np.int8)[tree.places]


def classes_of_folders(names: Names, images: npt.NDArray[np.int64]) -> dict[int, str]:
    """Of the images in class folders."""
    tree = Tree(names, images)
    found = tree.read(tree.brings_splits(False))
    labels = (found.classes[label] for label in found.labels.tolist())
    return dict(zip(found.entries.tolist(), labels, strict=True))


def _named_splits(names: Collection[str]) -> dict[str, int]:
    """Of folders those that are splits: train and test; else, where nothing but that word tells
    some of them apart, seg_train and seg_test, training_set and test_set."""
    exact = {name: SPLIT_NAMES[name.lower()] for name in names if name.lower() in SPLIT_NAMES}
    if exact:
        return exact
    alike: dict[tuple[str, ...], dict[str, int]] = {}
    for name in names:
        if (found := split_and_rest(name)) is not None:
            alike.setdefault(found[1], {})[name] = found[0]
    several = [one for one in alike.values() if 0 in one.values() and len({*one.values()}) > 1]
    return several[0] if len(several) == 1 else {}


def _top(folders: Sequence[Folder]) -> int:
    """How many folders to go down until there is more than one, or none that holds folders."""
    depth = 0
    while True:
        children = {folder[depth] for folder in folders if len(folder) > depth}
        deeper = any(len(folder) > depth + 1 for folder in folders)
        if len(children) != 1 or not deeper or next(iter(children)).lower() in SPLIT_NAMES:
            return depth
        depth += 1


def _loosely(name: str) -> int | None:
    return loose_split(name, alone=True)


def _loosely_splits(names: Iterable[str]) -> bool:
    return all(_loosely(name) is not None for name in names)


def _called_images(names: Iterable[str]) -> str:
    """The one of folders that says that it holds the images; "" where none does."""
    return next((name for name in names if name.lower() in ("images", "imgs", "image", "img")), "")


def _parts(names: Iterable[str]) -> bool:
    """Whether names differ by a number alone, and say images, or part."""
    stems = {re.sub(r"[\d_\W]+", " ", name.lower()).strip() for name in names}
    return len(stems) == 1 and bool(_PART_WORDS & {*stems.pop().split()})
