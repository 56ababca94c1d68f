"""Exact pixel statistics and fingerprints, in integers: the same in any order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

# A fingerprint is the gray image in GRID × GRID cells.
GRID = 8
# How much brighter an image is thought to be made, for its gains.
BRIGHTER = (0.1, 0.2)
# Parts of red, green and blue in the luma, of 1,000 (ITU-R BT.601).
LUMA = (299, 587, 114)
# Measured at a time: what is computed of more is memory that the system must hand out anew each
# time (64 photographs of 224 pixels: 29 ms at once, 18 ms in such pieces).
_PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class Measures:
    """Of N images: sums of values and of squares, int64 [N, C], and fingerprints, the means of
    8 × 8 cells, which re-encoding or resizing moves by a level or two: `prints`, uint8 [N, 64], of
    the gray image (the mean of its channels); `tones`, uint8 [N, 192 + 2 C], of its luma; of the
    luma that it gains by being brightened by 10 and by 20 %, until white, for each 100 %; and the
    means of that gain for each channel, rounded down."""

    sums: npt.NDArray[np.int64]
    squares: npt.NDArray[np.int64]
    prints: npt.NDArray[np.uint8]
    tones: npt.NDArray[np.uint8]


def tones_width(channels: int) -> int:
    return 3 * GRID**2 + 2 * channels


def measure(images: npt.NDArray[np.uint8]) -> Measures:
    """Of images uint8 [N, H, W, C], of which there is one."""
    piece = max(1, _PIECE_BYTES // images[0].nbytes)
    parts = [_measure(images[at : at + piece]) for at in range(0, len(images), piece)]
    if len(parts) == 1:
        return parts[0]
    columns = ([getattr(part, field.name) for part in parts] for field in fields(Measures))
    return Measures(*map(np.concatenate, columns))


def _measure(images: npt.NDArray[np.uint8]) -> Measures:
    """float32 is the quickest to add up in, and exact here: no sum below that is taken in it
    reaches 2^24."""
    n, height, width, channels = images.shape
    values = images.reshape(n, height, width * channels).astype(np.float32)
    bands = _add_rows(values, _edges(height, GRID), np.float32)
    # Bands of less than a row overlap.
    sums = bands.sum(axis=1) if height >= GRID else values.sum(axis=1)
    # 256 · 255² < 2^24. einsum squares and adds in one go: a third of the time.
    blocks = [values[:, start : start + 256] for start in range(0, height, 256)]
    squares = np.stack([np.einsum("nhx,nhx->nx", block, block) for block in blocks], axis=1)
    # Memory for the gains, which the system would have to hand out anew.
    del values, blocks
    prints = _fingerprints(bands, height, (1,) * channels)
    luma = LUMA if channels == 3 else (1,)
    lumas = _fingerprints(bands, height, luma) if channels == 3 else prints
    return Measures(
        _by_channel(sums[:, None], channels),
        _by_channel(squares, channels),
        prints,
        np.concatenate([lumas, *_gains(images, luma)], axis=1),
    )


def _gains(images: npt.NDArray[np.uint8], weights: tuple[int, ...]) -> list[npt.NDArray[np.uint8]]:
    n, height, width, channels = images.shape
    rows = images.reshape(n, height, width * channels)
    left, gain = ~rows, np.empty_like(rows)
    # A cell of so few rows adds up to less than 2^16.
    dtype = np.uint16 if height <= 256 * GRID else np.uint32
    prints, means = [], []
    for factor in BRIGHTER:
        # A value x gains factor · min(x, (255 − x) / factor). (np.minimum of two arrays is seven
        # times as fast as that of an array and a number.)
        steep = round(1 / factor)
        gain[:] = 255 // steep
        np.minimum(left, gain, out=gain)
        gain *= np.uint8(steep)
        np.minimum(rows, gain, out=gain)
        bands = _add_rows(gain, _edges(height, GRID), dtype)
        prints.append(_fingerprints(bands, height, weights))
        sums = (bands if height >= GRID else gain).sum(axis=1, dtype=np.uint32)
        mean = _by_channel(sums[:, None], channels) // (height * width)
        means.append(mean.astype(np.uint8))
    return [*prints, *means]


def _add_rows(
    values: npt.NDArray[Any], starts: npt.NDArray[np.int64], dtype: type[np.number[Any]]
) -> npt.NDArray[Any]:
    """Sums of the rows from each start to the next, at least one row: [N, H, X] → [N, len(starts),
    X]. (`np.add.reduceat` does the same, three times slower.)"""
    stops = np.append(starts[1:], values.shape[1])
    bands = [
        values[:, a : max(b, a + 1)].sum(axis=1, dtype=dtype)
        for a, b in zip(starts.tolist(), stops.tolist(), strict=True)
    ]
    return np.stack(bands, axis=1)


def _by_channel(columns: npt.NDArray[Any], channels: int) -> npt.NDArray[np.int64]:
    n = len(columns)
    sums: npt.NDArray[np.int64] = columns.astype(np.int64).reshape(n, -1, channels).sum(axis=1)
    return sums


def _fingerprints(
    bands: npt.NDArray[Any], height: int, weights: Sequence[int]
) -> npt.NDArray[np.uint8]:
    """Of the weighted mean of the channels."""
    n, rows, columns = bands.shape
    width = columns // len(weights)
    # Weighted sums, and cells of huge images, pass 2^24.
    gray = np.zeros((n, rows, width), np.float64)
    # A sum along an axis of length 3 would take ten times as long.
    for channel, weight in enumerate(weights):
        gray += np.float64(weight) * bands[:, :, channel :: len(weights)]
    across, down = _edges(width, GRID), _edges(height, GRID)
    cells = np.add.reduceat(gray.reshape(n * rows, width), across, axis=1).reshape(n, rows, GRID)
    areas = np.outer(_lengths(down, height), _lengths(across, width)) * sum(weights)
    # Rounded, in whole numbers.
    means = (2 * cells.astype(np.int64) + areas) // (2 * areas)
    return means.astype(np.uint8).reshape(n, rows * GRID)


def _lengths(starts: npt.NDArray[np.int64], stop: int) -> npt.NDArray[np.int64]:
    lengths: npt.NDArray[np.int64] = np.maximum(np.diff(np.append(starts, stop)), 1)
    return lengths


def _edges(length: int, parts: int) -> npt.NDArray[np.int64]:
    """Where `parts` nearly equal parts of `length` begin."""
    return np.arange(parts, dtype=np.int64) * length // parts
