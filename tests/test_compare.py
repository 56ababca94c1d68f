"""The statistics under the table, against scipy and statsmodels, and by simulation."""

from __future__ import annotations

import json
import time
import warnings
from pathlib import Path

import numpy as np
import pandas
import pytest
import scipy.stats
import statsmodels.api as sm
from click.testing import CliRunner
from fake_runs import labels, predict, write_run
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from statsmodels.formula.api import ols
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests

from hpc_mlp.cli import main
from hpc_mlp.report.paired import holm, mcnemar, paired_bootstrap, paired_interval, variances
from hpc_mlp.report.summary import Summary, read_runs, summarise

counts = st.integers(0, 3000)
tables = st.tuples(st.integers(2, 6), st.integers(2, 30)).flatmap(
    lambda shape: arrays(np.float64, shape, elements=st.sampled_from([-1.0, 0.0, 0.5, 1.0]))
)


@settings(deadline=None)
@given(counts, counts)
def test_mcnemar_is_statsmodels_exact_test(gained: int, lost: int) -> None:
    expected = statsmodels_mcnemar([[5, gained], [lost, 7]], exact=True).pvalue if gained + lost else 1.0
    assert mcnemar(gained, lost) == pytest.approx(expected, rel=1e-6, abs=1e-300)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_is_statsmodels(p_values: list[float]) -> None:
    np.testing.assert_allclose(holm(p_values), multipletests(p_values, method="holm")[1], atol=1e-12)


@settings(deadline=None, max_examples=30)
@given(tables)
def test_variances_are_those_of_a_two_way_anova(differences: NDArray[np.float64]) -> None:
    seeds, images = np.indices(differences.shape)
    frame = pandas.DataFrame({"d": differences.ravel(), "s": seeds.ravel(), "i": images.ravel()})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a table without any variance
        anova = sm.stats.anova_lm(ols("d ~ C(s) + C(i)", frame).fit())
    squares = anova["sum_sq"] / anova["df"] / differences.size
    np.testing.assert_allclose(variances(differences), squares, atol=1e-12)


def test_where_only_seeds_matter_it_is_the_paired_t_test() -> None:
    rng = np.random.default_rng(0)
    effects = rng.normal(0.02, 0.02, 5)
    differences = np.array([rng.permutation(np.arange(50_000) < effect * 50_000) for effect in abs(effects)])
    accuracies = differences.mean(1)
    t_test = scipy.stats.ttest_1samp(accuracies, 0)
    low, high, p = paired_bootstrap(differences.astype(float))
    span = t_test.confidence_interval(0.95)
    assert (low, high) == pytest.approx((span.low, span.high), rel=0.05, abs=5e-4)
    assert p == pytest.approx(t_test.pvalue, rel=0.15)


def test_where_only_images_matter_it_is_scipys_bootstrap() -> None:
    rng = np.random.default_rng(1)
    by_image = rng.choice([-1.0, 0.0, 1.0], size=800, p=[0.08, 0.8, 0.12])
    low, high, p = paired_bootstrap(np.tile(by_image, (4, 1)))  # every seed says the same
    peer = scipy.stats.bootstrap((by_image,), np.mean, method="percentile", rng=rng, n_resamples=9999)
    assert (low, high) == pytest.approx(
        (peer.confidence_interval.low, peer.confidence_interval.high), abs=0.0025
    )
    z = by_image.mean() / scipy.stats.sem(by_image)
    assert p == pytest.approx(2 * scipy.stats.norm.sf(abs(z)), rel=0.2)


@settings(deadline=None, max_examples=50)
@given(tables)
def test_interval_properties(differences: NDArray[np.float64]) -> None:
    low, high, p = paired_bootstrap(differences)
    assert -1 <= low <= high <= 1 and 0 < p <= 1
    assert low - 1e-9 <= differences.mean() <= high + 1e-9
    assert paired_bootstrap(differences) == (low, high, p)  # deterministic
    mirrored = paired_bootstrap(-differences)
    assert mirrored[:2] == pytest.approx((-high, -low), abs=0.2 * (high - low) + 1e-9)  # draws differ
    if p < 0.04:
        assert low > 0 or high < 0


@given(st.integers(0, 200), st.integers(0, 200), st.integers(400, 20_000))
def test_interval_of_single_runs(gained: int, lost: int, num_images: int) -> None:
    low, high = paired_interval(gained, lost, num_images)
    assert low < (gained - lost) / num_images < high
    assert paired_interval(lost, gained, num_images) == pytest.approx((-high, -low))
    if mcnemar(gained, lost) < 0.02:
        assert low > 0 or high < 0
    if mcnemar(gained, lost) > 0.1:
        assert low < 0 < high


def test_interval_of_single_runs_covers() -> None:
    rng = np.random.default_rng(0)
    for p_gain, p_loss, num_images in ((0.01, 0.004, 300), (0.1, 0.07, 500), (0.002, 0.002, 1000)):
        draws = rng.multinomial(num_images, [p_gain, p_loss, 1 - p_gain - p_loss], size=4000)
        spans = np.array([paired_interval(int(a), int(b), num_images) for a, b, _ in draws])
        covered = (spans[:, 0] <= p_gain - p_loss) & (p_gain - p_loss <= spans[:, 1])
        assert 0.935 < covered.mean() < (0.97 if p_gain > 0.05 else 1.0)


@pytest.mark.slow
@pytest.mark.parametrize(("num_seeds", "num_images"), [(2, 500), (3, 4000), (5, 1000)])
@pytest.mark.parametrize("seed_sd", [0.0, 0.15])  # 0.15: seeds move accuracy by about a point
def test_interval_over_seeds_covers(num_seeds: int, num_images: int, seed_sd: float) -> None:
    """Logistic model of who gets which image right: image difficulty, its interaction with the variant,
    an effect of the seed on all images, and chance in every single answer."""
    rng = np.random.default_rng(7)

    def draw(seeds: int, images: int) -> NDArray[np.float64]:
        image, own = rng.normal(2.5, 2.0, images), rng.normal(0.25, 0.5, images)
        effects = rng.normal(0, seed_sd, (2, seeds, 1))
        first = image + own + effects[0] + rng.logistic(size=(seeds, images)) > 0
        second = image + effects[1] + rng.logistic(size=(seeds, images)) > 0
        return first.astype(float) - second

    truth = np.mean([draw(1000, 1000).mean() for _ in range(10)])
    spans = np.array([paired_bootstrap(draw(num_seeds, num_images))[:2] for _ in range(400)])
    coverage = ((spans[:, 0] <= truth) & (truth <= spans[:, 1])).mean()
    print(f"coverage {coverage:.3f} with {num_seeds} seeds, {num_images} images, seed sd {seed_sd}")
    assert 0.92 <= coverage <= 0.995


# From run folders to sentences


def train(
    root: Path, effects: dict[str, float], seeds: int = 3, num_images: int = 4000, **more: object
) -> Path:
    """Runs whose variants differ by `effects` (logits); validation losses go with them."""
    rng = np.random.default_rng(3)
    truth, difficulty = labels(num_images), rng.normal(2.5, 2.0, num_images)
    for variant, effect in effects.items():
        for seed in range(seeds):
            correct = difficulty + effect + rng.logistic(0, 0.3, num_images) > 0
            write_run(root, variant, seed, truth=truth, correct=correct, val_loss=0.5 - effect / 10, **more)
    return root


def summary(root: Path) -> Summary:
    return summarise(read_runs(root))


def test_sentences_say_what_is_shown_and_what_is_not(tmp_path: Path) -> None:
    found = summary(train(tmp_path, {"baseline": 0.0, "dropout": 0.01, "batchnorm": 0.8, "dropout_l2": -0.9}))
    by_name = {c.name: c for c in found.comparisons}
    assert list(by_name) == ["dropout", "batchnorm", "dropout_l2"]
    assert by_name["batchnorm"].shown and by_name["dropout_l2"].shown and not by_name["dropout"].shown
    rows = {row.variant: row for row in found.rows}
    for name, c in by_name.items():
        gap = rows[name].values["test_accuracy"].mean - rows["baseline"].values["test_accuracy"].mean
        assert c.difference == pytest.approx(gap, abs=1e-9) and c.low < c.difference < c.high
        assert c.against == "baseline" and c.seeds == [0, 1, 2] and c.num_images == 4000
        assert c.test == "bootstrap" and c.p <= c.p_holm
    text = "\n".join(found.sentences)
    gain = 100 * by_name["batchnorm"].difference
    assert f"batchnorm beats baseline by {gain:.2f} points of test accuracy (95 % " in text
    assert "dropout_l2 falls behind baseline by" in text
    assert "dropout cannot be told apart from baseline with 3 seeds" in text
    assert "Best: batchnorm, chosen by validation loss alone" in text
    [final] = found.finals if found.finals else [None]
    assert final is not None and (final.name, final.against) == ("batchnorm", "dropout")


def test_the_winner_is_chosen_on_validation_even_where_the_test_disagrees(tmp_path: Path) -> None:
    truth = labels(1000)
    for seed in range(2):
        write_run(tmp_path, "baseline", seed, truth=truth, correct=np.arange(1000) < 950, val_loss=0.5)
        write_run(tmp_path, "dropout", seed, truth=truth, correct=np.arange(1000) < 700, val_loss=0.4)
    found = summary(tmp_path)
    assert [row.variant for row in found.rows if row.best] == ["dropout"]
    assert "dropout falls behind baseline by 25.0 points" in "\n".join(found.sentences)


def test_single_runs_are_compared_by_mcnemar(tmp_path: Path) -> None:
    found = summary(train(tmp_path, {"baseline": 0.0, "batchnorm": 0.8}, seeds=1))
    [c] = found.comparisons
    right = []
    for name in ("batchnorm-s0", "baseline-s0"):
        file = np.load(tmp_path / name / "predictions.npz")
        right.append(file["probabilities"].argmax(1) == file["labels"])
    gained, lost = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
    assert c.test == "mcnemar" and c.p == c.p_holm
    assert c.p == pytest.approx(scipy.stats.binomtest(gained, gained + lost).pvalue)
    assert c.difference == pytest.approx((gained - lost) / 4000)
    assert "holds for these trained models and not for the recipes" in "\n".join(found.sentences)


def test_only_common_seeds_are_paired(tmp_path: Path) -> None:
    train(tmp_path, {"baseline": 0.0}, seeds=2)
    train(tmp_path, {"dropout": 0.0}, seeds=4)
    write_run(tmp_path, "batchnorm", 9, truth=labels(4000))
    found = summary(tmp_path)
    assert [(c.name, c.seeds) for c in found.comparisons] == [("dropout", [0, 1])]
    text = "\n".join(found.sentences)
    assert "Compared with baseline on the seeds that both have: dropout (2 of 4)." in text
    assert "batchnorm and baseline have no seed in common: not compared" in text


def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    root = train(tmp_path, {"baseline": 0.0, "dropout": 0.0, "batchnorm": 0.0, "dropout_batchnorm": 0.0,
                            "dropout_l2": 0.0}, seeds=1, num_images=500)  # fmt: skip
    truth = labels(500)
    (root / "dropout-s0/predictions.npz").unlink()
    (root / "batchnorm-s0/predictions.npz").write_bytes(b"PK\x03\x04 cut")
    other = np.roll(truth, 1)
    stale = predict(truth, np.arange(500) < 100)
    np.savez(root / "dropout_batchnorm-s0/predictions.npz", probabilities=stale, labels=truth)
    shown = json.loads((root / "dropout_l2-s0/result.json").read_text())["test"]["accuracy"]
    right = predict(other, np.arange(500) < round(500 * shown))
    np.savez(root / "dropout_l2-s0/predictions.npz", probabilities=right, labels=other)
    found = summary(root)
    assert found.comparisons == [] and found.finals == []
    text = "\n".join(found.sentences)
    for name, reason in (
        ("dropout-s0", "no predictions.npz"),
        ("batchnorm-s0", "predictions.npz is damaged"),
        ("dropout_batchnorm-s0", "does not belong to its result.json"),
        ("dropout_l2-s0", "tested on other labels"),
    ):
        assert any(
            line.startswith(name) and reason in line and "not compared" in line for line in found.sentences
        )
    assert "batchnorm and baseline are not compared." in text


def test_datasets_are_never_mixed(tmp_path: Path) -> None:
    train(tmp_path, {"baseline": 0.0, "dropout": 0.5}, seeds=2, digest="a" * 64)
    train(tmp_path, {"batchnorm": 0.5, "dropout_l2": 0.9}, seeds=2, digest="b" * 64)
    found = summary(tmp_path)
    assert {(c.name, c.against) for c in found.comparisons} == {
        ("dropout dataset=aaaaaaaaaaaa", "baseline dataset=aaaaaaaaaaaa"),
        ("batchnorm dataset=bbbbbbbbbbbb", "dropout_l2 dataset=bbbbbbbbbbbb"),  # no baseline: the best is it
    }
    assert any("2 datasets (aaaaaaaaaaaa, bbbbbbbbbbbb)" in line for line in found.sentences)


def sweep(root: Path, variants: tuple[str, ...]) -> Path:
    for lr, loss in ((0.1, 0.9), (0.01, 0.3), (0.001, 0.5)):
        for seed in (0, 1):
            for variant in variants:
                write_run(root, variant, seed, swept={"optim.lr": lr}, val_loss=loss)
    return root


def test_of_a_sweep_the_setting_best_on_validation_is_compared(tmp_path: Path) -> None:
    found = summary(sweep(tmp_path, ("baseline", "dropout", "batchnorm")))
    assert [(c.name, c.against) for c in found.comparisons] == [
        ("dropout lr=0.01", "baseline lr=0.01"), ("batchnorm lr=0.01", "baseline lr=0.01")
    ]  # fmt: skip
    assert any(
        "of each variant, the setting with the lowest validation loss" in line for line in found.sentences
    )
    by_seed = summarise(read_runs(tmp_path), ["optim.lr", "seed"])
    assert by_seed.comparisons == [] and "Grouped by seed: nothing is compared." in by_seed.sentences


def test_the_settings_of_one_variant_are_compared_with_the_best(tmp_path: Path) -> None:
    found = summary(sweep(tmp_path, ("dropout",)))
    assert [(c.name, c.against) for c in found.comparisons] == [
        ("dropout lr=0.001", "dropout lr=0.01"), ("dropout lr=0.1", "dropout lr=0.01")
    ]  # fmt: skip


def test_other_recipes_are_named(tmp_path: Path) -> None:
    truth = labels(500)
    for seed in (0, 1):
        write_run(tmp_path, "baseline", seed, truth=truth)
        write_run(tmp_path, "dropout", seed, truth=truth, epochs=20)
        write_run(tmp_path, "batchnorm", seed, truth=truth, config={"train": {"patience": 3 + seed}})
    text = "\n".join(summary(tmp_path).sentences)
    assert "dropout was trained otherwise than baseline (train.epochs 20 for 10)" in text
    assert "Different recipes in one row: the runs of batchnorm differ in train.patience." in text


def test_machines_get_the_comparison_too(tmp_path: Path) -> None:
    train(tmp_path, {"baseline": 0.0, "batchnorm": 0.8})
    out = CliRunner().invoke(main, ["table", str(tmp_path), "--format", "json"]).output
    baseline, batchnorm = json.loads(out)
    assert baseline["difference"] is None and baseline["compared_with"] is None
    assert batchnorm["compared_with"] == "baseline" and batchnorm["p_holm"] < 0.05
    assert 0 < batchnorm["difference_low"] < batchnorm["difference"] < batchnorm["difference_high"]
    rich = CliRunner().invoke(main, ["table", str(tmp_path)]).output
    assert "against baseline" in rich and f"+{100 * batchnorm['difference']:.2f}" in rich
    markdown = CliRunner().invoke(main, ["table", str(tmp_path), "--format", "markdown"]).output
    assert "| against baseline |" in markdown and "Holm" not in markdown  # a single comparison


def test_twenty_runs_of_ten_thousand_images_are_quick(tmp_path: Path) -> None:
    train(tmp_path, dict.fromkeys(["baseline", "dropout", "batchnorm", "dropout_l2"], 0.1), 5, 10_000)
    start = time.process_time()
    assert len(summary(tmp_path).comparisons) == 3
    assert time.process_time() - start < 2
