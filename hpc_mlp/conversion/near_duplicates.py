"""Nearly equal images, found by their fingerprints without comparing each with each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hpc_mlp.conversion.buckets import Places, neighbours

# Two images are nearly equal where the means of their 8 × 8 gray cells differ by at most MAX_MEAN
# levels (of 255) on average and by MAX_CELL anywhere, and the means of each channel by MAX_CHANNEL.
# On photographs, JPEG quality 50, half the resolution or noise of ±6 levels stay below this.
MAX_MEAN, MAX_CELL, MAX_CHANNEL = 2.0, 8, 3

# Images at a time, so that memory stays flat.
_BATCH = 50_000


@dataclass(frozen=True)
class Nearest:
    """For each image the nearest near one in an earlier split: its place, -1 where there is none,
    and the mean difference of their cells in levels. One in train goes before one in val."""

    other: npt.NDArray[np.int64]
    distance: npt.NDArray[np.float32]


def nearest_in_earlier_split(
    prints: npt.NDArray[np.uint8],
    means: npt.NDArray[np.int16],
    splits: npt.NDArray[np.int8],
    group: npt.NDArray[np.int64],
    chosen: npt.NDArray[np.int64],
) -> Nearest:
    """Among the images at the places `chosen`, with fingerprints [N, 64], channel means [N, C],
    split numbers and groups of equal images, which do not count. Time and memory grow linearly with
    N. Most near images are found (98 % of the pairs in photos.zip), fewer among thousands alike."""
    search = _Search(prints, means, splits)
    for a, b in _candidates(prints, means, chosen):
        useful = (splits[a] != splits[b]) & (group[a] != group[b])
        a, b = a[useful], b[useful]
        # In each direction an image comes once only.
        for later, earlier in ((a, b), (b, a)):
            right = splits[later] > splits[earlier]
            search.improve(later[right], earlier[right])
    search.best[search.other < 0] = 0
    return Nearest(search.other, search.best % _LATER)


def near_pairs(
    prints: npt.NDArray[np.uint8], means: npt.NDArray[np.int16], chosen: npt.NDArray[np.int64]
) -> Iterator[tuple[Places, Places]]:
    """Pairs of near images among those at the places `chosen`, some of them several times."""
    for a, b in _candidates(prints, means, chosen):
        for start in range(0, len(a), _BATCH):
            x, y = a[start : start + _BATCH], b[start : start + _BATCH]
            x, y, _ = _near(prints, means, x, y)
            yield x, y


# Added to the distance of an image in val, so that any in train goes before.
_LATER = np.float32(1000)


class _Search:
    """The nearest near image found so far for each image, and its distance."""

    def __init__(
        self,
        prints: npt.NDArray[np.uint8],
        means: npt.NDArray[np.int16],
        splits: npt.NDArray[np.int8],
    ) -> None:
        self._prints, self._means, self._splits = prints, means, splits
        self.other = np.full(len(prints), -1, np.int64)
        self.best = np.full(len(prints), np.inf, np.float32)

    def improve(self, later: npt.NDArray[np.int64], earlier: npt.NDArray[np.int64]) -> None:
        """Enter images `earlier` where they are nearer to those `later` than what is there."""
        for start in range(0, len(later), _BATCH):
            a, b = later[start : start + _BATCH], earlier[start : start + _BATCH]
            a, b, distance = _near(self._prints, self._means, a, b)
            distance += _LATER * self._splits[b]
            near = distance < self.best[a]
            self.best[a[near]], self.other[a[near]] = distance[near], b[near]


def _near(
    prints: npt.NDArray[np.uint8],
    means: npt.NDArray[np.int16],
    a: npt.NDArray[np.int64],
    b: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Those of the pairs a[i], b[i] that are near, and their distances."""
    for mean in means.T:
        alike = np.abs(mean[a] - mean[b]) <= MAX_CHANNEL
        a, b = a[alike], b[alike]
    x, y = prints[a], prints[b]
    difference = np.maximum(x, y) - np.minimum(x, y)
    close = difference.max(axis=1) <= MAX_CELL
    a, b, difference = a[close], b[close], difference[close]
    distance = difference.mean(axis=1, dtype=np.float32)
    near = distance <= MAX_MEAN
    return a[near], b[near], distance[near]


def _candidates(
    prints: npt.NDArray[np.uint8], means: npt.NDArray[np.int16], chosen: npt.NDArray[np.int64]
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Pairs of images at the places `chosen` that may be near, some of them several times."""
    features = _features(prints, means, chosen)
    brightness = features[:, :4].sum(axis=1) / 4
    for a, b in neighbours(features, brightness, MAX_MEAN):
        yield chosen[a], chosen[b]


def _features(
    prints: npt.NDArray[np.uint8], means: npt.NDArray[np.int16], chosen: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """What hardly differs between near images and much between others: the brightness of the four
    quarters and of the middle, and the colour."""
    result = np.empty((len(chosen), 4 + means.shape[1]), np.float32)
    for start in range(0, len(chosen), _BATCH):
        here = chosen[start : start + _BATCH]
        cells = prints[here].reshape(-1, 8, 8)
        out = result[start : start + _BATCH]
        for column, (i, j) in enumerate(((0, 0), (0, 4), (4, 0), (4, 4), (2, 2))):
            out[:, column] = cells[:, i : i + 4, j : j + 4].mean(axis=(1, 2), dtype=np.float32)
        out[:, 5:] = means[here, 1:] - means[here, :1]
    return result
