"""Images that are altered copies of others, found without comparing each with each."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from hpc_mlp.conversion.alterations import Altered, Tones, alterations
from hpc_mlp.conversion.buckets import Places, neighbours

# Pairs at a time, so that memory stays flat; and of them those that are compared at a time.
_BATCH, _PIECE = 10_000, 1000
# By how many hundredths features of altered copies differ at most (on photographs and drawings 95 %
# stay below 2), and how many of them make the buckets.
_CLOSE, _KEYED = 4, 8
# Pairs for each image, on average; of Fashion-MNIST 3 are looked at.
_EACH = 8


def altered_pairs(tones: Tones, chosen: Places) -> Altered:
    """Pairs of altered copies among the images at the places `chosen`, some of them several times.
    Most are found (99 % of the planted ones), fewer among thousands alike: it ends when it has
    looked at _EACH pairs for each image. Time and memory grow linearly with their number."""
    found, looked = [Altered.none()], 0
    for a, b in _unlike(_candidates(tones, chosen), len(tones.means)):
        # By kind of alteration, whatever the pieces are.
        found += map(Altered.joined, zip(*_compared(tones, a, b), strict=True))
        tones.release()
        looked += len(a)
        if looked > _EACH * len(chosen) + _BATCH:
            break
    return Altered.joined(found)


def _compared(tones: Tones, a: Places, b: Places) -> Iterator[list[Altered]]:
    """In pieces whose cells a core's cache holds."""
    for start in range(0, len(a), _PIECE):
        piece = slice(start, start + _PIECE)
        yield list(alterations(tones, a[piece], b[piece]))


def altered_in_earlier_split(
    altered: Altered, splits: npt.NDArray[np.int8], group: Places
) -> Altered:
    """Images `a` that have an altered copy, the nearest `b`, in an earlier split, but none equal to
    them there; one in train goes before one in val. `altered`: pairs of the first ones of `group`.
    `splits`: -1 for what was dropped."""
    # The first of each group in each split.
    kept = np.flatnonzero(splits >= 0)[::-1]
    member = np.full((len(splits), 3), -1)
    member[group[kept], splits[kept]] = kept
    parts = []
    for later, earlier in ((1, 0), (2, 0), (2, 1)):
        for x, y in ((altered.a, altered.b), (altered.b, altered.a)):
            a, b = member[x, later], member[y, earlier]
            leaks = (a >= 0) & (b >= 0) & (member[x, :later] < 0).all(axis=1)
            parts.append(Altered(a[leaks], b[leaks], altered.bits[leaks], altered.distance[leaks]))
    found = Altered.joined(parts)
    order = np.lexsort((found.distance, splits[found.b], found.a))
    _, first = np.unique(found.a[order], return_index=True)
    best = order[first]
    return Altered(found.a[best], found.b[best], found.bits[best], found.distance[best])


def _candidates(tones: Tones, chosen: Places) -> Iterator[tuple[Places, Places]]:
    where, features = _items(tones, chosen)
    rank = features[:, -1].astype(np.int16)
    for i, j in neighbours(features[:, :_KEYED], rank, _CLOSE):
        for feature in features.T:
            alike = np.abs(feature[i] - feature[j]) <= _CLOSE
            i, j = i[alike], j[alike]
        yield where[i].astype(np.int64), where[j].astype(np.int64)


def _unlike(pairs: Iterator[tuple[Places, Places]], count: int) -> Iterator[tuple[Places, Places]]:
    """The `pairs` of two images, at most _BATCH at a time, most of them once only."""
    waiting: list[npt.NDArray[np.int64]] = []
    for a, b in pairs:
        waiting.append((np.minimum(a, b) * count + np.maximum(a, b))[a != b])
        if sum(map(len, waiting)) >= _BATCH:
            yield from _batches(np.unique(np.concatenate(waiting)), count)
            waiting.clear()
    if waiting:
        yield from _batches(np.unique(np.concatenate(waiting)), count)


def _batches(keys: npt.NDArray[np.int64], count: int) -> Iterator[tuple[Places, Places]]:
    for start in range(0, len(keys), _BATCH):
        yield np.divmod(keys[start : start + _BATCH], count)


# Signs of Walsh functions along one side of 8 cells. Flipping turns the sign of the odd ones.
_WALSH = np.array(
    [
        [1, 1, 1, 1, 1, 1, 1, 1],
        [1, 1, 1, 1, -1, -1, -1, -1],
        [1, 1, -1, -1, -1, -1, 1, 1],
        [1, 1, -1, -1, 1, 1, -1, -1],
        [1, -1, -1, 1, 1, -1, -1, 1],
        [1, -1, -1, 1, -1, 1, 1, -1],
        [1, -1, 1, -1, -1, 1, -1, 1],
    ]
)
# Pairs of them, down and across, those that differ most between images first.
_TERMS = ((2, 0), (4, 0), (1, 0), (6, 0), (3, 0), (4, 2), (5, 0), (2, 2), (4, 4), (1, 1))
_PATTERNS, _TURNED = (
    np.stack([np.outer(_WALSH[t[i]], _WALSH[t[1 - i]]).ravel() for t in _TERMS], axis=1).astype(
        np.float32
    )
    for i in (0, 1)
)
_ODD = np.array([i % 2 or j % 2 for i, j in _TERMS], bool)
_TWO = np.array([i != j for i, j in _TERMS])
# The greater and the smaller one of each pattern beside each other.
_BEST = np.argsort(np.r_[np.arange(len(_TERMS)), np.flatnonzero(_TWO)], kind="stable")


def _items(tones: Tones, chosen: Places) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int8]]:
    """Images to look up and their features: as they are, and as they are when brightened by 10 and
    by 20 %, where that moves a feature."""
    # Room that is not used takes no memory.
    places = np.empty(3 * len(chosen), np.int32)
    features = np.empty((len(places), len(_BEST)), np.int8)
    filled = 0
    for start in range(0, len(chosen), _BATCH):
        here = chosen[start : start + _BATCH]
        # In whole numbers, exact in float32.
        luma, gain = tones.cells(here)
        tones.release()
        before = None
        for cells in (luma, 10 * luma + gain[:, 0], 5 * luma + gain[:, 1]):
            found = _features(cells)
            moved = np.ones(len(here), bool)
            if before is not None:
                moved = np.abs(found - before).max(axis=1) > _CLOSE // 2
            rows = slice(filled, filled + int(moved.sum()))
            places[rows], features[rows] = here[moved], found[moved]
            filled, before = rows.stop, found
    return places[:filled], features[:filled]


def _features(cells: npt.NDArray[np.float32]) -> npt.NDArray[np.int8]:
    """What neither flips and turns nor brightness and contrast change, [N, 17], in hundredths:
    Walsh coefficients of the cells over their standard deviation, those of odd functions without
    sign, and those of one pattern and the same turned by a quarter in order."""
    mean = cells.mean(axis=1, dtype=np.float64)
    square = np.einsum("nc,nc->n", cells, cells, dtype=np.float64) / 64
    spread = np.sqrt(np.maximum(square - mean**2, 1)).astype(np.float32)
    one, other = (cells @ patterns for patterns in (_PATTERNS, _TURNED))
    one[:, _ODD], other[:, _ODD] = np.abs(one[:, _ODD]), np.abs(other[:, _ODD])
    columns = np.concatenate([np.maximum(one, other), np.minimum(one, other)[:, _TWO]], axis=1)
    hundredths = np.rint(columns[:, _BEST] * (100 / 64 / spread[:, None]))
    result: npt.NDArray[np.int8] = hundredths.astype(np.int8)
    return result
