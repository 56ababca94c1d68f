"""The statistics under the table: against scipy and statsmodels, against the same thing written out
in loops, and by simulation (tools/simulate_comparison.py)."""

from __future__ import annotations

import math
import sys
import warnings
from itertools import accumulate, combinations
from pathlib import Path

import numpy as np
import pandas
import pytest
import scipy.stats
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from statsmodels.formula.api import ols
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests

from hpc_mlp.reporting import pooled
from hpc_mlp.reporting.pooled import (
    Differences,
    Moments,
    detectable,
    differences,
    moments,
    seeds_needed,
)
from hpc_mlp.reporting.single import holm, mcnemar, paired_interval

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import simulate_comparison as simulation

counts = st.integers(0, 3000)
correctness = st.tuples(st.integers(2, 5), st.integers(2, 5), st.integers(2, 30)).flatmap(
    lambda shape: arrays(np.float64, shape, elements=st.sampled_from([0.0, 1.0, 1.0, 0.5]))
)


def against_first(num_variants: int) -> list[tuple[int, int]]:
    return [(v, 0) for v in range(1, num_variants)]


def random_moments(
    num_variants: int, num_seeds: int, seed: int, image_sd: float = 0.002
) -> Moments:
    rng = np.random.default_rng(seed)
    accuracy = (
        0.88
        + rng.normal(0, 0.01, (num_variants, 1))
        + rng.normal(0, 0.006, (num_variants, num_seeds))
    )
    loads = rng.normal(0, image_sd, (num_variants, num_variants))
    return Moments(accuracy, loads @ loads.T, 10_000)


# Single runs


@settings(deadline=None)
@given(counts, counts)
def test_mcnemar_is_the_exact_sign_test(gained: int, lost: int) -> None:
    """Counted in whole numbers, and rounded once: of `count` throws of a coin, the share in which
    the rarer side comes up at most `fewer` times, and twice that."""
    count, fewer = gained + lost, min(gained, lost)
    ways = accumulate(range(fewer), lambda n, k: n * (count - k) // (k + 1), initial=1)
    expected = min(1.0, sum(ways) / 2 ** (count - 1)) if count else 1.0
    # Below 1e-308 a double has fewer digits.
    assert mcnemar(gained, lost) == pytest.approx(expected, rel=1e-9, abs=1e-318)
    assert mcnemar(gained, gained + 1) <= 1


@given(st.integers(0, 100), st.integers(1, 100))
def test_mcnemar_is_statsmodels_exact_test(gained: int, lost: int) -> None:
    expected = statsmodels_mcnemar([[5, gained], [lost, 7]], exact=True).pvalue
    assert mcnemar(gained, lost) == pytest.approx(expected, rel=1e-9, abs=0)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_is_statsmodels(p_values: list[float]) -> None:
    np.testing.assert_allclose(
        holm(p_values), multipletests(p_values, method="holm")[1], atol=1e-12
    )


@given(st.integers(0, 200), st.integers(0, 200), st.integers(400, 2000), st.floats(0.5, 0.999))
def test_interval_of_single_runs(gained: int, lost: int, num_images: int, level: float) -> None:
    low, high = paired_interval(gained, lost, num_images, level)
    # The differences of correctness, one more on either side, image by image.
    each = np.zeros(num_images + 2)
    each[: gained + 1], each[gained + 1 : gained + lost + 2] = 1, -1
    expected = scipy.stats.norm.interval(level, each.mean(), each.std() / math.sqrt(each.size))
    assert (low, high) == pytest.approx(expected, abs=1e-12)
    assert paired_interval(lost, gained, num_images, level) == pytest.approx((-high, -low))


def test_interval_of_single_runs_covers() -> None:
    rng = np.random.default_rng(0)
    for p_gain, p_loss, num_images in ((0.01, 0.004, 300), (0.1, 0.07, 500), (0.002, 0.002, 1000)):
        draws = rng.multinomial(num_images, [p_gain, p_loss, 1 - p_gain - p_loss], size=4000)
        spans = np.array([paired_interval(int(a), int(b), num_images) for a, b, _ in draws])
        covered = (spans[:, 0] <= p_gain - p_loss) & (p_gain - p_loss <= spans[:, 1])
        assert 0.935 < covered.mean() < (0.97 if p_gain > 0.05 else 1.0)


# Parts of the variance


@settings(deadline=None, max_examples=20)
@given(correctness)
def test_moments_are_those_of_a_two_way_anova(correct: NDArray[np.float64]) -> None:
    found, pairs = moments(correct), list(combinations(range(len(correct)), 2))
    np.testing.assert_allclose(found.accuracy, correct.mean(2))
    assert found.num_images == correct.shape[2]
    for i, j in pairs:
        table = correct[i] - correct[j]
        seeds, images = np.indices(table.shape)
        frame = pandas.DataFrame({"d": table.ravel(), "s": seeds.ravel(), "i": images.ravel()})
        with warnings.catch_warnings():
            # A table without any variance.
            warnings.simplefilter("ignore")
            anova = sm.stats.anova_lm(ols("d ~ C(s) + C(i)", frame).fit())
        _, of_images, rest = anova["sum_sq"] / anova["df"] / table.size
        apart = np.eye(len(correct))[i] - np.eye(len(correct))[j]
        assert apart @ found.images @ apart == pytest.approx(of_images - rest, abs=1e-12)


def by_hand(found: Moments, pairs: list[tuple[int, int]], draws: int) -> dict[str, list[float]]:
    """`pooled.differences`, written out: one draw, one difference, one seed after the other."""
    num_variants, num_seeds = found.accuracy.shape
    trust = (num_seeds - 1) / num_seeds

    def parts(a: NDArray[np.float64], trust: float) -> tuple[list[float], float, list[float]]:
        grand = a.mean()
        rest = [
            [(a[v, s] - a[v].mean() - a[:, s].mean() + grand) ** 2 for s in range(num_seeds)]
            for v in range(num_variants)
        ]
        ms = sum(map(sum, rest)) / ((num_variants - 1) * (num_seeds - 1))
        seeds = []
        for i, j in pairs:
            own = float(np.var(a[i] - a[j], ddof=1))
            seeds.append((max(own, 2 * ms) * trust + 2 * ms * (1 - trust)) / num_seeds)
        return [sum(row) / (num_seeds - 1) for row in rest], ms, seeds

    rows, ms, seeds = parts(found.accuracy, trust)
    spread = [1.0] * num_variants
    if num_variants > 2:
        grubbs = [num_variants / (num_variants - 2) * (row / ms - 1 / num_variants) for row in rows]
        spread = [trust * max(g, 0.0) + 1 - trust for g in grubbs]
        spread = [s / float(np.mean(spread)) for s in spread]
    images = [found.images[i, i] + found.images[j, j] - 2 * found.images[i, j] for i, j in pairs]
    errors = [math.sqrt(a + b) for a, b in zip(seeds, images, strict=True)]
    estimates = [found.accuracy[i].mean() - found.accuracy[j].mean() for i, j in pairs]
    rng = np.random.default_rng(0)
    runs = rng.standard_normal((draws, num_variants, num_seeds))
    values, vectors = np.linalg.eigh(found.images)
    moved = rng.standard_normal((draws, num_variants)) @ (vectors * np.sqrt(values)).T
    noise = []
    for d in range(draws):
        a = np.array([runs[d, v] * math.sqrt(spread[v]) for v in range(num_variants)])
        _, _, drawn = parts(a, trust if num_seeds > 2 else 0.0)
        noise.append(
            [
                abs(
                    (a[i].mean() - a[j].mean()) / math.sqrt(drawn[c]) * math.sqrt(seeds[c])
                    + moved[d, i]
                    - moved[d, j]
                )
                / errors[c]
                for c, (i, j) in enumerate(pairs)
            ]
        )
    t = [abs(x) / e for x, e in zip(estimates, errors, strict=True)]
    left, adjusted, highest = list(range(len(pairs))), [0.0] * len(pairs), 0.0
    while left:
        c = max(left, key=lambda k: t[k])
        above = sum(max(row[k] for k in left) >= t[c] for row in noise)
        adjusted[c] = highest = max(highest, (above + 1) / (draws + 1))
        left.remove(c)
    single = [(sum(row[c] >= t[c] for row in noise) + 1) / (draws + 1) for c in range(len(pairs))]
    # A |t| above this one has p < 5 %.
    width = sorted((max(row) for row in noise), reverse=True)[math.ceil(0.05 * (draws + 1)) - 2]
    return {
        "difference": estimates,
        "p": single,
        "p_adjusted": adjusted,
        "half": [width * e for e in errors],
    }


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("num_variants", "num_seeds", "every"), [(2, 3, 0), (3, 2, 1), (4, 3, 0), (4, 5, 0), (5, 2, 0)]
)
def test_the_test_is_what_it_says(
    num_variants: int, num_seeds: int, every: bool, seed: int
) -> None:
    found = random_moments(num_variants, num_seeds, seed)
    pairs = list(combinations(range(num_variants), 2)) if every else against_first(num_variants)
    expected, tested = by_hand(found, pairs, 399), differences(found, pairs, draws=399)
    for name in ("difference", "p", "p_adjusted"):
        np.testing.assert_allclose(getattr(tested, name), expected[name], rtol=1e-9, err_msg=name)
    for c, half in enumerate(expected["half"]):
        ends = expected["difference"][c] - half, expected["difference"][c] + half
        shown = expected["p_adjusted"][c] < 0.05
        assert shown or ends[0] <= 0 <= ends[1]
        for end, told in zip(ends, (tested.low[c], tested.high[c]), strict=True):
            cut = shown and end * tested.difference[c] < 0
            assert told == pytest.approx(0.0 if cut else end, abs=1e-12)


def test_of_two_variants_it_is_the_paired_t_test() -> None:
    rng = np.random.default_rng(0)
    for num_seeds in (2, 3, 5):
        accuracy = np.stack([rng.normal(0.9, 0.004, num_seeds), rng.normal(0.88, 0.004, num_seeds)])
        tested = differences(Moments(accuracy, np.zeros((2, 2)), 10_000), [(1, 0)])
        t_test = scipy.stats.ttest_rel(accuracy[1], accuracy[0])
        span = t_test.confidence_interval(0.95)
        assert tested.p[0] == pytest.approx(t_test.pvalue, rel=0.15, abs=0.002)
        assert tested.p_adjusted[0] == tested.p[0]
        if num_seeds > 2:
            assert (tested.low[0], tested.high[0]) == pytest.approx(
                (span.low, span.high), rel=0.06, abs=4e-4
            )


def test_where_only_images_matter_it_is_the_largest_of_correlated_normals() -> None:
    """Steps against scipy: all three, then the two and the one that are left."""
    share = 0.004**2
    found = Moments(np.tile([[0.88], [0.892], [0.891], [0.8895]], 3), np.eye(4) * share / 2, 10_000)
    tested = differences(found, against_first(4))
    error = math.sqrt(share)
    for c, num_left in enumerate((3, 2, 1)):
        t = tested.difference[c] / error
        correlated = scipy.stats.multivariate_normal(np.zeros(num_left), np.eye(num_left) / 2 + 0.5)
        inside = correlated.cdf(
            np.full(num_left, t), lower_limit=np.full(num_left, -t), rng=np.random.default_rng(0)
        )
        assert tested.p_adjusted[c] == pytest.approx(1 - inside, abs=0.002)
        assert tested.p[c] == pytest.approx(2 * scipy.stats.norm.sf(t), abs=0.002)


def test_two_seeds_that_are_each_better_by_another_image_show_nothing() -> None:
    correct = np.ones((2, 2, 24))
    correct[:, :, :4] = 0
    correct[0, 0, 4] = correct[0, 1, 5] = 0
    tested = differences(moments(correct), [(1, 0)])
    assert tested.difference[0] == pytest.approx(1 / 24)
    assert tested.p[0] > 0.2 and tested.low[0] < 0 < tested.high[0]


# Interval, p and what follows


def agrees(tested: Differences) -> None:
    for difference, low, high, p, p_adjusted in zip(
        tested.difference, tested.low, tested.high, tested.p, tested.p_adjusted, strict=True
    ):
        assert -1 <= low <= difference <= high <= 1 and 0 < p <= p_adjusted <= 1
        # Shown, and on which side: never otherwise by the interval than by p.
        assert (p_adjusted < 0.05) == (low >= 0 < difference or high <= 0 > difference)
        assert p_adjusted < 0.05 or low <= 0 <= high


@settings(deadline=None, max_examples=60)
@given(correctness, st.integers(1, 3), st.booleans())
def test_interval_and_p_never_contradict_each_other(
    correct: NDArray[np.float64], families: int, every: bool
) -> None:
    pairs = list(combinations(range(len(correct)), 2)) if every else against_first(len(correct))
    found = moments(correct)
    tested = differences(found, pairs, families, draws=1999)
    agrees(tested)
    again = differences(found, pairs, families, draws=1999)
    mirrored = differences(found, [(j, i) for i, j in pairs], families, draws=1999)
    for name in ("difference", "low", "high", "p", "p_adjusted"):
        np.testing.assert_array_equal(getattr(again, name), getattr(tested, name))
    np.testing.assert_allclose(mirrored.low, -tested.high, atol=1e-9)
    np.testing.assert_allclose(mirrored.p_adjusted, tested.p_adjusted, atol=0.002)


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 5), st.integers(2, 4), st.integers(0, 10_000), st.sampled_from([1, 2]))
def test_they_agree_at_the_edge_too(
    num_variants: int, num_seeds: int, seed: int, families: int
) -> None:
    """Differences moved to where one of them is just shown: there the step-down sees more than the
    intervals."""
    found = random_moments(num_variants, num_seeds, seed)
    pairs = against_first(num_variants)
    first = differences(found, pairs, families, draws=999)
    half = (first.high - first.low) / 2
    moved = found.accuracy - found.accuracy.mean(1, keepdims=True)
    moved[1:] += (half * np.linspace(1.5, 0.8, len(half)))[:, None]
    agrees(differences(Moments(moved, found.images, found.num_images), pairs, families, draws=999))


def test_a_difference_that_only_the_steps_show_has_an_interval_that_ends_at_zero() -> None:
    share = 0.004**2
    found = Moments(np.tile([[0.88], [0.92], [0.8885]], 3), np.eye(3) * share / 2, 10_000)
    tested = differences(found, against_first(3))
    assert tested.p_adjusted[1] < 0.05 and tested.low[1] == 0 < tested.high[1]


def test_more_families_are_more_cautious() -> None:
    found = random_moments(3, 3, 1)
    one, two = (differences(found, against_first(3), families) for families in (1, 2))
    np.testing.assert_allclose(two.p_adjusted, np.minimum(2 * one.p_adjusted, 1))
    assert (two.high - two.low > one.high - one.low).all() and (two.p == one.p).all()


@pytest.mark.parametrize("num_images", [2, 500])
def test_what_does_not_vary_is_not_known_exactly(num_images: int) -> None:
    same = np.ones((3, 3, num_images))
    same[:, :, : num_images // 2] = 0
    tested = differences(moments(same), against_first(3))
    assert (tested.difference == 0).all() and (tested.p_adjusted == 1).all()
    assert (tested.low < 0).all() and (tested.high > 0).all()
    assert (tested.high < 10 / num_images).all()
    # One variant is right on every image, the others on none: whatever the seed.
    one = np.zeros((3, 3, num_images))
    one[1] = 1
    tested = differences(moments(one), against_first(3))
    agrees(tested)
    assert (tested.p_adjusted[0] < 0.05) == (num_images == 500) and tested.p_adjusted[1] == 1
    assert np.isfinite(detectable(moments(one), against_first(3), 3)).all()


def test_many_pairs_take_fewer_draws() -> None:
    found = random_moments(25, 3, 0)
    pairs = list(combinations(range(25), 2))
    agrees(differences(found, pairs))


# What could have been seen


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 5), st.integers(2, 6), st.integers(0, 10_000))
def test_what_could_have_been_seen_has_nothing_to_do_with_what_was(
    num_variants: int, num_seeds: int, seed: int
) -> None:
    found, pairs = random_moments(num_variants, num_seeds, seed), against_first(num_variants)
    moved = Moments(
        found.accuracy + np.linspace(0, 0.3, num_variants)[:, None], found.images, found.num_images
    )
    size = detectable(found, pairs, num_seeds)
    np.testing.assert_allclose(detectable(moved, pairs, num_seeds), size, rtol=1e-6)
    assert (size > 0).all() and (detectable(found, pairs, num_seeds, 2) > size).all()


def test_seeds_needed_are_the_fewest_that_do() -> None:
    found, pairs = random_moments(4, 3, 5, image_sd=0.0005), against_first(4)
    needed = seeds_needed(found, pairs, range(3), 0.01)
    for c, count in enumerate(needed):
        assert count is not None and count > 2
        assert detectable(found, pairs, count)[c] <= 0.01 < detectable(found, pairs, count - 1)[c]
    assert seeds_needed(found, pairs, [1], 0.5) == [2]
    assert seeds_needed(found, pairs, [2, 0], 0.01) == [needed[2], needed[0]]
    # Test images of which there are too few are no matter of seeds.
    few = Moments(found.accuracy, np.eye(4) * 0.01**2, 379)
    assert seeds_needed(few, pairs, [0], 0.01) == [None]


def test_detectable_is_known_where_only_images_matter() -> None:
    """One difference: (z of 97.5 % + z of 80 %) times its standard error."""
    found = Moments(np.full((2, 4), 0.9), np.eye(2) * 0.004**2 / 2, 10_000)
    z = scipy.stats.norm.ppf(0.975) + scipy.stats.norm.ppf(0.8)
    assert detectable(found, [(1, 0)], 4)[0] == pytest.approx(z * 0.004, rel=0.04)


def test_detectable_is_known_where_only_seeds_matter() -> None:
    """One difference, four seeds: the power of the paired t-test, by the noncentral t."""
    rng = np.random.default_rng(0)
    accuracy = rng.normal(0.9, 0.004, (2, 4))
    spread = np.std(accuracy[1] - accuracy[0], ddof=1) / 2
    size = detectable(Moments(accuracy, np.zeros((2, 2)), 10_000), [(1, 0)], 4)[0]
    critical = scipy.stats.t.ppf(0.975, 3)
    assert scipy.stats.nct.sf(critical, 3, size / spread) == pytest.approx(0.8, abs=0.03)


# By simulation


def test_the_simulated_moments_are_those_of_the_latent_model() -> None:
    """What is drawn for 10,000 images directly, from the latent model of a few hundred."""
    rng = np.random.default_rng(0)
    cell = simulation.Cell((0.0, 0.0), 4, 400)
    drawn = [simulation.draw(cell, rng) for _ in range(600)]
    apart = np.array([1.0, -1.0])
    assert np.mean([m.accuracy.mean() for m in drawn]) == pytest.approx(0.88, abs=0.002)
    images = np.mean([apart @ m.images @ apart for m in drawn]) * 400
    assert images == pytest.approx(simulation.IMAGES, rel=0.06)
    chance = np.mean([(m.accuracy[0] - m.accuracy[1]).var(ddof=1) for m in drawn]) * 400 / 2
    assert chance == pytest.approx(simulation.CHANCE, rel=0.08)
    seeds = simulation.Cell((1.0, 1.0), 10, 400)
    spread = np.mean([simulation.draw(seeds, rng).accuracy.var(1, ddof=1) for _ in range(100)])
    assert 100 * math.sqrt(spread - simulation.CHANCE / 400) == pytest.approx(1.0, abs=0.15)


def test_levels_roughly() -> None:
    found = simulation.rates(simulation.equal(4, 0.5, 3, 10_000), 300, draws=999)
    assert 0.5 <= found.any_new <= 9 and found.covered >= 91


EQUAL = [
    *(simulation.equal(4, 0.5, num_seeds, 10_000) for num_seeds in (2, 3, 5)),
    *(simulation.equal(num_variants, 0.5, 3, 10_000) for num_variants in (2, 5)),
    *(simulation.equal(4, 0.5, 3, num_images) for num_images in (50, 400)),
]
MEASURED = [
    simulation.Cell(sd, s, 10_000)
    for sd in (simulation.FAIR_FOUR, simulation.SUBSET)
    for s in (2, 3, 5)
]
NOISY = [simulation.Cell((1.0, 0.25, 0.25, 0.25), s, 10_000) for s in (2, 3, 5)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cell", "most"),
    [*((c, 5.5) for c in EQUAL), *((c, 7.0) for c in MEASURED), *((c, 8.0) for c in NOISY)],
)
def test_levels(cell: simulation.Cell, most: float) -> None:
    """Family-wise error. 0.7: the standard error of a rate of 5 % over 1,000 repetitions."""
    found = simulation.rates(cell, 1000)
    print(f"{cell}: {found.any_old:.1f} % before, {found.any_new:.1f} % now")
    assert found.any_new <= most + 0.7


@pytest.mark.slow
def test_power() -> None:
    found = simulation.rates(
        simulation.Cell(simulation.SUBSET, 3, 10_000, simulation.TRUE, 0.35), 1000
    )
    print(f"{found.old} before, {found.new} now")
    assert (found.new >= np.array([90, 60, 35]) - 1.5).all() and (found.new > found.old + 15).all()
    assert found.covered >= 93


@pytest.mark.slow
@pytest.mark.parametrize(("num_seeds", "num_images"), [(3, 10_000), (5, 10_000), (3, 400)])
def test_the_stated_power_holds(num_seeds: int, num_images: int) -> None:
    _, found, own = simulation.detection(simulation.equal(4, 0.5, num_seeds, num_images), 600)
    assert 75 - 3 <= found <= 85 + 3 and 75 - 3 <= own <= 85 + 3


@pytest.mark.alone
def test_four_variants_five_seeds_ten_thousand_images_are_quick() -> None:
    import time

    rng = np.random.default_rng(0)
    correct = (rng.random((4, 5, 10_000)) < 0.9).astype(float)
    pairs = against_first(4)
    start = time.process_time()
    found = moments(correct)
    differences(found, pairs)
    detectable(found, pairs, 5)
    seeds_needed(found, pairs, range(3), 0.01)
    # 0.15 s on a calm machine.
    assert time.process_time() - start < 1
    assert pooled.DRAWS == 19_999
