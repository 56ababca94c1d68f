"""Exact pixel statistics and fingerprints, in integers: any order and any number of workers give the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import isqrt

import numpy as np
import numpy.typing as npt

GRID = 16  # a fingerprint compares GRID rows of GRID + 1 cells


@dataclass(frozen=True)
class PixelStats:
    """Per channel, in [0, 1]; `std` is the population's."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_images: int


def pixel_stats(sums: Sequence[int], squares: Sequence[int], num_images: int, num_pixels: int) -> PixelStats:
    """From the sums of the values (0–255) and of their squares over `num_images` images, each of
    `num_pixels` pixels: computed in whole numbers, rounded once."""
    count = num_images * num_pixels
    mean = tuple(float(Fraction(int(s), 255 * count)) for s in sums)
    scale = 1 << 64  # the root is taken of a whole number, so that equal values have a std of exactly 0
    std = tuple(
        float(Fraction(isqrt((count * int(q) - int(s) ** 2) * scale * scale), 255 * count * scale))
        for s, q in zip(sums, squares, strict=True)
    )
    return PixelStats(mean, std, num_images)


def image_sums(images: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Sums of values and of squares, each int64 [N, C], of images uint8 [N, H, W, C]."""
    n, height, width, channels = images.shape
    rows = images.reshape(n, height, width * channels)
    sums = rows.sum(axis=1, dtype=np.uint32)  # at most 65 million rows fit
    squares = np.multiply(rows, rows, dtype=np.uint16).sum(axis=1, dtype=np.uint64)
    return (
        sums.reshape(n, width, channels).sum(axis=1, dtype=np.int64),
        squares.reshape(n, width, channels).sum(axis=1, dtype=np.int64),
    )


def fingerprints(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """256 bits, uint64 [N, 4], of images uint8 [N, H, W, C]: for each of 16 × 16 cells of the gray image,
    whether its right neighbour is brighter. Re-encoding or resizing an image turns few of the bits."""
    n, height, width, channels = images.shape
    rows = images.reshape(n, height, width * channels)
    down = _edges(height, GRID)
    bands = np.add.reduceat(rows, down, axis=1, dtype=np.uint32).reshape(n, GRID, width, channels)
    across = _edges(width, GRID + 1)
    cells = np.add.reduceat(bands.sum(axis=3, dtype=np.uint32), across, axis=2).astype(np.int64)
    widths = np.maximum(np.diff([*across, width]), 1)
    bits = cells[:, :, 1:] * widths[:-1] > cells[:, :, :-1] * widths[1:]  # compares means without dividing
    return np.packbits(bits.reshape(n, -1), axis=1).view(np.uint64)


def _edges(length: int, parts: int) -> npt.NDArray[np.int64]:
    return np.arange(parts, dtype=np.int64) * length // parts
