"""Equal and nearly equal images: which, how many, whether they leak from training into test."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpc_mlp.conversion.archive import Names
from hpc_mlp.conversion.near_duplicates import Components, components, nearest_in_earlier_split
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


def near_components(
    records: npt.NDArray[np.void], group: npt.NDArray[np.int64], num_pixels: int
) -> Components:
    """Connected components of near copies among all images, of whatever split. `group`: as
    `groups_of_equals` makes it."""
    return components(records["print"], _channel_means(records, num_pixels), group)


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
    ) -> dict[str, int]:
        """Write `duplicates.jsonl`, and count: groups, the images in them, groups with more than
        one class, images that an earlier split (of train, val, test) holds as well, and those that
        nearly equal one there; and groups that the user gave and the archive's splits part, each
        as name and places (`parted`), where there are any."""
        found = {
            "groups": 0,
            "images": 0,
            "conflicting_groups": 0,
            "leaked_images": 0,
            "near_leaked_images": 0,
        }
        with (folder / NAME).open("w", encoding="utf-8") as file:
            file.writelines(self._exact(group, found))
            file.writelines(self._near(group, num_pixels, found))
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

    def _near(
        self, group: npt.NDArray[np.int64], num_pixels: int, found: dict[str, int]
    ) -> Iterator[str]:
        """Images that nearly equal one in another split, each with the nearest such."""
        keep = np.flatnonzero(self.splits >= 0)
        _, first = np.unique(group[keep] * 4 + self.splits[keep], return_index=True)
        # One of each group and split.
        chosen = np.sort(keep[first])
        means = _channel_means(self.records, num_pixels)
        nearest = nearest_in_earlier_split(self.records["print"], means, self.splits, group, chosen)
        places = np.flatnonzero(nearest.other >= 0)
        found["near_leaked_images"] = len(places)
        near_ones, distances = nearest.other[places].tolist(), nearest.distance[places].tolist()
        for image, near, distance in zip(places.tolist(), near_ones, distances, strict=True):
            conflict = bool(self.labels[image] != self.labels[near])
            more = {"conflicting_classes": conflict, "distance": round(distance, 3)}
            yield self._line("near", np.array([image, near]), more)

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
