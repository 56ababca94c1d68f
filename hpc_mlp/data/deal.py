"""Dealing images out to equal parts: stratified by class, groups whole, the same every time."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from hpc_mlp.machine.randomness import part_keys

Rows = NDArray[np.int64]


def deal(labels: Rows, groups: Rows, parts: int) -> Rows:
    """labels, groups int64 [N] → the part of each image, int64 [N], a function of these alone.

    Images of one group come into one part. Groups are dealt out first, large ones before small,
    each to the part that has least of its most frequent class, and of those to the smallest; then
    the single images of each class level out what the groups left uneven. Without groups the parts
    of a class, and the parts as a whole, differ by one image at most."""
    counts = np.zeros((parts, int(labels.max(initial=0)) + 1), np.int64)
    part = np.empty(len(labels), np.int64)
    keys = part_keys(parts, len(labels))
    _, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    grouped = np.flatnonzero(sizes[group] > 1)
    order = grouped[np.argsort(group[grouped], kind="stable")]
    members = np.split(order, np.flatnonzero(np.diff(group[order])) + 1) if len(order) else []
    for rows in sorted(members, key=lambda rows: (-len(rows), int(keys[rows[0]]))):
        of_class = np.bincount(labels[rows], minlength=counts.shape[1])
        most = int(of_class.argmax())
        chosen = int(np.lexsort((counts.sum(1), counts[:, most]))[0])
        part[rows] = chosen
        counts[chosen] += of_class
    single = np.flatnonzero(sizes[group] == 1)
    single = single[np.lexsort((keys[single], labels[single]))]
    ends = np.searchsorted(labels[single], np.arange(counts.shape[1] + 1))
    for label, (start, stop) in enumerate(pairwise(ends.tolist())):
        given = _levelled(counts[:, label], counts.sum(1), stop - start)
        part[single[start:stop]] = np.repeat(np.arange(parts), given)
        counts[:, label] += given
    return part


def _levelled(own: Rows, whole: Rows, count: int) -> Rows:
    """How many of `count` images each part gets that has `own` of their class, so that these become
    as equal as can be; what is over goes to the parts of the smallest `whole`."""
    # The highest level up to which `count` images fill all parts that lie below it.
    level = int(((np.cumsum(np.sort(own)) + count) // np.arange(1, len(own) + 1)).min())
    given = np.maximum(level - own, 0)
    over = count - int(given.sum())
    order = np.lexsort((whole + given, own + given))
    given[order[:over]] += 1
    return given
