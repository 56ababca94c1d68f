"""Mean and standard deviation of pixels, in whole numbers: the same in any order."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import isqrt


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
