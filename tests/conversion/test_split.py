"""Splits: what the archive brings stays, equal images stay together, every class gets its share, at
random."""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from hpc_mlp.conversion.split import (
    TEST,
    TRAIN,
    VAL,
    assign,
    groups_of_equals,
    random_keys,
    shuffled,
)

FRACTIONS = st.sampled_from([0.0, 0.05, 0.1, 0.25, 0.4])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=40))
def test_equal_images_carry_the_place_of_the_first(digests: list[tuple[int, int]]) -> None:
    found = groups_of_equals(np.array(digests, np.uint64).reshape(-1, 2))
    assert found.dtype == np.int64 and found.tolist() == [
        digests.index(digest) for digest in digests
    ]


def none(count: int) -> npt.NDArray[np.int8]:
    return np.full(count, -1, np.int8)


@settings(max_examples=200, deadline=None)
@given(
    count=st.integers(1, 200),
    classes=st.integers(1, 4),
    pictures=st.integers(1, 60),
    brought=st.sampled_from([(-1,), (-1, 0), (-1, -1, 1), (-1, -1, 2), (-1, 0, 1, 2), (2,)]),
    val=FRACTIONS,
    test=FRACTIONS,
    seed=st.integers(0, 2**63 - 1),
)
def test_a_split_is_cut_out_of_train_by_class(
    count: int,
    classes: int,
    pictures: int,
    brought: tuple[int, ...],
    val: float,
    test: float,
    seed: int,
) -> None:
    """Images of some pictures: equal pictures are a group, of whatever classes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    # Groups of very different sizes.
    picture = (pictures * rng.random(count) ** 2).astype(int)
    given_splits = rng.choice(brought, count)
    group = groups_of_equals(np.stack([picture, picture], axis=1).astype(np.uint64))
    splits = assign(labels.astype(np.int32), group, given_splits.astype(np.int8), seed, val, test)
    assert splits.dtype == np.int8 and set(splits.tolist()) <= {TRAIN, VAL, TEST}
    kept = given_splits > TRAIN
    assert (splits[kept] == given_splits[kept]).all()
    pool = np.flatnonzero(~kept)
    want = {s: 0.0 if (given_splits == s).any() else f for s, f in ((VAL, val), (TEST, test))}
    # The groups of each class of the first image, as sizes by split.
    members: dict[int, list[int]] = {}
    for i in pool.tolist():
        members.setdefault(int(group[i]), []).append(i)
    by_class: dict[int, dict[int, list[int]]] = {}
    for places in members.values():
        (split,) = {int(s) for s in splits[places]}
        by_class.setdefault(int(labels[places[0]]), {TRAIN: [], VAL: [], TEST: []})[split].append(
            len(places)
        )
    for sizes in by_class.values():
        count = sum(map(len, sizes.values()))
        total = sum(map(sum, sizes.values()))
        assert sizes[TRAIN]
        # test comes first, then val, each of the smallest groups that are left
        assert max(sizes[TEST], default=0) <= min(sizes[VAL], default=total) <= total
        assert max(sizes[VAL] or sizes[TEST], default=0) <= min(sizes[TRAIN])
        left = sorted(size for here in sizes.values() for size in here)
        for split, reserve in ((TEST, 1 + (want[VAL] > 0 and count > 2)), (VAL, 1)):
            target = max(1, int(total * want[split] + 0.5)) if want[split] else 0
            here, left = left[: len(sizes[split])], left[len(sizes[split]) :]
            assert sum(here) <= target or (target and len(here) == 1)
            assert len(left) >= (reserve if here else 1)
            room = len(left) > reserve and target > 0
            # no group more would have fitted
            assert not room or sum(here) >= target or (here and sum(here) + left[0] > target)


@pytest.mark.parametrize(
    "count, fraction, wanted", [(10, 0.25, 3), (10, 0.24, 2), (100, 0.1, 10), (3, 0.1, 1)]
)
def test_shares_are_rounded_and_never_nothing(count: int, fraction: float, wanted: int) -> None:
    splits = assign(np.zeros(count, np.int32), np.arange(count), none(count), 0, fraction, fraction)
    assert Counter(splits.tolist()) == {TRAIN: count - 2 * wanted, VAL: wanted, TEST: wanted}


def test_where_two_groups_are_left_the_test_split_goes_before_the_validation_split() -> None:
    for count, wanted in ((1, [TRAIN]), (2, [TRAIN, TEST]), (3, [TRAIN, VAL, TEST])):
        splits = assign(np.zeros(count, np.int32), np.arange(count), none(count), 0, 0.1, 0.1)
        assert sorted(splits.tolist()) == wanted


def test_every_image_is_as_likely_in_the_test_split_as_another() -> None:
    """Of equal groups; and independently from one class and one seed to the next."""
    labels = np.repeat(np.arange(2, dtype=np.int32), 10)
    drawn = np.array(
        [assign(labels, np.arange(20), none(20), seed, 0.2, 0.2) for seed in range(1000)]
    )
    for split in (VAL, TEST):
        counts = (drawn == split).sum(0)
        assert (counts.reshape(2, 10).sum(1) == 2000).all() and stats.chisquare(
            counts
        ).pvalue > 0.001
    classes = [(drawn[:, c * 10 : c * 10 + 10] == TEST) for c in (0, 1)]
    together = (classes[0] & classes[1]).sum()
    # 10 · 1000 · 0.2²; a standard deviation is about 19
    assert abs(together - 400) < 80


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**63 - 1), places=st.sets(st.integers(0, 99)))
def test_a_shuffle_keeps_its_places_and_their_order_among_fewer(
    seed: int, places: set[int]
) -> None:
    chosen = np.array(sorted(places), np.int64)
    mixed = shuffled(chosen, seed, 100).tolist()
    assert sorted(mixed) == sorted(places)
    assert mixed == [i for i in shuffled(np.arange(100), seed, 100).tolist() if i in places]


def test_keys_are_random_numbers() -> None:
    streams = [
        random_keys(seed, 5000, stream) for seed, stream in ((0, 1), (0, 2), (1, 1), (2**63 - 1, 1))
    ]
    for keys in streams:
        assert keys.dtype == np.uint64 and len(set(keys.tolist())) == 5000
        assert np.array_equal(keys[:100], random_keys(0, 100, 1)) == (keys is streams[0])
        for shift in (0, 24, 48):
            part = (keys >> np.uint64(shift)).astype(np.uint16)
            assert stats.kstest((part + 0.5) / 65536, "uniform").pvalue > 0.001
    assert np.abs(np.corrcoef(np.array(streams).astype(float)) - np.eye(4)).max() < 0.06


def test_what_a_seed_means_is_pinned() -> None:
    """A change here changes every split that is drawn and every order within the shards."""
    pinned = {
        (0, 1): [17439517091078023575, 15399337584296980961],
        (3, 1): [3931593816302393341, 18214090019104655468],
        (3, 2): [12744811621658853295, 6016390238804745101],
    }
    assert {place: random_keys(place[0], 2, place[1]).tolist() for place in pinned} == pinned
    one_class = assign(np.zeros(12, np.int32), np.arange(12), none(12), 3, 0.25, 0.25)
    assert one_class.tolist() == [2, 0, 0, 2, 1, 1, 1, 0, 2, 0, 0, 0]
    assert shuffled(np.arange(6), 3, 6).tolist() == [4, 5, 3, 1, 2, 0]
