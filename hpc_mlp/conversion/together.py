"""Which images belong together: equal ones, near copies, and those of a group that was given."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpc_mlp.conversion.components import Components, join
from hpc_mlp.conversion.given_groups import GivenGroups

Numbers = npt.NDArray[np.int64]


def first_of_each(numbers: Numbers) -> Numbers:
    """For each place the first with the same number: equal partitions become equal arrays."""
    _, first, inverse = np.unique(numbers, return_index=True, return_inverse=True)
    return first[inverse].astype(np.int64)


def union(*partitions: Numbers) -> Numbers:
    """For each place the first of those that are connected by any of these partitions, each of
    which gives places that belong together equal numbers."""
    root = np.arange(len(partitions[0]))
    for numbers in partitions:
        join(root, np.arange(len(root)), first_of_each(numbers))
    return root


@dataclass
class Together:
    """Of N images: `equal`, int64 [N], has the place of the first of equal pixels."""

    equal: Numbers
    given: GivenGroups

    def numbers(self, near: Components | None = None) -> Numbers:
        """int64 [N]: those of equal number belong together."""
        parts = [self.equal] if near is None else [self.equal, near.number]
        if self.given.how:
            numbers = self.given.numbers
            # One of its own for an image without.
            own = len(self.given.names) + np.arange(len(numbers))
            parts.append(np.where(numbers < 0, own, numbers))
        return union(*parts) if len(parts) > 1 else self.equal

    def write(
        self, path: Path, near: Components, rows: Numbers
    ) -> tuple[dict[str, Any] | None, bool]:
        """Write the numbers of the images at the places `rows`, in that order, where any belong
        together or groups were given; what the manifest says of them; and whether they join images
        that differ."""
        # Late: it imports the manifest, and `convert` does so while its workers are at work.
        from hpc_mlp.data.groups import encode

        equal, everything = first_of_each(self.equal[rows]), first_of_each(self.numbers(near)[rows])
        sizes, given = np.bincount(everything, minlength=1), self.given.of(rows)
        if sizes.max() < 2 and not self.given.how and not near.left_out:
            return None, False
        members = given.counts()
        # One of each that are equal.
        distinct = np.unique(equal)
        of_near = np.unique(near.number[rows][distinct], return_counts=True)[1]
        content = encode(everything)
        path.write_bytes(content)
        said: dict[str, Any] = {
            "file": path.name,
            "sha256": hashlib.sha256(content).hexdigest(),
            "kinds": {
                "equal": int((np.bincount(equal) > 1).sum()),
                "near": int((of_near > 1).sum()),
                "given": int((members > 0).sum()),
            },
            "num_groups": int((sizes > 1).sum()),
            "num_images": int(sizes[sizes > 1].sum()),
            "largest": int(sizes.max()),
            "left_out": near.left_out,
        }
        if self.given.how:
            said["given"] = {"largest": int(members.max(initial=0)), "alone": given.num_alone()}
        return said, not np.array_equal(everything, equal)

    def parted(self, splits: npt.NDArray[np.int8]) -> Iterator[tuple[str, Numbers]]:
        """The given groups with images in several of `splits` (-1: in none), which only splits of
        the archive bring about: name, and the places of their images."""
        used = np.flatnonzero((splits >= 0) & (self.given.numbers >= 0))
        pairs = np.unique(self.given.numbers[used] * 4 + splits[used]) // 4
        for number in np.unique(pairs[1:][pairs[1:] == pairs[:-1]]).tolist():
            yield self.given.names[number], used[self.given.numbers[used] == number]
