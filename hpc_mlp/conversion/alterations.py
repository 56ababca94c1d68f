"""Whether one image is another, made brighter or darker, gray, flipped or turned by quarters."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hpc_mlp.conversion.buckets import Places
from hpc_mlp.conversion.stats import BRIGHTER

Floats = npt.NDArray[np.float32]

# Two images are altered copies where one, brightened, made gray, flipped or turned, differs from
# the other by at most MAX_MEAN levels (of 255) in its 8 × 8 cells on average and by MAX_CELL
# anywhere, and, but for gray, by MAX_CHANNEL in the mean of each channel.
MAX_MEAN, MAX_CELL, MAX_CHANNEL = 2.0, 8, 2
# On average, where it was flipped or turned: no planted copy passed 1.1.
_MAX_TURNED = 1.5
# The difference may be this share of the standard deviation of the cells: what is nearly of one
# tone resembles much.
_MAX_SHARE = 0.1
# The brighter one is so much brighter: 0.25 undoes a darkening to 80 %.
_MIN_GAIN, _MAX_GAIN = 0.03, 0.28
# Levels by which the channels of a gray image and of one in colour differ.
_GRAY, _COLOUR = 1, 3

# Bits, in the order of their names.
CHANGES = ("brightness", "grey", "flip", "turn")
_BRIGHTNESS, _GREY, _FLIP, _TURN = 1, 2, 4, 8


def changes(bits: int) -> list[str]:
    return [name for bit, name in enumerate(CHANGES) if bits >> bit & 1]


# In the folder while it is made.
TONES = "spool-tones"


class Tones:
    """Rows of `stats.Measures.tones` of N images, and the means of the channels, int16 [N, C].
    `release` gives the memory of rows in a file back."""

    def __init__(self, rows: npt.NDArray[np.uint8], means: npt.NDArray[np.int16]) -> None:
        self.rows, self.means = rows, means
        self._file: mmap.mmap | None = None

    @staticmethod
    def mapped(path: Path, means: npt.NDArray[np.int16]) -> Tones:
        with path.open("rb") as file:
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        tones = Tones(np.frombuffer(mapping, np.uint8).reshape(len(means), -1), means)
        tones._file = mapping
        return tones

    def release(self) -> None:
        """Pages of the file that were read no longer count as this process's."""
        if self._file is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._file.madvise(mmap.MADV_DONTNEED)

    def cells(self, places: Places) -> tuple[Floats, Floats]:
        """Luma [n, 64] and gains [n, 2, 64]."""
        values = self.rows[places, :192].astype(np.float32)
        return values[:, :64], values[:, 64:].reshape(-1, 2, 64)

    def luma(self, places: Places) -> Floats:
        return self.rows[places, :64].astype(np.float32)

    def channels(self, places: Places) -> tuple[Floats, Floats]:
        """Means [n, C] and their gains [n, 2, C]."""
        means = self.means[places].astype(np.float32)
        gains = self.rows[places, 192:].astype(np.float32)
        return means, gains.reshape(len(means), 2, means.shape[1])


@dataclass(frozen=True)
class Altered:
    """Pairs of images a[i], b[i], the bits of what was changed, and their difference in levels."""

    a: Places
    b: Places
    bits: npt.NDArray[np.int8]
    distance: Floats

    @staticmethod
    def joined(parts: Sequence[Altered]) -> Altered:
        columns = ([getattr(part, field.name) for part in parts] for field in fields(Altered))
        return Altered(*map(np.concatenate, columns))

    def rows(self) -> Iterator[tuple[int, int, int, float]]:
        columns = (self.a, self.b, self.bits, self.distance)
        return zip(*(column.tolist() for column in columns), strict=True)

    @staticmethod
    def none() -> Altered:
        places = np.empty(0, np.int64)
        return Altered(places, places, np.empty(0, np.int8), np.empty(0, np.float32))


def alterations(tones: Tones, a: Places, b: Places) -> Iterator[Altered]:
    """Those of the pairs a[i], b[i] that are altered copies."""
    yield from _brightened(tones, a, b)
    yield _gray(tones, a, b)
    yield from _symmetric(tones, a, b)


def _brightened(tones: Tones, a: Places, b: Places) -> Iterator[Altered]:
    """The darker one, brightened by the factor that fits best, is the other one."""
    swapped = tones.means[a].sum(axis=1) > tones.means[b].sum(axis=1)
    dark, light = np.where(swapped, b, a), np.where(swapped, a, b)
    right = np.ones(len(a), bool)
    for mean in tones.means.T:
        low, high = mean[dark], mean[light]
        right &= (high >= low - MAX_CHANNEL) & (high <= low * (1 + _MAX_GAIN) + MAX_CHANNEL)
    dark, light = dark[right], light[right]
    y, high = tones.luma(light), tones.means[light].astype(np.float32)
    cells, channels = _models(*tones.cells(dark)), _models(*tones.channels(dark))
    for (least, most), (base, slope), (mean, mean_slope) in zip(
        _RANGES, cells, channels, strict=True
    ):
        power = np.einsum("nc,nc->n", slope, slope)
        factor = np.einsum("nc,nc->n", y - base, slope) / np.maximum(power, 1)
        right = (factor >= least) & (factor <= most)
        right &= np.abs(high - mean - factor[:, None] * mean_slope).max(axis=1) <= MAX_CHANNEL
        difference = np.abs(y - base - factor[:, None] * slope)[right]
        yield _close(dark[right], light[right], difference, y[right], _BRIGHTNESS)


# The factors for which each of the models holds.
_RANGES = ((_MIN_GAIN, _MAX_GAIN), (_MIN_GAIN, BRIGHTER[0]), (BRIGHTER[0], _MAX_GAIN))


def _models(values: Floats, gain: Floats) -> Iterator[tuple[Floats, Floats]]:
    """What `values` become by a factor of 1 + f, as (base, slope) of base + f · slope: by the
    factor alone, which undoes a darkening; and stopping at white, where f is below 0.1 and above.
    There a value gains min(f · value, 255 − value): the gain for each 100 % is linear in 1 / f, and
    what is gained in f."""
    less, more = gain[:, 0], gain[:, 1]
    yield values, values
    yield values, less
    yield values + np.float32(0.2) * (less - more), 2 * more - less


def _gray(tones: Tones, a: Places, b: Places) -> Altered:
    """One is gray, the other has its luma."""
    one, other = np.ptp(tones.means[a], axis=1), np.ptp(tones.means[b], axis=1)
    low, high = np.minimum(one, other), np.maximum(one, other)
    right = (low <= _GRAY) & (high > _COLOUR)
    a, b = a[right], b[right]
    x, y = tones.luma(a), tones.luma(b)
    return _close(a, b, np.abs(x - y), y, _GREY)


def _symmetric(tones: Tones, a: Places, b: Places) -> Iterator[Altered]:
    """One is the other, flipped or turned."""
    for mean in tones.means.T:
        alike = np.abs(mean[a] - mean[b]) <= MAX_CHANNEL
        a, b = a[alike], b[alike]
    x, y = tones.luma(a), tones.luma(b)
    for order, bits in _SYMMETRIES:
        difference = np.abs(x[:, order] - y)
        yield _close(a, b, difference, y, bits, _MAX_TURNED)


def _close(
    a: Places, b: Places, difference: Floats, cells: Floats, bits: int, most: float = MAX_MEAN
) -> Altered:
    distance = difference.mean(axis=1)
    near = (distance <= most) & (difference.max(axis=1, initial=0) <= MAX_CELL)
    near &= distance <= _MAX_SHARE * cells.std(axis=1)
    every = np.full(int(near.sum()), bits, np.int8)
    return Altered(a[near], b[near], every, distance[near])


def _symmetries() -> Iterator[tuple[npt.NDArray[np.int64], int]]:
    """The orders of 8 × 8 cells in the seven flips and turns, and the bits of each."""
    cells = np.arange(64).reshape(8, 8)
    for turns in range(4):
        for flipped in (False, True):
            if turns or flipped:
                order = np.rot90(cells[:, ::-1] if flipped else cells, turns)
                # A flip and half a turn are another flip.
                turned = (turns == 2 and not flipped) or turns % 2
                yield order.ravel(), _FLIP * flipped | _TURN * bool(turned)


_SYMMETRIES = tuple(_symmetries())
