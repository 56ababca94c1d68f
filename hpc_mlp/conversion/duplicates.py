"""Equal, nearly equal and altered images: which, how many, whether they leak into test."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpc_mlp.conversion.alterations import TONES, Altered, Tones, changes
from hpc_mlp.conversion.altered_copies import altered_in_earlier_split, altered_pairs
from hpc_mlp.conversion.archive import Names
from hpc_mlp.conversion.components import Components, components
from hpc_mlp.conversion.near_duplicates import Nearest, near_pairs, nearest_in_earlier_split
from hpc_mlp.data.limits import SPLITS
from hpc_mlp.terminal.text import json_text

NAME = "duplicates.jsonl"
# So many images of a group are named.
_LISTED = 1000
# Which copy stays, by given split (train, val, test, none): test before train.
_PREFER = np.array([2, 1, 0, 3])


def repeats(group: npt.NDArray[np.int64], given: npt.NDArray[np.int8]) -> npt.NDArray[np.bool_]:
    """All but one image of each group: the first stays, or the one in the archive's test split."""
    count = len(group)
    order = np.lexsort((np.arange(count), _PREFER[given], group))
    first = np.ones(count, bool)
    first[1:] = group[order][1:] != group[order][:-1]
    result = np.ones(count, bool)
    result[order[first]] = False
    return result


def find_altered(
    folder: Path, records: npt.NDArray[np.void], group: npt.NDArray[np.int64], num_pixels: int
) -> Altered:
    """Pairs of altered copies among the first ones of each `group`, whose tones lie in `folder`."""
    tones = Tones.mapped(folder / TONES, _channel_means(records, num_pixels))
    return altered_pairs(tones, np.unique(group))


def near_components(
    records: npt.NDArray[np.void],
    group: npt.NDArray[np.int64],
    num_pixels: int,
    altered: Callable[[], Altered] = Altered.none,
) -> Components:
    """Connected components of near and altered copies among all images, of whatever split.
    `group`: as `groups_of_equals` makes it; `altered`: what `find_altered` found."""
    means = _channel_means(records, num_pixels)
    found, near = altered(), near_pairs(records["print"], means, np.unique(group))
    return components(group, itertools.chain(near, [(found.a, found.b)]))


def _channel_means(records: npt.NDArray[np.void], num_pixels: int) -> npt.NDArray[np.int16]:
    sums = records["sum"]
    means = np.empty(sums.shape, np.int16)
    np.floor_divide(sums, num_pixels, out=means)
    return means


class Report:
    """`splits` is -1 for an image that was dropped."""

    def __init__(
        self,
        names: Names,
        classes: Sequence[str],
        records: npt.NDArray[np.void],
        labels: npt.NDArray[np.int32],
        splits: npt.NDArray[np.int8],
    ) -> None:
        self.names, self.classes, self.records = names, classes, records
        self.labels, self.splits = labels, splits

    def write(
        self,
        folder: Path,
        group: npt.NDArray[np.int64],
        num_pixels: int,
        parted: Sequence[tuple[str, npt.NDArray[np.int64]]] = (),
        altered: Callable[[], Altered] = Altered.none,
    ) -> dict[str, int]:
        """Write `duplicates.jsonl`, and count: groups, the images in them, groups with more than
        one class, images that an earlier split (of train, val, test) holds as well, those that
        nearly equal one there, and other `altered` copies of one there; and groups that the user
        gave and the archive's splits part, each as name and places (`parted`), where there are
        any."""
        found = {
            "groups": 0,
            "images": 0,
            "conflicting_groups": 0,
            "leaked_images": 0,
            "near_leaked_images": 0,
            "altered_leaked_images": 0,
        }
        with (folder / NAME).open("w", encoding="utf-8") as file:
            file.writelines(self._exact(group, found))
            # First, so that the two searches take their memory one after the other.
            leaks = altered_in_earlier_split(altered(), self.splits, group)
            near = self._near(group, num_pixels)
            found["near_leaked_images"] = int((near.other >= 0).sum())
            file.writelines(self._near_lines(near))
            lines = [*self._altered_lines(leaks, near)]
            found["altered_leaked_images"] = len(lines)
            file.writelines(lines)
            for name, members in parted:
                found["leaked_groups"] = len(parted)
                file.write(self._line("group", members, {"group": name, "leak": True}))
        return found

    def _exact(self, group: npt.NDArray[np.int64], found: dict[str, int]) -> Iterator[str]:
        for members in _members(group):
            splits = self.splits[members]
            conflict = len(np.unique(self.labels[members])) > 1
            used = splits[splits >= 0]
            leaked = int((used > used.min()).sum())
            found["groups"] += 1
            found["images"] += len(members)
            found["conflicting_groups"] += conflict
            found["leaked_images"] += leaked
            yield self._line(
                "exact", members, {"conflicting_classes": conflict, "leak": leaked > 0}
            )

    def _near(self, group: npt.NDArray[np.int64], num_pixels: int) -> Nearest:
        keep = np.flatnonzero(self.splits >= 0)
        _, first = np.unique(group[keep] * 4 + self.splits[keep], return_index=True)
        # One of each group and split.
        chosen = np.sort(keep[first])
        means = _channel_means(self.records, num_pixels)
        return nearest_in_earlier_split(self.records["print"], means, self.splits, group, chosen)

    def _near_lines(self, near: Nearest) -> Iterator[str]:
        """Images that nearly equal one in an earlier split, each with the nearest such."""
        for image in np.flatnonzero(near.other >= 0).tolist():
            yield self._pair("near", image, int(near.other[image]), float(near.distance[image]))

    def _altered_lines(self, leaks: Altered, near: Nearest) -> Iterator[str]:
        """Those that are not said to be near one."""
        for image, other, bits, distance in leaks.rows():
            if near.other[image] < 0:
                yield self._pair("altered", image, other, distance, {"changes": changes(bits)})

    def _pair(
        self, kind: str, image: int, other: int, distance: float, more: dict[str, Any] | None = None
    ) -> str:
        conflict = bool(self.labels[image] != self.labels[other])
        said = {"conflicting_classes": conflict, **(more or {}), "distance": round(distance, 3)}
        return self._line(kind, np.array([image, other]), said)

    def _line(self, kind: str, members: npt.NDArray[np.int64], more: dict[str, Any]) -> str:
        images = [
            {
                "name": self.names[int(self.records["entry"][i])],
                "class": self.classes[self.labels[i]],
                "split": SPLITS[self.splits[i]] if self.splits[i] >= 0 else "dropped",
            }
            for i in members[:_LISTED].tolist()
        ]
        line = {"kind": kind, "num_images": len(members), **more, "images": images}
        return json_text(line) + "\n"

    def reasons_of(
        self, dropped: npt.NDArray[np.int64], group: npt.NDArray[np.int64]
    ) -> Iterator[tuple[str, str]]:
        kept = (
            {int(group[i]): i for i in np.flatnonzero(self.splits >= 0).tolist()}
            if len(dropped)
            else {}
        )
        for i in dropped.tolist():
            other = self.names[int(self.records["entry"][kept[int(group[i])]])]
            yield self.names[int(self.records["entry"][i])], f"the same pixels as {other}"


def _members(group: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.int64]]:
    """The members of every group of two or more, in the archive's order."""
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.r_[True, group[order][1:] != group[order][:-1]])
    ends = np.r_[starts[1:], len(group)]
    for start, end in zip(
        starts[ends - starts > 1].tolist(), ends[ends - starts > 1].tolist(), strict=True
    ):
        yield order[start:end]
