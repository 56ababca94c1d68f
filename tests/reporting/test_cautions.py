"""What is said beside the comparison: how surely the winner wins, unfair stopping, few images, the
commonest class."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from support.runs import labels, write_run

from hpc_mlp.cli import main
from hpc_mlp.reporting.summary import Summary, summarise
from hpc_mlp.runs.folder import list_runs


def summary(root: Path, **more: Any) -> Summary:
    return summarise(list_runs(root), **more)


def said(root: Path) -> str:
    return "\n".join(summary(root).sentences)


def edit(folder: Path, **values: object) -> None:
    path = folder / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def wins(root: Path) -> dict[str, Any]:
    return {row.variant: row.wins for row in summary(root).rows}


def test_a_sure_winner_wins_and_a_close_one_does_not(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for variant, loss in (("baseline", 0.400), ("dropout", 0.399), ("batchnorm", 0.9)):
        for seed in range(4):
            write_run(tmp_path, variant, seed, val_loss=loss + rng.normal(0, 0.01))
    found = wins(tmp_path)
    assert sum(found.values()) == pytest.approx(1) and found["batchnorm"] < 0.01
    assert 0.2 < found["baseline"] < 0.8
    text = said(tmp_path)
    best = max(found, key=lambda name: found[name])
    assert (
        f"It wins in {100 * found[best]:.0f} % of draws of other seeds and validation images (then "
        in text
    )
    assert "flatters the recipe" in text
    assert "How often ★ wins:" in CliRunner().invoke(main, ["table", str(tmp_path)]).output
    [row] = [
        row
        for row in json.loads(
            CliRunner().invoke(main, ["table", str(tmp_path), "--format", "json"]).output
        )
        if row["best"]
    ]
    assert row["wins"] == found[row["variant"]]


def test_the_share_of_seeds_is_that_of_all_their_draws(tmp_path: Path) -> None:
    """Without predictions seeds alone are drawn: two seeds in common, four equally likely draws of
    them."""
    for variant, losses in (("baseline", (0.30, 0.50)), ("dropout", (0.41, 0.42))):
        for seed, loss in enumerate(losses):
            folder = write_run(tmp_path, variant, seed, val_loss=loss)
            (folder / "predictions.npz").unlink()
    found = wins(tmp_path)
    # (0, 0) and, by the mean, (0, 1) and (1, 0) for baseline; (1, 1) for dropout.
    assert found["baseline"] == pytest.approx(0.75, abs=0.02) and found["dropout"] == pytest.approx(
        0.25, abs=0.02
    )
    assert "of draws of other seeds (then dropout, 25 %)" in said(
        tmp_path
    ) or "other seeds (then" in said(tmp_path)


def test_one_seed_draws_images_alone_and_more_of_them_make_it_surer(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    correct = {name: rng.random(500) < 0.8 for name in ("baseline", "dropout")}
    shares = []
    for num_images in (50, 5000):
        root = tmp_path / str(num_images)
        for name, loss in (("baseline", 0.40), ("dropout", 0.43)):
            folder = write_run(root, name, 0, correct=correct[name], val_loss=loss)
            config = json.loads((folder / "config.json").read_text())
            config["dataset"]["num_images"]["val"] = num_images
            (folder / "config.json").write_text(json.dumps(config))
        shares.append(wins(root)["baseline"])
        assert "of draws of other validation images" in said(root)
    assert 0.5 < shares[0] < shares[1] <= 1


def test_rows_without_the_same_seeds_are_drawn_each_by_itself(tmp_path: Path) -> None:
    for variant, seeds in (("baseline", (0, 1, 2)), ("dropout", (5, 6))):
        for seed in seeds:
            write_run(tmp_path, variant, seed, val_loss=0.4 + 0.001 * seed)
    found = wins(tmp_path)
    assert found["baseline"] > 0.5 and sum(found.values()) == pytest.approx(1)
    assert "seeds and validation images" in said(tmp_path)


def test_early_stopping_of_one_variant_that_still_learned_is_said(tmp_path: Path) -> None:
    for variant in ("baseline", "dropout", "batchnorm"):
        for seed in range(2):
            folder = write_run(tmp_path, variant, seed, epochs=6 if variant == "baseline" else 10)
            if variant == "baseline":
                edit(folder, stopped="early")
    text = said(tmp_path)
    assert (
        "Early stopping ended baseline (2 of 2 runs, after epoch 6) while the training loss still "
        "fell" in text
    )
    assert "spared dropout and batchnorm" in text
    # No longer falling: that is what early stopping is for.
    for seed in range(2):
        path = tmp_path / f"baseline-s{seed}" / "metrics.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        lines[-1]["train_loss"] = lines[0]["train_loss"]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "Early stopping" not in said(tmp_path)


def test_early_stopping_of_all_is_fair(tmp_path: Path) -> None:
    for variant in ("baseline", "dropout"):
        edit(write_run(tmp_path, variant, 0), stopped="early")
    assert "Early stopping" not in said(tmp_path)


def test_few_images_the_commonest_class_and_another_order_by_f1_are_said(tmp_path: Path) -> None:
    truth = np.array([0] * 60 + [1] * 36 + [2] * 4)
    always = truth == 0
    write_run(tmp_path, "baseline", 0, truth=truth, correct=always | (truth == 2), val_loss=0.5)
    write_run(tmp_path, "dropout", 0, truth=truth, correct=always, val_loss=0.3)
    text = said(tmp_path)
    assert "1 of 3 classes has fewer than 5 test images (2 4)" in text
    rows = {row.variant: row for row in summary(tmp_path).rows}
    f1 = {name: value.mean for name, row in rows.items() if (value := row.values["f1"])}
    assert rows["dropout"].best and f1["baseline"] > f1["dropout"] + 0.01
    assert "baseline is ahead of ★ dropout on the test images" in text
    table = CliRunner().invoke(main, ["table", str(tmp_path)]).output
    assert "Always saying 0, the most frequent class, would be right on 60.0 %." in table
    told = json.loads(CliRunner().invoke(main, ["table", str(tmp_path), "--format", "json"]).output)
    assert {row["majority_share"] for row in told} == {0.6}


def test_five_images_are_enough_and_the_same_order_needs_no_word(tmp_path: Path) -> None:
    truth = np.array([0] * 60 + [1] * 35 + [2] * 5)
    write_run(tmp_path, "baseline", 0, truth=truth, correct=truth < 2, val_loss=0.5)
    write_run(tmp_path, "dropout", 0, truth=truth, correct=truth < 3, val_loss=0.3)
    text = said(tmp_path)
    assert "fewer than 5 test images" not in text and "ahead of" not in text


# How rows are compared


def test_without_a_baseline_all_pairs_are_corrected_for_and_that_is_said(tmp_path: Path) -> None:
    for variant, loss in (("dropout", 0.3), ("batchnorm", 0.4), ("dropout_l2", 0.5)):
        for seed in range(3):
            write_run(tmp_path, variant, seed, val_loss=loss)
    found = summary(tmp_path)
    assert [(c.name, c.against, c.family, c.all_pairs) for c in found.comparisons] == [
        ("batchnorm", "dropout", 3, True),
        ("dropout_l2", "dropout", 3, True),
    ]
    text = "\n".join(found.sentences)
    assert (
        "No row is the baseline: the reference is dropout, the best by validation loss: p and "
        "intervals" in text
    )
    assert "for all 3 pairs" in text
    assert (
        "hold for all 3 pairs together" in CliRunner().invoke(main, ["table", str(tmp_path)]).output
    )


def test_variants_with_fewer_seeds_are_a_family_of_their_own(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for variant, seeds in (("baseline", 4), ("dropout", 4), ("batchnorm", 2), ("dropout_l2", 1)):
        for seed in range(seeds):
            write_run(tmp_path, variant, seed, truth=labels(800), correct=rng.random(800) < 0.9)
    found = {c.name: c for c in summary(tmp_path).comparisons}
    assert [(c.test, c.seeds, c.family) for c in found.values()] == [
        ("pooled", [0, 1, 2, 3], 2),
        ("pooled", [0, 1], 2),
        ("mcnemar", [0], 1),
    ]
    assert found["dropout_l2"].detectable is None and not found["dropout_l2"].shown
    text = said(tmp_path)
    assert "With 4 seeds a difference of" in text and "With 2 seeds a difference of" in text


def test_a_difference_can_be_asked_for(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for variant in ("baseline", "dropout"):
        for seed in range(3):
            correct = np.arange(4000) < 3600 + rng.integers(-60, 60)
            write_run(tmp_path, variant, seed, truth=labels(4000), correct=correct)
    needed = []
    for points in ("0.5", "4"):
        done = CliRunner().invoke(
            main, ["table", str(tmp_path), "--format", "json", "--detect", points]
        )
        [_, row] = json.loads(done.output)
        assert row["detect"] == float(points) / 100
        needed.append(row["seeds_needed"])
        text = CliRunner().invoke(main, ["table", str(tmp_path), "--detect", points]).output
        then = (
            f"train {needed[-1]} seeds (--seeds 0-{needed[-1] - 1})"
            if needed[-1] > 3
            else "these seeds do"
        )
        assert f"for {points} points {then}" in text
    assert needed[0] > needed[1] >= 2
    assert CliRunner().invoke(main, ["table", str(tmp_path), "--detect", "0"]).exit_code == 2


def test_of_a_large_sweep_the_best_twelve_are_compared(tmp_path: Path) -> None:
    for k in range(14):
        for seed in (0, 1):
            write_run(
                tmp_path,
                "dropout",
                seed,
                swept={"optim.lr": 0.001 * (k + 1)},
                val_loss=0.3 + 0.01 * k,
            )
    found = summary(tmp_path)
    assert len(found.comparisons) == 11 and found.comparisons[0].family == 66
    assert "the 12 settings with the lowest validation loss" in "\n".join(found.sentences)
