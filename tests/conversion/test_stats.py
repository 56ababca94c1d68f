"""Sums, statistics and fingerprints of images against whole-number arithmetic."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_mlp.conversion.stats import measure
from hpc_mlp.data.moments import mean_and_std

SIZES = st.one_of(st.integers(1, 9), st.integers(1, 300))
IMAGES = st.tuples(st.integers(1, 3), SIZES, SIZES, st.sampled_from([1, 3]), st.integers(0, 2**31))


def drawn(of: tuple[int, int, int, int, int]) -> npt.NDArray[np.uint8]:
    *shape, seed = of
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@settings(max_examples=40, deadline=None)
@given(IMAGES)
def test_sums_and_statistics_are_exact_for_any_shape(of: tuple[int, int, int, int, int]) -> None:
    images = drawn(of)
    count, height, width, channels = images.shape
    measures, wide = measure(images), images.astype(np.int64)
    assert measures.sums.dtype == measures.squares.dtype == np.int64
    assert (measures.sums == wide.sum((1, 2))).all() and (
        measures.squares == (wide**2).sum((1, 2))
    ).all()
    sums, squares = measures.sums.sum(0).tolist(), measures.squares.sum(0).tolist()
    mean, std = mean_and_std(sums, squares, count * height * width)
    values = images.reshape(-1, channels) / 255
    assert np.allclose(mean, values.mean(0), atol=1e-12, rtol=0)
    assert np.allclose(std, values.std(0), atol=1e-9, rtol=0)


def test_equal_pixels_have_no_spread_at_all() -> None:
    assert mean_and_std([7 * 3_000_000], [49 * 3_000_000], 3_000_000)[1] == (0.0,)


def test_sums_over_many_white_rows_are_exact() -> None:
    """float32 holds whole numbers up to 2^24 = 258 · 255²."""
    measures = measure(np.full((1, 5000, 3, 1), 255, np.uint8))
    assert measures.sums.tolist() == [[15_000 * 255]] and measures.squares.tolist() == [
        [15_000 * 255**2]
    ]


def cells(length: int) -> list[slice]:
    starts = [i * length // 8 for i in range(8)]
    return [slice(a, max(b, a + 1)) for a, b in zip(starts, [*starts[1:], length], strict=True)]


def cell_means(image: npt.NDArray[np.integer], weights: list[int]) -> list[int]:
    """The weighted mean of the channels in 8 × 8 cells; cells of less than a pixel hold one. Halves
    are rounded up."""
    gray = (image.astype(int) * weights).sum(-1)
    found = [gray[r, c] for r in cells(len(image)) for c in cells(image.shape[1])]
    return [
        (2 * int(cell.sum()) + cell.size * sum(weights)) // (2 * cell.size * sum(weights))
        for cell in found
    ]


@settings(max_examples=40, deadline=None)
@given(IMAGES)
def test_fingerprints_are_the_rounded_means_of_8_by_8_cells(
    of: tuple[int, int, int, int, int],
) -> None:
    images = drawn(of)
    channels, found = images.shape[-1], measure(images)
    assert found.prints.dtype == found.tones.dtype == np.uint8
    luma = [299, 587, 114] if channels == 3 else [1]
    for i, image in enumerate(images):
        assert found.prints[i].tolist() == cell_means(image, [1] * channels)
        gains = [np.minimum(image, k * (255 - image.astype(int))) for k in (10, 5)]
        tones = [cell_means(values, luma) for values in (image, *gains)]
        means = [gain.mean((0, 1)).astype(int) for gain in gains]
        assert found.tones[i].tolist() == np.concatenate([*tones, *means]).tolist()


@pytest.mark.parametrize("height, width, channels", [(16, 16, 3), (3, 5, 1)])
def test_fingerprints_of_one_colour_are_its_gray(height: int, width: int, channels: int) -> None:
    colour = np.array([200, 100, 31])[:channels]
    image = np.broadcast_to(colour, (1, height, width, channels)).astype(np.uint8)
    assert set(measure(image).prints.ravel().tolist()) == {round(colour.mean())}
