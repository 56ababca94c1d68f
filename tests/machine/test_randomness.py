"""Draws are functions of (seed, purpose, position) alone: the published generator at the stated
place."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from hpc_mlp.machine import randomness
from hpc_mlp.machine.randomness import (
    DROPOUT,
    augmentation_draws,
    draws,
    dropout_draws,
    epoch_order,
    mixup_shares,
    window_shuffles,
)

SEEDS = st.integers(0, 2**31 - 1)
SMALL = st.integers(0, 1000)


def philox(key: tuple[int, int], counter: int) -> list[int]:
    """Four words of Philox 4×64-10, after Salmon et al. (SC 2011), section 3.2 and table 2."""
    mask = 2**64 - 1
    x0, x1, x2, x3 = (counter >> shift & mask for shift in (0, 64, 128, 192))
    k0, k1 = key
    for _ in range(10):
        first, second = x0 * 0xD2E7470EE14C6C93, x2 * 0xCA5A826395121157
        x0, x1, x2, x3 = second >> 64 ^ x1 ^ k0, second & mask, first >> 64 ^ x3 ^ k1, first & mask
        k0, k1 = k0 + 0x9E3779B97F4A7C15 & mask, k1 + 0xBB67AE8584CAA73B & mask
    return [x0, x1, x2, x3]


@settings(max_examples=30, deadline=None)
@given(purpose=SMALL, seed=SEEDS, position=st.tuples(SMALL, SMALL, SMALL), count=st.integers(0, 13))
def test_draws_are_philox_at_their_position(
    purpose: int, seed: int, position: tuple[int, int, int], count: int
) -> None:
    """The key is (seed, purpose); the position stands in the counter's upper words, blocks in the
    lowest (from 1)."""
    place = sum(part << 64 * (i + 1) for i, part in enumerate(position))
    words = [word for block in range(1, 5) for word in philox((seed, purpose), place + block)]
    assert draws(purpose, seed, position, count).tolist() == words[:count]


def test_threads_draw_side_by_side() -> None:
    """Each has a generator of its own."""
    places = [(seed, (seed % 7, 3, 1)) for seed in range(400)]

    def draw(place: tuple[int, tuple[int, int, int]]) -> list[int]:
        words: list[int] = draws(DROPOUT, *place, 50).tolist()
        return words

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(draw, places)) == list(map(draw, places))


@settings(max_examples=50, deadline=None)
@given(seed=SEEDS, epoch=SMALL, count=st.integers(1, 300))
def test_an_epochs_order_is_a_permutation_of_its_own(seed: int, epoch: int, count: int) -> None:
    order = epoch_order(seed, epoch, count)
    assert order.dtype == np.int64 and sorted(order.tolist()) == list(range(count))
    if count > 20:
        others = [epoch_order(seed + 1, epoch, count), epoch_order(seed, epoch + 1, count)]
        assert not any(np.array_equal(order, other) for other in others)


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, kinds=st.integers(1, 200))
def test_equal_keys_keep_their_order(seed: int, kinds: int) -> None:
    """They hardly ever occur: here few words are drawn again and again, or one of 200 twice."""
    keys = np.random.default_rng(seed).integers(0, kinds, 200, np.uint64)
    keys[:150] += np.uint64(1000) * np.arange(150, dtype=np.uint64) if kinds > 100 else np.uint64(0)
    with patch.object(randomness, "draws", lambda *_: keys):
        assert epoch_order(seed, 0, 200).tolist() == sorted(range(200), key=keys.__getitem__)


def test_every_order_is_as_likely_as_another() -> None:
    orders = [
        tuple(epoch_order(seed, epoch, 4).tolist()) for seed in range(60) for epoch in range(40)
    ]
    counts = np.unique(orders, axis=0, return_counts=True)[1]
    assert len(counts) == 24 and stats.chisquare(counts).pvalue > 0.001


@settings(max_examples=50, deadline=None)
@given(
    seed=SEEDS,
    place=st.tuples(SMALL, SMALL, st.integers(0, 9)),
    size=st.integers(1, 40),
    width=st.integers(1, 40),
)
def test_dropout_draws_of_more_images_begin_with_those_of_fewer(
    seed: int, place: tuple[int, int, int], size: int, width: int
) -> None:
    more = dropout_draws(seed, *place, size + 3, width)
    assert more.shape == (size + 3, width) and more.dtype == np.int16
    assert np.array_equal(more[:size], dropout_draws(seed, *place, size, width))
    words = draws(DROPOUT, seed, place, (size * width + 3) // 4)
    assert dropout_draws(seed, *place, size, width).tobytes() == words.tobytes()[: 2 * size * width]


@pytest.mark.parametrize("kind", ["dropout", "augmentation"])
def test_draws_are_uniform_and_differ_by_seed_epoch_step_and_layer(kind: str) -> None:
    def at(seed: int, epoch: int, step: int, layer: int) -> NDArray[np.floating]:
        if kind == "dropout":
            return (dropout_draws(seed, epoch, step, layer, 50, 40).ravel() + 32768.0) / 65536
        return augmentation_draws(seed, epoch, step, 50, 40).ravel()

    places = [(3, 1, 2, 0), (4, 1, 2, 0), (3, 2, 2, 0), (3, 1, 3, 0), (3, 2, 1, 0), (1, 3, 2, 0)]
    places += [(3, 1, 2, 1)] if kind == "dropout" else []
    tables = [at(*place) for place in places]
    for table in tables:
        assert stats.kstest(table, "uniform").pvalue > 0.001
    correlation = np.corrcoef(tables) - np.eye(len(tables))
    # 4.5 standard deviations of 2,000 independent pairs
    assert np.abs(correlation).max() < 0.1


def test_augmentation_draws_belong_to_their_image() -> None:
    few, many = augmentation_draws(5, 1, 2, 3, 7), augmentation_draws(5, 1, 2, 9, 7)
    assert few.dtype == np.float32 and few.shape == (3, 7) and np.array_equal(few, many[:3])


def test_windows_are_shuffled_apart_from_what_is_augmented() -> None:
    streams = [window_shuffles(*place).random(2000) for place in ((3, 1), (4, 1), (3, 2))]
    streams += [augmentation_draws(3, 1, 0, 2000, 1).ravel().astype(np.float64)]
    assert np.abs(np.corrcoef(streams) - np.eye(4)).max() < 0.1
    assert np.array_equal(streams[0], window_shuffles(3, 1).random(2000))


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_mixups_shares_are_beta(alpha: float) -> None:
    tables = [
        mixup_shares(*place, 1500, alpha)
        for place in ((3, 1, 2), (4, 1, 2), (3, 2, 2), (3, 1, 3), (1, 3, 2))
    ]
    for shares in tables:
        assert (
            shares.dtype == np.float32
            and stats.kstest(shares, stats.beta(alpha, alpha).cdf).pvalue > 0.001
        )
    assert np.abs(np.corrcoef(tables) - np.eye(5)).max() < 0.12
    assert np.array_equal(mixup_shares(3, 1, 2, 1500, alpha), tables[0])


def test_what_a_seed_means_is_pinned() -> None:
    """A change here changes the results of every run, or of all that are streamed or have mixup."""
    assert epoch_order(3, 1, 8).tolist() == [2, 1, 7, 5, 3, 6, 4, 0]
    assert dropout_draws(3, 1, 2, 1, 1, 5).tolist() == [[25658, 7896, -14706, 22291, -9449]]
    augmented = [0.7950099110603333, 0.2473146915435791, 0.41128700971603394]
    assert augmentation_draws(3, 1, 2, 1, 3).tolist() == [augmented]
    assert window_shuffles(3, 1).integers(2**32, size=4).tolist() == [
        3499417596,
        3178689610,
        2240795659,
        3643617174,
    ]
    shares = [0.0699959546327591, 0.46666762232780457, 0.36553677916526794, 0.038090210407972336]
    assert mixup_shares(3, 1, 2, 4, 0.5).tolist() == shares
