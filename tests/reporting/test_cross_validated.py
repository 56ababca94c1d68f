"""Cross-validated runs: one row over all images, compared with the corrected variance."""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from click.testing import CliRunner
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_fscore_support
from support.folds import write_folds
from support.process import Cli
from support.runs import labels, write_run

from hpc_mlp.cli import main
from hpc_mlp.reporting import pooled
from hpc_mlp.reporting.answers import by_fold
from hpc_mlp.reporting.pooled import Moments
from hpc_mlp.reporting.summary import Summary, summarise
from hpc_mlp.runs.folder import list_runs

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import simulate_folds as simulation

IMAGES, FOLDS = 1003, 5
# Rows that training sets are short of: the fold, and a tenth that validates.
TRAIN = [IMAGES - size - IMAGES // 10 for size in (201, 201, 201, 200, 200)]


def answers(variant_effect: float, seed: int, images: int = IMAGES) -> NDArray[np.bool_]:
    rng = np.random.default_rng([seed, int(1000 * variant_effect)])
    difficulty = np.random.default_rng(0).normal(2.5, 2.0, images)
    return np.asarray(difficulty + variant_effect + rng.logistic(0, 0.5, images) > 0)


def trained(root: Path, effects: dict[str, float], seeds: int = 2) -> Path:
    for variant, effect in effects.items():
        for seed in range(seeds):
            correct = answers(effect, seed)
            losses = [0.5 - effect / 10 + 0.01 * fold for fold in range(FOLDS)]
            write_folds(root, variant, seed, truth=labels(IMAGES), correct=correct, val_loss=losses)
    return root


def summary(root: Path) -> Summary:
    return summarise(list_runs(root))


@pytest.mark.parametrize("width", [58, 70, 80])
def test_a_comparison_is_one_line_on_a_narrow_terminal(tmp_path: Path, width: int) -> None:
    """Folds and seeds go first, which the table above has."""
    trained(tmp_path, {"baseline": 0.0, "dropout_batchnorm": 0.5})
    out = CliRunner().invoke(main, ["table", str(tmp_path)], env={"COLUMNS": str(width)}).output
    [difference] = summary(tmp_path).comparisons
    lines = [line.split() for line in out.splitlines() if " … " in line]
    values = difference.difference, difference.low, difference.high
    shown = [f"{100 * value:+.1f}".replace("-", "−") for value in values]
    assert ["dropout_batchnorm", shown[0], shown[1], "…", shown[2]] in [line[:5] for line in lines]
    assert max(map(len, out.splitlines())) <= width


def test_a_row_is_of_all_images_each_tested_once(tmp_path: Path) -> None:
    [row] = summary(trained(tmp_path, {"baseline": 0.0})).rows
    assert (row.folds, row.n, row.seeds, row.test_images) == (FOLDS, 10, [0, 1], IMAGES)
    right, macro = np.empty((2, FOLDS)), np.zeros((2, 3))
    for seed in (0, 1):
        files = [np.load(tmp_path / f"baseline-s{seed}-f{k}/predictions.npz") for k in range(FOLDS)]
        said = [file["probabilities"].argmax(1) for file in files]
        truth = [file["labels"] for file in files]
        right[seed] = [(one == two).mean() for one, two in zip(said, truth, strict=True)]
        macro[seed] = precision_recall_fscore_support(
            np.concatenate(truth), np.concatenate(said), average="macro"
        )[:3]
    accuracy = row.values["test_accuracy"]
    assert accuracy and accuracy.sd
    assert accuracy.mean == pytest.approx(np.mean([answers(0.0, seed) for seed in (0, 1)]))
    assert accuracy.sd == pytest.approx(right.mean(0).std(ddof=1))
    for name, expected in zip(("precision", "recall", "f1"), macro.mean(0), strict=True):
        value = row.values[name]
        assert value and value.mean == pytest.approx(expected)
    loss = row.values["val_loss"]
    assert loss and loss.mean == pytest.approx(0.52)
    assert loss.sd == pytest.approx(np.std(0.01 * np.arange(FOLDS), ddof=1))


def test_two_variants_are_compared_by_the_corrected_t_test(tmp_path: Path) -> None:
    """Nadeau & Bengio (2003), written out."""
    [c] = summary(trained(tmp_path, {"baseline": 0.0, "batchnorm": 0.1})).comparisons
    apart = np.mean(
        [answers(0.1, seed).astype(float) - answers(0.0, seed) for seed in (0, 1)], axis=0
    )
    by_hand = np.array([apart[k::FOLDS].mean() for k in range(FOLDS)])
    variance = (1 / FOLDS + IMAGES / FOLDS / np.mean(TRAIN)) * by_hand.var(ddof=1)
    p = 2 * scipy.stats.t.sf(apart.mean() / math.sqrt(variance), FOLDS - 1)
    half = scipy.stats.t.ppf(0.975, FOLDS - 1) * math.sqrt(variance)
    assert (c.test, c.folds, c.seeds, c.num_images) == ("folds", FOLDS, [0, 1], IMAGES)
    assert c.train_images == round(np.mean(TRAIN))
    assert c.difference == pytest.approx(apart.mean())
    # Draws, and folds of 201 and of 200 images.
    assert p > 0.01 and c.p == pytest.approx(p, rel=0.1)
    assert c.high - c.low == pytest.approx(2 * half, rel=0.04)


def test_folds_count_by_their_images() -> None:
    rng = np.random.default_rng(0)
    folds = np.repeat([0, 1, 2], [10, 40, 50])
    correct = (rng.random((2, 100)) < 0.8).astype(float)
    found = by_fold(list(correct), folds)
    assert found.mean(1) == pytest.approx(correct.mean(1))
    even = by_fold(list(correct), np.arange(100) % 4)
    assert even == pytest.approx(np.stack([correct[:, k::4].mean(1) for k in range(4)], axis=1))


def test_it_is_said_what_folds_speak_of(tmp_path: Path) -> None:
    effects = {"baseline": 0.0, "dropout": 0.01, "batchnorm": 1.5}
    found = summary(trained(tmp_path, effects))
    text = "\n".join(found.sentences)
    gain = 100 * found.comparisons[1].difference
    assert f"batchnorm beats baseline by {gain:.1f} points of held-out accuracy" in text
    assert "dropout cannot be told apart from baseline over 5 folds of 2 seeds." in text
    sets = f"training sets of about {round(np.mean(TRAIN))} images, drawn as these are"
    assert sets in text and "not of one split" in text
    size = max(c.detectable for c in found.comparisons if c.detectable)
    assert f"Over 5 folds of 2 seeds a difference of {100 * size:.1f} points would have" in text
    assert "not even" not in text and all(c.seeds_needed is None for c in found.comparisons)
    best = next(row for row in found.rows if row.best)
    assert best.variant == "batchnorm" and best.wins == 1.0
    assert "draws of other folds" in text
    assert (
        "validates on images that another one holds out" in text
        and "test images had no say" not in text
    )
    out = CliRunner().invoke(main, ["table", str(tmp_path)], env={"COLUMNS": "120"}).output
    flat = " ".join(out.split())
    assert "1,003 images, each tested by the fold that held it out" in flat
    assert "corrected for the overlap of the training sets (Nadeau & Bengio 2003)" in flat
    assert "standard deviation over them, the seeds of each averaged" in flat
    assert "draws of the folds, with replacement, spread for the overlap" in flat


def test_how_surely_the_winner_wins_grows_with_the_folds(tmp_path: Path) -> None:
    """Against the normal share, for which five folds are few."""
    truth = labels(200)
    apart = np.array([0.03, -0.01, 0.01, 0.02, 0.0])
    for variant, losses in (("baseline", 0.4 + 0 * apart), ("dropout", 0.4 - apart)):
        write_folds(tmp_path, variant, truth=truth, val_loss=losses.tolist())
    best = next(row for row in summary(tmp_path).rows if row.best)
    spread = apart.std(ddof=1) * math.sqrt(1 / FOLDS + 40 / (200 - 40 - 20))
    assert best.variant == "dropout"
    assert best.wins == pytest.approx(scipy.stats.norm.cdf(apart.mean() / spread), abs=0.05)


def test_folds_that_are_missing_are_said(tmp_path: Path) -> None:
    trained(tmp_path, {"baseline": 0.0})
    write_folds(tmp_path, "dropout", truth=labels(IMAGES), only=(0, 1, 3))
    write_folds(tmp_path, "batchnorm", truth=labels(IMAGES))
    write_folds(tmp_path, "batchnorm", 1, truth=labels(IMAGES), only=(0, 1, 3), val_loss=0.1)
    found = summary(tmp_path)
    text = "\n".join(found.sentences)
    assert "dropout has results of 3 of 5 folds: its numbers are of the images" in text
    assert "dropout has 3 of 5 folds: not compared." in text
    assert "3 runs of batchnorm are left out: not all folds of the seed have results." in text
    assert [(c.name, c.seeds) for c in found.comparisons] == [("batchnorm", [0])]
    assert "Compared with baseline on the seeds that both have: batchnorm (1 of 2)." in text
    baseline, dropout, batchnorm = (
        next(row for row in found.rows if row.variant == name)
        for name in ("baseline", "dropout", "batchnorm")
    )
    assert not dropout.best and baseline.folds_done == 5 and dropout.folds_done == 3
    assert (batchnorm.n, dropout.n) == (5, 3)
    assert batchnorm.values["val_loss"] and batchnorm.values["val_loss"].mean == pytest.approx(0.4)
    out = CliRunner().invoke(main, ["table", str(tmp_path), "--columns", "variant,folds"]).output
    assert "3 of 5" in out


def test_other_numbers_of_folds_are_rows_of_their_own(tmp_path: Path) -> None:
    truth = labels(200)
    for variant in ("baseline", "dropout"):
        write_run(tmp_path, variant, truth=truth)
        for folds in (2, 5):
            root = tmp_path / str(folds)
            for path in write_folds(root, variant, truth=truth, folds=folds):
                path.rename(tmp_path / f"{path.name}-of-{folds}")
            root.rmdir()
    found = summary(tmp_path)
    assert [row.name for row in found.rows] == [
        f"{variant} folds={folds}" for variant in ("baseline", "dropout") for folds in (1, 2, 5)
    ]
    assert [row.n for row in found.rows] == [1, 2, 5] * 2
    assert {(c.name, c.against, c.test) for c in found.comparisons} == {
        ("dropout folds=1", "baseline folds=1", "mcnemar"),
        ("dropout folds=2", "baseline folds=2", "folds"),
        ("dropout folds=5", "baseline folds=5", "folds"),
    }
    assert sum(row.best for row in found.rows) == 3
    assert any("within each kind alone" in line for line in found.sentences)


def test_a_given_test_split_stays_apart(tmp_path: Path) -> None:
    truth, test = labels(IMAGES), labels(300, seed=1)
    for variant, effect in (("baseline", 0.0), ("dropout", 1.5)):
        right = answers(effect, 0)
        write_folds(tmp_path, variant, truth=truth, correct=right, given_test=test)
    found = summary(tmp_path)
    for row in found.rows:
        runs = [run.test.accuracy for run in row.runs if run.test]
        value, own = row.values["test_accuracy"], row.values["held_out_accuracy"]
        assert value and value.mean == pytest.approx(np.mean(runs)) and row.test_images == 300
        assert own and row.held_out == IMAGES
    [c] = found.comparisons
    gain = answers(1.5, 0).mean() - answers(0.0, 0).mean()
    assert c.difference == pytest.approx(gain) and c.num_images == IMAGES
    out = CliRunner().invoke(main, ["table", str(tmp_path)], env={"COLUMNS": "220"}).output
    flat = " ".join(out.split())
    assert "held-out acc." in flat and "held-out F1" in flat
    share = 100 * np.bincount(test).max() / test.size
    assert f"would be right on {share:.1f} %" in flat
    assert "% of 300 test images" in flat and "Held-out metrics in % of 1,003 images" in flat


def test_runs_of_other_folds_are_not_compared(tmp_path: Path) -> None:
    truth = np.zeros(200, np.int64) + np.arange(200) % 2
    write_folds(tmp_path, "baseline", truth=truth)
    other = (np.arange(200) // 2) % FOLDS
    write_folds(tmp_path, "dropout", truth=truth, fold_of=other)
    found = summary(tmp_path)
    text = "\n".join(found.sentences)
    assert not found.comparisons and "tested in other folds, or on other labels" in text
    file = tmp_path / "dropout-s0-f0/predictions.npz"
    arrays = dict(np.load(file))
    np.savez(file, probabilities=arrays["probabilities"], labels=arrays["labels"])
    assert "dropout-s0 (5 folds): predictions.npz is damaged" in "\n".join(
        summary(tmp_path).sentences
    )


def test_machines_and_choices_know_folds(tmp_path: Path) -> None:
    trained(tmp_path, {"baseline": 0.0, "batchnorm": 1.5}, seeds=1)

    def run(*words: str) -> str:
        done = CliRunner().invoke(main, ["table", str(tmp_path), *words], env={"COLUMNS": "160"})
        assert done.exit_code == 0, done.output
        return done.output

    baseline, batchnorm = json.loads(run("--format", "json"))
    assert (baseline["folds"], baseline["folds_done"], baseline["test_images"]) == (5, 5, IMAGES)
    assert batchnorm["test"] == "folds" and batchnorm["shown"] is True
    assert "held_out_accuracy" not in baseline
    [first, _] = csv.DictReader(io.StringIO(run("--format", "csv")))
    assert first["folds"] == "5" and first["seeds"] == "0"
    one = json.loads(run("--where", "fold==3", "--format", "json"))
    assert [(row["folds_done"], row["n"], row["difference"]) for row in one] == [(1, 1, None)] * 2
    assert "1 of 5" in run("--where", "fold==3")
    each = run("--group-by", "fold")
    flat = " ".join(each.split())
    assert "Grouped by fold: nothing is compared. ★ is the best of each fold." in flat
    # Of other images each: which of all rows is best, nobody can say.
    assert "Best:" not in flat and "ahead of ★" not in flat and flat.count("batchnorm ★") == 5
    assert len(json.loads(run("--group-by", "fold", "--format", "json"))) == 10


def test_two_folders_of_folds_are_compared(tmp_path: Path) -> None:
    truth = labels(IMAGES)
    for side, effect in (("a", 0.0), ("b", 1.5)):
        right = answers(effect, 0)
        write_folds(tmp_path / side, "baseline", truth=truth, correct=right)

    def compare(first: str, second: str) -> str:
        words = ["compare", str(tmp_path / first), str(tmp_path / second)]
        words += ["--out", str(tmp_path / "page.html")]
        done = CliRunner().invoke(main, words, env={"COLUMNS": "160"})
        assert done.exit_code == 0, done.output
        return " ".join(done.output.split())

    gain = 100 * (answers(1.5, 0).mean() - answers(0.0, 0).mean())
    said = compare("a", "b")
    assert f"B is right on +{gain:.1f} points of 1,003 held-out images" in said
    assert "5 folds" in said and "A is right more often on" in said
    apart = [answers(effect, 0)[2::FOLDS] for effect in (0.0, 1.5)]
    gain = 100 * (apart[1].mean() - apart[0].mean())
    said = compare("a/baseline-s0-f2", "b/baseline-s0-f2")
    assert f"+{gain:.1f} points of 201 test images" in said and "these two models" in said
    assert "not compared" in compare("a/baseline-s0-f2", "b/baseline-s0-f1")
    shutil.rmtree(tmp_path / "b/baseline-s0-f1")
    assert "B: baseline has 4 of 5 folds: not compared." in compare("a", "b")


@pytest.mark.slow
def test_the_page_shows_all_images_of_a_seed(digits: Path, tmp_path: Path, cli: Cli) -> None:
    """Trained: the gallery refuses pictures whose labels are not those of the predictions."""
    words = ("train", digits, "--runs", tmp_path, "--variants", "baseline,dropout", "--folds", 3)
    done = cli(*words, "--cpu", "--set", "model.hidden=[8]", "--set", "train.epochs=2")
    assert done.exit_code == 0, done.output
    done = cli("report", tmp_path)
    assert done.exit_code == 0 and "missing:" not in done.output, done.output
    page = (tmp_path / "report.html").read_text()
    for text in (
        "Fold by fold",
        "baseline, seed 0, 3 folds",
        "wrong in",
        "each tested by the fold",
    ):
        assert text in page, text
    assert {"folds_3.svg", "mistakes.png"} <= {path.name for path in tmp_path.glob("figures/*")}
    found = summary(tmp_path)
    total = sum(found.rows[0].runs[0].config.dataset.num_images.values())
    assert [row.test_images for row in found.rows] == [total, total]
    [c] = found.comparisons
    assert c.test == "folds" and c.folds == 3 and c.num_images == total


# By simulation


def test_a_mean_over_folds_varies_more_than_one_of_independent_sets() -> None:
    """Twice as wide an interval where `overlap` is four; the same test statistic otherwise."""
    rng = np.random.default_rng(0)
    accuracy = 0.9 + rng.normal(0, 0.01, (3, FOLDS))
    plain, wide = (
        pooled.differences(Moments(accuracy, np.zeros((3, 3)), 1000, overlap), [(1, 0), (2, 0)])
        for overlap in (1.0, 4.0)
    )
    assert wide.high - wide.low == pytest.approx(2 * (plain.high - plain.low))


def test_the_simulated_training_sets_overlap_as_they_do() -> None:
    world = simulation.World(train_sd=1.0)
    shares, trains = simulation.blocks(world.num_folds)
    assert shares.sum() == pytest.approx(1) and trains @ shares == pytest.approx(0.7)
    draws = np.random.default_rng(0).standard_normal((20_000, shares.size))
    effects = simulation.train_effects(world, trains, shares, draws)
    common = (trains[0] & trains[2]) @ shares / 0.7
    found = float(np.mean(effects[:, 0] * effects[:, 2]))
    assert effects.std(0) == pytest.approx(1, abs=0.03) and found == pytest.approx(common, abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("train_sd", [0.0, 0.5])
def test_levels_and_power_beside_one_split(train_sd: float) -> None:
    """At equal cost. 1.1: the standard error of a rate of 5 % over 400 repetitions."""
    world = simulation.World(2000, train_sd=train_sd)
    folds, split = (simulation.rates(world, way, 400) for way in ("folds", "split"))
    assert folds.any <= 5 + 1.1 and folds.covered >= 95 - 1.1
    assert folds.sd < 0.9 * split.sd
