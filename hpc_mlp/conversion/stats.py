"""Exact pixel statistics and fingerprints, in integers: the same in any order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import isqrt

import numpy as np
import numpy.typing as npt

# A fingerprint is the gray image in GRID × GRID cells.
GRID = 8


def mean_and_std(
    sums: Sequence[int], squares: Sequence[int], num_values: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation (the population's) of each channel, in [0, 1], from the sums of
    its `num_values` values (0–255) and of their squares: in whole numbers, rounded once."""
    mean = tuple(float(Fraction(int(s), 255 * num_values)) for s in sums)
    # The root is taken of a whole number, so that equal values have a std of exactly 0.
    scale = 1 << 64
    std = tuple(
        float(
            Fraction(
                isqrt((num_values * int(q) - int(s) ** 2) * scale * scale), 255 * num_values * scale
            )
        )
        for s, q in zip(sums, squares, strict=True)
    )
    return mean, std


@dataclass(frozen=True)
class Measures:
    """Of N images: sums of values and of squares, int64 [N, C], and fingerprints, uint8 [N, 64]:
    the means of 8 × 8 cells of the gray image. Re-encoding or resizing moves them a level or
    two."""

    sums: npt.NDArray[np.int64]
    squares: npt.NDArray[np.int64]
    prints: npt.NDArray[np.uint8]


def measure(images: npt.NDArray[np.uint8]) -> Measures:
    """Of images uint8 [N, H, W, C]. float32 is the quickest to add up in, and exact here: no sum
    below that is taken in it reaches 2^24."""
    n, height, width, channels = images.shape
    values = images.reshape(n, height, width * channels).astype(np.float32)
    bands = _add_rows(values, _edges(height, GRID))
    # Bands of less than a row overlap.
    sums = bands.sum(axis=1) if height >= GRID else values.sum(axis=1)
    # 256 · 255² < 2^24. einsum squares and adds in one go: a third of the time.
    blocks = [values[:, start : start + 256] for start in range(0, height, 256)]
    squares = np.stack([np.einsum("nhx,nhx->nx", block, block) for block in blocks], axis=1)
    return Measures(
        _by_channel(sums[:, None], channels),
        _by_channel(squares, channels),
        _fingerprints(bands, height, channels),
    )


def _add_rows(
    values: npt.NDArray[np.float32], starts: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """Sums of the rows from each start to the next, at least one row: [N, H, X] → [N, len(starts),
    X]. (`np.add.reduceat` does the same, three times slower.)"""
    stops = np.append(starts[1:], values.shape[1])
    bands = [
        values[:, a : max(b, a + 1)].sum(axis=1)
        for a, b in zip(starts.tolist(), stops.tolist(), strict=True)
    ]
    return np.stack(bands, axis=1)


def _by_channel(columns: npt.NDArray[np.float32], channels: int) -> npt.NDArray[np.int64]:
    n = len(columns)
    sums: npt.NDArray[np.int64] = columns.astype(np.int64).reshape(n, -1, channels).sum(axis=1)
    return sums


def _fingerprints(
    bands: npt.NDArray[np.float32], height: int, channels: int
) -> npt.NDArray[np.uint8]:
    n, rows, columns = bands.shape
    width = columns // channels
    gray: npt.NDArray[np.floating] = bands[:, :, 0::channels].copy()
    # A sum along an axis of length 3 would take ten times as long.
    for channel in range(1, channels):
        gray += bands[:, :, channel::channels]
    across, down = _edges(width, GRID), _edges(height, GRID)
    # Cells of huge images pass 2^24.
    gray = gray.astype(np.float64).reshape(n * rows, width)
    cells = np.add.reduceat(gray, across, axis=1).reshape(n, rows, GRID)
    areas = np.outer(_lengths(down, height), _lengths(across, width)) * channels
    # Rounded, in whole numbers.
    means = (2 * cells.astype(np.int64) + areas) // (2 * areas)
    return means.astype(np.uint8).reshape(n, rows * GRID)


def _lengths(starts: npt.NDArray[np.int64], stop: int) -> npt.NDArray[np.int64]:
    lengths: npt.NDArray[np.int64] = np.maximum(np.diff(np.append(starts, stop)), 1)
    return lengths


def _edges(length: int, parts: int) -> npt.NDArray[np.int64]:
    """Where `parts` nearly equal parts of `length` begin."""
    return np.arange(parts, dtype=np.int64) * length // parts
