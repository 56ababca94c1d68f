"""Groups that the user gives: a column of a table, or a part of each image's path."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hpc_mlp.conversion.archive import Source
from hpc_mlp.conversion.asked import Asked, GroupOf, group_of
from hpc_mlp.conversion.reading import Reading
from hpc_mlp.errors import UserError, printable
from hpc_mlp.terminal.text import count

# A group with a larger share of the images is warned of: no split has room for it.
_LARGE = 0.5


@dataclass
class GivenGroups:
    """`numbers`, int64 [N]: of each image the place of its group in `names`; -1: it has none.
    `how`: what they are taken from, in words; "" where no groups are given."""

    numbers: npt.NDArray[np.int64]
    names: list[str]
    how: str = ""

    def of(self, places: npt.NDArray[np.generic]) -> GivenGroups:
        """Of these images, by a mask or in this order."""
        return GivenGroups(self.numbers[places], self.names, self.how)

    def counts(self) -> npt.NDArray[np.int64]:
        """Images of each group, int64 [len(names)]."""
        known = self.numbers[self.numbers >= 0]
        return np.bincount(known, minlength=len(self.names))

    def num_alone(self) -> int:
        return int((self.numbers < 0).sum()) if self.how else 0

    def lines(self) -> Iterator[str]:
        """How many, and the largest."""
        if not self.how:
            return
        sizes = self.counts()
        alone, total = self.num_alone(), len(self.numbers)
        text = f"groups ({self.how}): {total - alone:,} of {count(total, 'image')} in "
        text += count(int((sizes > 0).sum()), "group")
        if not sizes.any():
            yield text
            return
        largest = int(sizes.argmax())
        yield f"{text}, the largest {printable(self.names[largest])!r} with {sizes[largest]:,}" + (
            f"; {count(alone, 'image')} without a group: each is its own" if alone else ""
        )
        if sizes[largest] > _LARGE * total:
            yield (
                f"WARNING: group {printable(self.names[largest])!r} holds "
                f"{100 * sizes[largest] / total:.0f} % of the images, which stay in one split"
            )


def of_readings(readings: Sequence[Reading]) -> GivenGroups:
    """Groups called the same are one, in whichever table."""
    number: dict[str, int] = {}
    parts = [np.empty(0, np.int64)]
    for reading in readings:
        if reading.groups is None:
            parts.append(np.full(len(reading.entries), -1, np.int64))
        else:
            parts.append(_numbered(reading.groups, number))
    said = any(reading.groups is not None for reading in readings)
    return GivenGroups(np.concatenate(parts), list(number), "a column" if said else "")


def _numbered(names: Sequence[str], number: dict[str, int]) -> npt.NDArray[np.int64]:
    return np.array(
        [number.setdefault(name, len(number)) if name else -1 for name in names], np.int64
    )


def by_path(source: Source, entries: npt.NDArray[np.int64], asked: Asked) -> GivenGroups | None:
    """Of `entries`, where the user says how to take groups from their paths. UserError where no
    path has one, or the user's function gives what is no name."""
    pattern = asked.group_pattern()
    if pattern is not None:
        which = group_of(pattern, "group")
        names = [
            (found[which] or "").strip() if (found := pattern.search(source.names[i])) else ""
            for i in entries.tolist()
        ]
        how = f"--group-regex {printable(pattern.pattern)}"
    elif asked.group is not None:
        names = [_called(asked.group, source.names[i]) for i in entries.tolist()]
        how = "a function"
    else:
        return None
    if len(entries) and not any(names):
        raise UserError(
            f"{how} finds no group in any of the {len(entries):,} paths of images in "
            f"{printable(source.label)}, such as {printable(source.names[int(entries[0])])}."
        )
    number: dict[str, int] = {}
    return GivenGroups(_numbered(names, number), list(number), how)


def _called(group: GroupOf, name: str) -> str:
    found = group(name)
    if found is not None and not isinstance(found, str):
        raise UserError(
            f"group({name!r}) gave {found!r}, of type {type(found).__name__}. It is to give the "
            "group's name as a str, or None."
        )
    return found or ""
