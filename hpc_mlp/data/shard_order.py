"""The order in which an epoch reads shards: these in random sequence, samples in tar order, then
shuffled within windows of `shuffle_buffer` samples whose borders fall elsewhere in every epoch. A
buffer of at least the split's size is a full shuffle."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hpc_mlp.data.shards import blocks
from hpc_mlp.machine.randomness import window_shuffles

Rows = NDArray[np.int64]


def epoch_order(counts: list[int], *, seed: int, epoch: int, shuffle_buffer: int) -> Rows:
    """int64 [N]: an epoch's rows (in shard order) of a split with `counts` images per shard."""
    rng = window_shuffles(seed, epoch)
    starts = np.concatenate(([0], np.cumsum(counts)))
    ranges = [np.arange(starts[shard], starts[shard + 1]) for shard in rng.permutation(len(counts))]
    order: Rows = np.concatenate([np.empty(0, np.int64), *ranges])
    total = len(order)
    first = int(rng.integers(1, shuffle_buffer + 1)) if shuffle_buffer < total else total
    rng.shuffle(order[:first])
    for start, stop in blocks(total - first, shuffle_buffer):
        rng.shuffle(order[first + start : first + stop])
    return order
