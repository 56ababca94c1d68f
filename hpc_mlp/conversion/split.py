"""Which image goes into which split, in which order: by the seed and the image's place only."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

TRAIN, VAL, TEST = 0, 1, 2

# labels, groups, random keys of the groups, val, test → the split of each group.
Draw = Callable[
    [npt.NDArray[np.int32], npt.NDArray[np.int64], npt.NDArray[np.uint64], float, float],
    npt.NDArray[np.int8],
]


def random_keys(seed: int, count: int, stream: int) -> npt.NDArray[np.uint64]:
    """A random number for each of `count` places (splitmix64): the same everywhere."""
    x = np.arange(count, dtype=np.uint64)
    start = (seed * 0x9E3779B97F4A7C15 + stream * 0xD1B54A32D192ED03 + 1) % 2**64
    for salt in (start, start ^ 0xA5A5A5A5A5A5A5A5):
        x = x + np.uint64(salt)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x = x ^ (x >> np.uint64(31))
    return x


def groups_of_equals(digests: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """For each image the place of the first with the same digest [N, 2], which may be itself."""
    count = len(digests)
    order = np.lexsort((np.arange(count), digests[:, 1], digests[:, 0]))
    ranked = digests[order]
    new = np.ones(count, bool)
    new[1:] = (ranked[1:] != ranked[:-1]).any(axis=1)
    starts = np.maximum.accumulate(np.where(new, np.arange(count), 0))
    group = np.empty(count, np.int64)
    group[order] = order[starts]
    return group


def assign(
    labels: npt.NDArray[np.int32],
    group: npt.NDArray[np.int64],
    given: npt.NDArray[np.int8],
    seed: int,
    val: float,
    test: float,
    draw: Draw | None = None,
) -> npt.NDArray[np.int8]:
    """The split of each image. `given` holds the archive's own splits (-1: none): they stay, and
    only the splits that the archive lacks are cut out of train. Stratified by class; a group stays
    together and counts to the class of its first image; every class is in every split where it has
    the groups for it. `draw`: how else to split groups, such as `group_split.draw`."""
    split = np.where(given < 0, TRAIN, given).astype(np.int8)
    want_val, want_test = (0.0 if (given == s).any() else f for s, f in ((VAL, val), (TEST, test)))
    pool = np.flatnonzero(split == TRAIN)
    # Groups within the pool: a copy in the archive's own test split does not count here.
    heads, member, sizes = np.unique(group[pool], return_inverse=True, return_counts=True)
    first = np.full(len(heads), len(labels), np.int64)
    np.minimum.at(first, member, pool)
    keys = random_keys(seed, len(labels), stream=1)
    if draw is not None:
        split[pool] = draw(labels[pool], member, keys[first], want_val, want_test)[member]
        return split
    of_group = np.zeros(len(heads), np.int8)
    # By class, small groups first, then at random.
    order = np.lexsort((keys[first], sizes, labels[first]))
    ends = np.flatnonzero(np.diff(labels[first][order])) + 1
    for places in np.split(order, ends):
        of_group[places] = _cut(sizes[places].tolist(), want_val, want_test)
    split[pool] = of_group[member]
    return split


def _cut(sizes: list[int], val: float, test: float) -> npt.NDArray[np.int8]:
    """Splits for the groups of one class, of these sizes."""
    total, count = sum(sizes), len(sizes)
    result = np.zeros(count, np.int8)
    at = 0
    for split, fraction, reserved in ((TEST, test, 1 + (val > 0 and count > 2)), (VAL, val, 1)):
        target = max(1, int(total * fraction + 0.5)) if fraction else 0
        taken = 0
        while (
            taken < target and at < count - reserved and (taken == 0 or taken + sizes[at] <= target)
        ):
            result[at] = split
            taken += sizes[at]
            at += 1
    return result


def shuffled(places: npt.NDArray[np.int64], seed: int, count: int) -> npt.NDArray[np.int64]:
    """`places` (of `count`) in random order. No two keys are equal: their making can be undone."""
    return places[np.argsort(random_keys(seed, count, stream=2)[places])]
