"""Which vectors may be close to each other, without comparing each with each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Places = npt.NDArray[np.int64]

# Width of a bucket along each feature.
_STEP = 12
# Shifted grids of buckets: a close pair that one grid parts lies together in another.
_GRIDS = 6
# A vector is compared with so many next ones of its bucket, in order of rank.
_WINDOW = 24
# Pairs at a time, so that memory stays flat.
_BATCH = 50_000


def neighbours(
    features: npt.NDArray[Any], rank: npt.NDArray[Any], reach: float
) -> Iterator[tuple[Places, Places]]:
    """Pairs of rows of `features` [N, D] that one bucket holds and whose ranks differ by at most
    `reach`; some come several times. Time and memory grow linearly with N."""
    for grid in range(_GRIDS):
        keys = _keys(features, grid)
        # int32: half the memory of what else there is.
        order = np.lexsort((rank, keys)).astype(np.int32)
        keys, ranked = keys[order], rank[order]
        for step in range(1, _WINDOW + 1):
            close = np.flatnonzero(
                (keys[step:] == keys[:-step]) & (ranked[step:] - ranked[:-step] <= reach)
            )
            if not len(close):
                break
            for start in range(0, len(close), _BATCH):
                part = close[start : start + _BATCH]
                yield order[part].astype(np.int64), order[part + step].astype(np.int64)
        # Not beside those of the next grid.
        del keys, ranked, order


def _keys(features: npt.NDArray[Any], grid: int) -> npt.NDArray[np.uint64]:
    """The bucket of each row in one of the shifted grids."""
    keys = np.zeros(len(features), np.uint64)
    for number, column in enumerate(features.T):
        # Another in every dimension.
        shift = np.float32((number * 5 + grid * _STEP / _GRIDS) % _STEP)
        keys ^= ((column + shift) // _STEP).astype(np.int64).view(np.uint64)
        keys *= np.uint64(0x9E3779B97F4A7C15)
        keys ^= keys >> np.uint64(29)
    return keys
