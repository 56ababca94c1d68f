"""Splits of groups of many sizes and several classes: near their shares of every class."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from hpc_mlp.conversion.split import TEST, TRAIN, VAL

Places = npt.NDArray[np.int64]


def draw(
    labels: npt.NDArray[np.int32],
    member: Places,
    keys: npt.NDArray[np.uint64],
    val: float,
    test: float,
) -> npt.NDArray[np.int8]:
    """The split, int8 [G], of each group: `member` [N] is the group of each image, `keys` [G] a
    random number of each. First each class that has the groups for it gets one into test and one
    into val, and never its last one; then a group goes where the images of its classes are wanted
    most, those first that no small split has room for, the others at random (not by size: test
    would hold the small ones). Images that are alone fill up what is wanted then. By how much a
    class misses its share: less than twice its largest group."""
    work = _Draw(labels, member, np.argsort(keys, kind="stable"), (1 - val - test, val, test))
    work.seed()
    work.fill()
    work.fill_with_singles(labels[np.unique(member, return_index=True)[1]])
    return work.split


class _Draw:
    """`order`: the groups at random. `fractions` of train, val and test."""

    def __init__(
        self,
        labels: npt.NDArray[np.int32],
        member: Places,
        order: Places,
        fractions: tuple[float, float, float],
    ) -> None:
        self.fractions, self.order = fractions, order
        size = int(labels.max()) + 1 if len(labels) else 0
        pairs, counts = np.unique(member * size + labels, return_counts=True)
        groups, classes = np.divmod(pairs, max(size, 1))
        self.single = np.bincount(member) == 1
        self.split = np.full(len(order), -1, np.int8)
        # (class, images) of each group.
        ends = np.flatnonzero(np.diff(groups)) + 1
        rows: list[Any] = list(zip(classes.tolist(), counts.tolist(), strict=True))
        bounds = [0, *ends.tolist(), len(rows)]
        self.parts = [rows[a:b] for a, b in pairwise(bounds) if b > a]
        real = ~self.single[groups]
        self.images = np.bincount(classes, counts, size).tolist()
        in_groups = np.bincount(classes[real], counts[real], size).tolist()
        # By class and split: images that are still wanted of groups; images that are there.
        self.wanted = [[f * n for f in fractions] for n in in_groups]
        self.held = [[0, 0, 0] for _ in range(size)]
        # By class: groups, and those of them that are not placed yet; single images count.
        self.groups = np.bincount(classes, minlength=size).tolist()
        self.left = list(self.groups)

    def seed(self) -> None:
        """Every class into test and val, those of few groups first."""
        having: list[list[int]] = [[] for _ in self.groups]
        for group in self.order[~self.single[self.order]].tolist():
            for label, _ in self.parts[group]:
                having[label].append(group)
        for label in sorted(range(len(self.groups)), key=lambda label: self.groups[label]):
            for split in (TEST, VAL):
                if not self.held[label][split] and self._enough(label, split):
                    self._seed(label, split, having[label])

    def _enough(self, label: int, split: int) -> bool:
        """Whether this class has a group for this split, beside those that others need more."""
        reserved = 1 + (split == TEST and self.fractions[VAL] > 0 and self.groups[label] > 2)
        has_train = self.held[label][TRAIN] > 0
        return self.fractions[split] > 0 and self.left[label] + has_train > reserved

    def _seed(self, label: int, split: int, having: list[int]) -> None:
        free = [g for g in having if self.split[g] < 0 and self._may_leave(g)]
        sizes = {group: dict(self.parts[group])[label] for group in free}
        room = max(1.0, self.fractions[split] * self.images[label])
        fitting = next((group for group in free if sizes[group] <= room), None)
        alone = self.left[label] - sum(self.split[g] < 0 for g in having)
        # Single images will do, where none fits.
        if fitting is None and free and alone < 2:
            fitting = min(free, key=lambda group: sizes[group])
        if fitting is not None:
            self._place(fitting, split)

    def _may_leave(self, group: int) -> bool:
        """Whether each of its classes has an image in train, or another group for it."""
        return all(self.held[k][TRAIN] or self.left[k] > 1 for k, _ in self.parts[group])

    def _place(self, group: int, split: int) -> None:
        self.split[group] = split
        for label, count in self.parts[group]:
            self.wanted[label][split] -= count
            self.held[label][split] += count
            self.left[label] -= 1

    def fill(self) -> None:
        """The groups that are left."""
        least = min((f for f in self.fractions if f > 0), default=1.0) / 2
        rest = [g for g in self.order.tolist() if self.split[g] < 0 and not self.single[g]]
        large = [g for g in rest if any(n > least * self.images[k] for k, n in self.parts[g])]
        large.sort(key=lambda group: -sum(count for _, count in self.parts[group]))
        first = set(large)
        splits = [split for split in (TRAIN, VAL, TEST) if self.fractions[split] > 0]
        for group in [*large, *(group for group in rest if group not in first)]:
            may = splits if self._may_leave(group) else [TRAIN]
            wanted = [self._wanted(group, split) for split in may]
            self._place(group, may[wanted.index(max(wanted))])

    def _wanted(self, group: int, split: int) -> float:
        shares = (n * self.wanted[k][split] / self.images[k] for k, n in self.parts[group])
        return float(sum(shares))

    def fill_with_singles(self, label_of_group: npt.NDArray[np.int32]) -> None:
        """Single images, by class: as many for test and val as their shares want."""
        singles = self.order[self.single[self.order]]
        of_class = label_of_group[singles]
        for label in np.unique(of_class).tolist():
            here, at = singles[of_class == label], 0
            for split in (TEST, VAL):
                room = len(here) - at - (0 if self.held[label][TRAIN] else 1)
                if split == TEST and self.fractions[VAL] and not self.held[label][VAL]:
                    room -= self.groups[label] > 2
                want = self.fractions[split] * self.images[label] - self.held[label][split]
                least = self.fractions[split] > 0 and not self.held[label][split]
                take = min(max(int(want + 0.5), int(least)), max(room, 0))
                self.split[here[at : at + take]] = split
                at += max(take, 0)
            self.split[here[at:]] = TRAIN
