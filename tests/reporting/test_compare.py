"""From run folders to comparisons and sentences."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from click.testing import CliRunner
from support.runs import labels, predict, write_run

from hpc_mlp.cli import main
from hpc_mlp.reporting.columns import comparison_cells
from hpc_mlp.reporting.summary import Summary, summarise
from hpc_mlp.runs.folder import list_runs


def train(
    root: Path, effects: dict[str, float], seeds: int = 3, num_images: int = 4000, **more: Any
) -> Path:
    """Runs whose variants differ by `effects` (logits); validation losses go with them."""
    rng = np.random.default_rng(3)
    truth, difficulty = labels(num_images), rng.normal(2.5, 2.0, num_images)
    for variant, effect in effects.items():
        for seed in range(seeds):
            correct = difficulty + effect + rng.logistic(0, 0.3, num_images) > 0
            write_run(
                root,
                variant,
                seed,
                truth=truth,
                correct=correct,
                val_loss=0.5 - effect / 10,
                **more,
            )
    return root


def summary(root: Path) -> Summary:
    return summarise(list_runs(root))


def test_sentences_say_what_is_shown_and_what_is_not(tmp_path: Path) -> None:
    found = summary(
        train(tmp_path, {"baseline": 0.0, "dropout": 0.01, "batchnorm": 0.8, "dropout_l2": -0.9})
    )
    by_name = {c.name: c for c in found.comparisons}
    assert list(by_name) == ["dropout", "batchnorm", "dropout_l2"]
    assert (
        by_name["batchnorm"].shown and by_name["dropout_l2"].shown and not by_name["dropout"].shown
    )
    values = {row.variant: row.values["test_accuracy"] for row in found.rows}
    means = {name: value.mean for name, value in values.items() if value}
    for name, c in by_name.items():
        gap = means[name] - means["baseline"]
        assert c.difference == pytest.approx(gap, abs=1e-9) and c.low < c.difference < c.high
        assert c.against == "baseline" and c.seeds == [0, 1, 2] and c.num_images == 4000
        assert c.test == "pooled" and c.p <= c.p_adjusted and c.family == 3
    text = "\n".join(found.sentences)
    gain = 100 * by_name["batchnorm"].difference
    assert f"batchnorm beats baseline by {gain:.2f} points of test accuracy (95 % " in text
    assert "dropout_l2 falls behind baseline by" in text
    assert "dropout cannot be told apart from baseline with 3 seeds" in text
    assert "Best: batchnorm, chosen by validation loss alone" in text
    size = max(c.detectable for c in found.comparisons if c.detectable)
    assert (
        f"With 3 seeds a difference of {100 * size:.2f} points would have been found (80 % power); "
        "for 1 point " in text
    )


def test_no_difference_is_larger_than_all_images(tmp_path: Path) -> None:
    """Two seeds that disagree on 24 images, in which nothing could be found."""
    truth = labels(24)
    for variant in ("baseline", "dropout"):
        for seed in (0, 1):
            correct = np.arange(24) < (20 if (seed == 0) == (variant == "baseline") else 4)
            write_run(tmp_path, variant, seed, truth=truth, correct=correct)
    found = summarise(list_runs(tmp_path))
    [c] = found.comparisons
    assert c.detectable is not None and c.detectable > 1
    said = "With 2 seeds no difference, however large, would have been found"
    assert said in "\n".join(found.sentences)
    assert comparison_cells(found)[1][4] == "> 100"


def test_the_winner_is_chosen_on_validation_even_where_the_test_disagrees(tmp_path: Path) -> None:
    truth = labels(1000)
    for seed in range(2):
        write_run(
            tmp_path, "baseline", seed, truth=truth, correct=np.arange(1000) < 950, val_loss=0.5
        )
        write_run(
            tmp_path, "dropout", seed, truth=truth, correct=np.arange(1000) < 700, val_loss=0.4
        )
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
    assert c.test == "mcnemar" and c.p == c.p_adjusted < 0.05 and not c.shown and c.differs
    assert c.p == pytest.approx(scipy.stats.binomtest(gained, gained + lost).pvalue)
    assert c.difference == pytest.approx((gained - lost) / 4000)
    text = "\n".join(found.sentences)
    assert (
        f"Of these trained models, one run each: batchnorm is right on {100 * c.difference:.2f} "
        "points more" in text
    )
    assert "beats" not in text and "train three or more (--seeds 0-2)" in text
    assert c.detectable is None and c.seeds_needed is None and "would have been found" not in text


def test_of_many_that_differ_the_first_are_told(tmp_path: Path) -> None:
    effects = {"baseline": 0.0} | {f"v{i}": 0.5 + 0.3 * i for i in range(1, 11)}
    text = "\n".join(summary(train(tmp_path, effects, seeds=1, num_images=2000)).sentences)
    told = text[text.index("one run each") :]
    assert told.index("v10 is") < told.index("v9 is") < told.index("v5 is")
    assert "; 4 more differ (see the table). Of the recipes" in told and "v4" not in told


def test_rows_are_in_natural_order(tmp_path: Path) -> None:
    for variant in ("v10", "v2", "baseline"):
        write_run(tmp_path, variant, 0)
    assert [row.variant for row in summary(tmp_path).rows] == ["baseline", "v2", "v10"]


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
    root = train(
        tmp_path,
        {
            "baseline": 0.0,
            "dropout": 0.0,
            "batchnorm": 0.0,
            "dropout_batchnorm": 0.0,
            "dropout_l2": 0.0,
        },
        seeds=1,
        num_images=500,
    )
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
    assert found.comparisons == []
    text = "\n".join(found.sentences)
    for name, reason in (
        ("dropout-s0", "no predictions.npz"),
        ("batchnorm-s0", "predictions.npz is damaged"),
        ("dropout_batchnorm-s0", "does not belong to its result.json"),
        ("dropout_l2-s0", "tested on other labels"),
    ):
        assert any(
            line.startswith(name) and reason in line and "not compared" in line
            for line in found.sentences
        )
    assert "batchnorm and baseline are not compared." in text


def test_datasets_are_never_mixed(tmp_path: Path) -> None:
    train(tmp_path, {"baseline": 0.0, "dropout": 0.5}, seeds=2, digest="a" * 64)
    train(tmp_path, {"batchnorm": 0.5, "dropout_l2": 0.9}, seeds=2, digest="b" * 64)
    found = summary(tmp_path)
    assert {(c.name, c.against) for c in found.comparisons} == {
        ("dropout dataset=aaaaaaaaaaaa", "baseline dataset=aaaaaaaaaaaa"),
        # No baseline: the best is it.
        ("batchnorm dataset=bbbbbbbbbbbb", "dropout_l2 dataset=bbbbbbbbbbbb"),
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
        ("dropout lr=0.01", "baseline lr=0.01"),
        ("batchnorm lr=0.01", "baseline lr=0.01"),
    ]
    assert any(
        "of each variant, the setting with the lowest validation loss" in line
        for line in found.sentences
    )
    by_seed = summarise(list_runs(tmp_path), ["optim.lr", "seed"])
    assert (
        by_seed.comparisons == [] and "Grouped by seed: nothing is compared." in by_seed.sentences
    )


def test_the_settings_of_one_variant_are_compared_with_the_best(tmp_path: Path) -> None:
    found = summary(sweep(tmp_path, ("dropout",)))
    assert [(c.name, c.against) for c in found.comparisons] == [
        ("dropout lr=0.001", "dropout lr=0.01"),
        ("dropout lr=0.1", "dropout lr=0.01"),
    ]


def test_other_recipes_are_named(tmp_path: Path) -> None:
    truth = labels(500)
    for seed in (0, 1):
        write_run(tmp_path, "baseline", seed, truth=truth)
        write_run(tmp_path, "dropout", seed, truth=truth, epochs=20)
        write_run(
            tmp_path, "batchnorm", seed, truth=truth, config={"train": {"patience": 3 + seed}}
        )
    text = "\n".join(summary(tmp_path).sentences)
    assert "dropout was trained otherwise than baseline (train.epochs 20 for 10)" in text
    assert "Different recipes in one row: the runs of batchnorm differ in train.patience." in text


def test_machines_get_the_comparison_too(tmp_path: Path) -> None:
    train(tmp_path, {"baseline": 0.0, "batchnorm": 0.8})
    out = CliRunner().invoke(main, ["table", str(tmp_path), "--format", "json"]).output
    baseline, batchnorm = json.loads(out)
    assert baseline["difference"] is None and baseline["compared_with"] is None
    assert (
        batchnorm["compared_with"] == "baseline"
        and batchnorm["p_adjusted"] < 0.05
        and batchnorm["shown"] is True
    )
    assert 0 < batchnorm["difference_low"] < batchnorm["difference"] < batchnorm["difference_high"]
    rich = CliRunner().invoke(main, ["table", str(tmp_path)]).output
    assert "against baseline" in rich and f"+{100 * batchnorm['difference']:.2f}" in rich
    markdown = CliRunner().invoke(main, ["table", str(tmp_path), "--format", "markdown"]).output
    # A single comparison.
    assert "| against baseline |" in markdown and "adjusted" not in markdown


@pytest.mark.alone
def test_twenty_runs_of_ten_thousand_images_are_quick(tmp_path: Path) -> None:
    train(
        tmp_path, dict.fromkeys(["baseline", "dropout", "batchnorm", "dropout_l2"], 0.1), 5, 10_000
    )
    start = time.process_time()
    assert len(summary(tmp_path).comparisons) == 3
    assert time.process_time() - start < 2
