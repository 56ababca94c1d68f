"""What is connected by pairs of images."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from hpc_mlp.conversion.buckets import Places

# A cluster of more than this share of the images would make a split of it alone; so many images may
# always be one.
MAX_SHARE, ALWAYS_KEPT = 0.02, 10


@dataclass(frozen=True)
class Components:
    """`number`, int64 [N]: equal for images that pairs connect, the place of the first of them.
    `left_out`: the sizes of clusters too large to be kept together, the largest first."""

    number: Places
    left_out: tuple[int, ...]


def components(group: Places, pairs: Iterable[tuple[Places, Places]]) -> Components:
    """Connected components of N images by `group` (the place of the first of equal ones) and by
    `pairs` of such first ones. A cluster of more than MAX_SHARE of the images (and more than
    ALWAYS_KEPT) is left out: of its images only equal ones stay together."""
    root = np.arange(len(group))
    for a, b in pairs:
        join(root, a, b)
    number = root[group]
    sizes = np.bincount(number, minlength=len(number))
    most = max(ALWAYS_KEPT, MAX_SHARE * len(number))
    # Equal images alone are no cluster.
    large = (sizes > most) & (sizes > np.bincount(group, minlength=len(number)))
    left_out = tuple(sorted(sizes[large].tolist(), reverse=True))
    return Components(np.where(large[number], group, number), left_out)


def join(root: Places, a: Places, b: Places) -> None:
    """Let `root`, the first image of each one's component, connect every a[i] with b[i]."""
    while len(a):
        x, y = root[a], root[b]
        np.minimum.at(root, np.maximum(x, y), np.minimum(x, y))
        while not np.array_equal(upper := root[root], root):
            root[:] = upper
        # A root that was to be joined to several has the first of them.
        apart = root[a] != root[b]
        a, b = a[apart], b[apart]
