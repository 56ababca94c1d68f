"""What a reader of one layout makes of the names in an archive."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from hpc_mlp.conversion.asked import ColumnNames

SPLIT_NAMES = {
    "train": 0, "training": 0, "trainval": 0, "val": 1, "valid": 1, "validation": 1, "dev": 1,
    "test": 2, "testing": 2, "eval": 2, "evaluation": 2, "holdout": 2,
}  # fmt: skip


def words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# Words that say nothing of what a file or folder holds.
_FILLERS = words(
    "image images img imgs picture pictures photo photos jpg jpeg png label labels data set "
    "dataset file files folder list annotation annotations metadata meta info"
)


@dataclass
class Reading:
    """Entry `entries[i]` of the source has class `classes[labels[i]]` and split `splits[i]` (-1:
    none is said). `rejects`: (name, reason). `notes`: lines on what was used and what not.
    `num_ignored`: files that it ignored, less those that were counted so and that it used.
    `coded`: whether classes that are numbers may stand for names. `groups`: of each entry the
    group that the user gave it ("": none), where groups are said at all."""

    kind: str
    classes: list[str]
    entries: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int32]
    splits: npt.NDArray[np.int8]
    rejects: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    num_ignored: int = 0
    coded: bool = False
    groups: list[str] | None = None

    def keep(self, keep: npt.NDArray[np.bool_]) -> None:
        """These entries alone."""
        self.entries, self.labels, self.splits = (
            self.entries[keep],
            self.labels[keep],
            self.splits[keep],
        )
        if self.groups is not None:
            self.groups = list(itertools.compress(self.groups, keep.tolist()))


@runtime_checkable
class LabelledSource(Protocol):
    """A source that holds its classes itself."""

    def reading(self, start: int, names: ColumnNames) -> Reading:
        """Of its entries, counted from `start`. UserError where `names` are not in it."""


def loose_split(name: str, alone: bool = False) -> int | None:
    """`train_images`, `trainLabels`, `Training-Set` → 0; where not `alone`, `mnist_train` too. None
    where no split is named, or more than one."""
    if alone:
        found = split_and_rest(name)
        return found[0] if found and not found[1] else None
    splits = {SPLIT_NAMES[part] for part in _parts_of(name) if part in SPLIT_NAMES}
    return splits.pop() if len(splits) == 1 else None


def split_and_rest(name: str) -> tuple[int, tuple[str, ...]] | None:
    """`seg_train` → 0 and `seg`: the one word that names a split, and the others that say
    something. None where it is not one."""
    parts = [part for part in _parts_of(name) if part not in _FILLERS]
    found = [part for part in parts if part in SPLIT_NAMES]
    if len(found) != 1:
        return None
    return SPLIT_NAMES[found[0]], tuple(part for part in parts if part != found[0])


def _parts_of(name: str) -> list[str]:
    parts = [part.lower() for part in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)]
    return [part.removesuffix("set") or part for part in parts]
