"""Comparisons in macro F1, loss and calibration error: against scikit-learn, scipy, and the same
thing by resampling."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from click.testing import CliRunner
from numpy.typing import NDArray
from sklearn.metrics import f1_score, log_loss
from support.folds import write_folds
from support.runs import labels, test_metrics, write_run

import hpc_mlp
from hpc_mlp.cli import main
from hpc_mlp.errors import UserError
from hpc_mlp.reporting import pooled
from hpc_mlp.reporting.columns import default_columns
from hpc_mlp.reporting.metrics import METRICS, image_values
from hpc_mlp.reporting.predictions import RunPredictions
from hpc_mlp.reporting.ranking import calibrate
from hpc_mlp.reporting.summary import Summary, summarise
from hpc_mlp.runs.folder import list_runs

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import simulate_metrics as simulation

NUM_IMAGES = 3000


def predictions(seed: int, present: int = 5, sharp: float = 1.0) -> RunPredictions:
    """Of six unbalanced classes, of which `present` occur."""
    num_images = 800
    rng = np.random.default_rng(seed)
    truth = rng.choice(
        present, num_images, p=np.arange(1, present + 1) / (present + 1) / present * 2
    )
    logits = rng.normal(0, 1, (num_images, 6))
    logits[:, present:] -= 9
    logits[np.arange(num_images), truth] += rng.normal(1.5, 2, num_images)
    shares = np.exp(sharp * logits) / np.exp(sharp * logits).sum(1, keepdims=True)
    return RunPredictions(shares.astype(np.float32), truth)


def part(found: RunPredictions, which: NDArray[np.int64]) -> RunPredictions:
    return RunPredictions(found.probabilities[which], found.labels[which])


def reference(name: str, found: RunPredictions) -> float:
    if name == "f1":
        return float(f1_score(found.labels, found.predicted, average="macro", zero_division=0))
    if name == "loss":
        shares = found.probabilities.astype(np.float64)
        shares /= shares.sum(1, keepdims=True)
        return float(log_loss(found.labels, shares, labels=range(6)))
    if name == "ece":
        return calibrate([found]).ece.mean
    return float((found.predicted == found.labels).mean())


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("present", [3, 5, 6])
def test_what_images_are_worth_adds_up_to_the_metric(name: str, present: int) -> None:
    found = predictions(present, present=present)
    assert image_values(name, found).mean() == pytest.approx(reference(name, found), rel=1e-6)


@pytest.mark.parametrize("name", ["f1", "ece"])
def test_an_image_is_worth_what_leaving_it_out_changes(name: str) -> None:
    """The jackknife's pseudo-value, and its variance that of draws of other images."""
    # Where a bin's gap is near 0, the ECE is not smooth.
    found = predictions(1, sharp=4.0 if name == "ece" else 1.0)
    values, size = image_values(name, found), len(found.labels)
    whole = reference(name, found)
    for i in range(0, size, 40):
        without = reference(name, part(found, np.delete(np.arange(size), i)))
        expected = size * whole - (size - 1) * without
        assert values[i] == pytest.approx(expected, abs=0.03 * np.ptp(values)), i
    rng = np.random.default_rng(0)
    drawn = [reference(name, part(found, rng.integers(size, size=size))) for _ in range(300)]
    assert np.std(drawn) == pytest.approx(values.std() / size**0.5, rel=0.15)


# Of runs


def trained(root: Path, above: dict[str, float], seeds: int = 3) -> dict[str, list[RunPredictions]]:
    """Runs of ten classes; `above`: what is added to the right logits."""
    truth = labels(NUM_IMAGES)
    rng = np.random.default_rng(7)
    easy = rng.normal(2.0, 1.0, NUM_IMAGES)
    found: dict[str, list[RunPredictions]] = {}
    for variant, shift in above.items():
        for seed in range(seeds):
            logits = rng.normal(0, 0.7, (NUM_IMAGES, 10))
            logits[np.arange(NUM_IMAGES), truth] += easy + shift + rng.normal(0, 0.03)
            shares = np.exp(logits)
            shares = (shares / shares.sum(1, keepdims=True)).astype(np.float32)
            folder = write_run(root, variant, seed, truth=truth, val_loss=0.5 - shift / 10)
            np.savez(folder / "predictions.npz", probabilities=shares, labels=truth)
            result = json.loads((folder / "result.json").read_text())
            result["test"] = test_metrics(truth, shares)
            (folder / "result.json").write_text(json.dumps(result))
            found.setdefault(variant, []).append(RunPredictions(shares, truth))
    return found


def summary(root: Path, metric: str) -> Summary:
    return summarise(list_runs(root), metric=metric)


ABOVE = {"baseline": 0.0, "dropout": 0.005, "batchnorm": 0.6}


@pytest.mark.parametrize("name", METRICS)
def test_rows_are_compared_in_the_metric(name: str, tmp_path: Path) -> None:
    runs = trained(tmp_path, ABOVE)
    found = summary(tmp_path, name)
    values = np.array([[image_values(name, one) for one in runs[v]] for v in ABOVE], np.float64)
    by_hand = values.mean((1, 2))
    moments = pooled.moments(values)
    tested = pooled.differences(moments, [(1, 0), (2, 0)])
    for i, c in enumerate(found.comparisons):
        assert (c.name, c.metric, c.test) == (list(ABOVE)[i + 1], name, "pooled")
        assert c.difference == pytest.approx(by_hand[i + 1] - by_hand[0])
        assert (c.low, c.high) == pytest.approx((tested.low[i], tested.high[i]), rel=1e-9)
        assert c.p_adjusted == tested.p_adjusted[i]
    # What the table shows is what is compared.
    column = METRICS[name].column
    shown = {row.variant: value.mean for row in found.rows if (value := row.values[column])}
    assert [*shown.values()] == pytest.approx([*by_hand], rel=1e-5)
    text = "\n".join(found.sentences)
    [gain] = [c for c in found.comparisons if c.name == "batchnorm"]
    if name in ("accuracy", "f1", "loss"):
        assert gain.shown and gain.gain > 0
        size = {
            "accuracy": f"{100 * gain.difference:.2f} points of test accuracy (95 % ",
            "f1": f"{100 * gain.difference:.2f} points of test macro F1 (95 % ",
            "loss": f"{-gain.difference:.4f} of test loss (95 % ",
        }[name]
        assert f"batchnorm beats baseline by {size}" in text
        assert "dropout cannot be told apart from baseline with 3 seeds" in text
    assert ("less is better" in text) == (name in ("loss", "ece"))
    assert ("calibrated models of the same confidences" in text) == (name == "ece")


def test_a_difference_of_ece_that_is_bias_alone_is_said(tmp_path: Path) -> None:
    """Calibrated models, of which one knows little: its ECE is larger by chance alone."""
    truth, rng = labels(NUM_IMAGES), np.random.default_rng(0)
    for variant, least, most in (("baseline", 0.998, 0.9995), ("dropout", 0.2, 1.0)):
        for seed in range(3):
            confidence = rng.uniform(least, most, NUM_IMAGES)
            said = np.where(rng.random(NUM_IMAGES) < confidence, truth, (truth + 1) % 10)
            shares = np.repeat((1 - confidence[:, None]) / 9, 10, axis=1).astype(np.float32)
            shares[np.arange(NUM_IMAGES), said] = confidence
            folder = write_run(tmp_path, variant, seed, truth=truth)
            np.savez(folder / "predictions.npz", probabilities=shares, labels=truth)
            result = json.loads((folder / "result.json").read_text())
            result["test"] = test_metrics(truth, shares)
            (folder / "result.json").write_text(json.dumps(result))
    found = summary(tmp_path, "ece")
    [c] = found.comparisons
    [line] = [line for line in found.sentences if "never below 0" in line]
    numbers = [float(number) for number in re.findall(r"([0-9.]+) \(", line)]
    assert c.differs and c.difference > 0.003
    bias = (numbers[1] - numbers[0]) / 100
    assert ("no larger than that of these alone" in line) == (c.difference <= bias)
    assert c.difference == pytest.approx(bias, rel=0.6)


def test_the_command_and_python_take_the_metric(tmp_path: Path) -> None:
    trained(tmp_path, ABOVE)
    words = ["table", str(tmp_path), "--metric", "loss", "--sort", "difference"]
    rows = json.loads(CliRunner().invoke(main, [*words, "--format", "json"]).output)
    # The largest gain first, where less is better.
    assert [row["variant"] for row in rows] == ["batchnorm", "dropout", "baseline"]
    assert rows[0]["metric"] == "loss" and rows[0]["difference"] < 0 and rows[2]["metric"] is None
    assert rows[0]["test_loss"] - rows[2]["test_loss"] == pytest.approx(rows[0]["difference"])
    rich = CliRunner().invoke(main, words).output
    assert "test loss" in rich and f"−{abs(rows[0]['difference']):.4f}" in rich
    table = hpc_mlp.table(tmp_path, metric="ece")
    [row] = [row for row in table.records() if row["variant"] == "dropout"]
    assert row["metric"] == "ece" and 0 < row["ece"] < 0.5
    assert "pseudo-value" in str(table)
    assert hpc_mlp.summary(tmp_path, metric="f1").records()[0]["metric"] == "f1"
    with pytest.raises(UserError, match="f1"):
        hpc_mlp.table(tmp_path, metric="f2")
    pair = hpc_mlp.compare(tmp_path / "baseline-s0", tmp_path / "batchnorm-s0", metric="loss")
    assert "of loss, of which less is better, on 3,000 test images" in str(pair)


@pytest.mark.parametrize("name", ["f1", "loss"])
def test_single_runs_are_compared_by_the_paired_t_test(name: str, tmp_path: Path) -> None:
    runs = trained(tmp_path, {"baseline": 0.0, "batchnorm": 0.1}, seeds=1)
    found = summary(tmp_path, name)
    [c] = found.comparisons
    own, base = (image_values(name, runs[variant][0]) for variant in ("batchnorm", "baseline"))
    expected = scipy.stats.ttest_rel(own, base)
    assert c.test == "paired" and not c.shown and c.detectable is None
    assert c.p == pytest.approx(expected.pvalue)
    interval = expected.confidence_interval()
    assert (c.low, c.high) == pytest.approx((interval.low, interval.high))
    text = "\n".join(found.sentences)
    assert "Of these trained models, one run each: batchnorm" in text


@pytest.mark.parametrize("name", ["f1", "loss"])
def test_folds_are_compared_in_the_metric(name: str, tmp_path: Path) -> None:
    """Nadeau & Bengio (2003), written out, of what the images of each fold are worth."""
    size, folds = 1000, 5
    truth, worth = labels(size), []
    for variant, share in (("baseline", 0.8), ("batchnorm", 0.83)):
        right = np.random.default_rng([3, len(variant)]).random(size) < share
        paths = write_folds(tmp_path, variant, truth=truth, correct=right)
        shares = np.empty((size, 10), np.float32)
        for path in paths:
            with np.load(path / "predictions.npz") as file:
                shares[file["rows"]] = file["probabilities"]
        worth.append(image_values(name, RunPredictions(shares, truth)))
    found = summary(tmp_path, name)
    [c] = found.comparisons
    apart = worth[1] - worth[0]
    by_fold = np.array([apart[k::folds].mean() for k in range(folds)])
    variance = (1 / folds + size / folds / (size - 300)) * by_fold.var(ddof=1)
    half = scipy.stats.t.ppf(0.975, folds - 1) * variance**0.5
    assert c.test == "folds" and c.difference == pytest.approx(apart.mean())
    assert c.high - c.low == pytest.approx(2 * half, rel=0.04)
    values = {row.variant: row.values[METRICS[name].column] for row in found.rows}
    means = {variant: value.mean for variant, value in values.items() if value}
    assert means["batchnorm"] - means["baseline"] == pytest.approx(c.difference, rel=1e-5)
    assert f"of held-out {METRICS[name].noun}" in "\n".join(found.sentences)


def test_of_a_given_test_split_the_held_out_loss_is_shown(tmp_path: Path) -> None:
    for variant in ("baseline", "dropout"):
        write_folds(tmp_path, variant, truth=labels(500), given_test=labels(100, seed=1))
    found = summary(tmp_path, "loss")
    baseline, dropout = (row.values["held_out_loss"] for row in found.rows)
    [c] = found.comparisons
    assert baseline and dropout
    assert c.difference == pytest.approx(dropout.mean - baseline.mean, rel=1e-5)
    assert {"test_loss", "held_out_loss"} <= {*default_columns(found)}
    assert "held_out_loss" not in default_columns(summary(tmp_path, "accuracy"))


@pytest.mark.slow
def test_the_page_is_of_the_metric(tmp_path: Path) -> None:
    trained(tmp_path, {"baseline": 0.0, "better": 0.5}, seeds=2)
    for folder in tmp_path.iterdir():
        config = json.loads((folder / "config.json").read_text())
        config["config"]["train"]["monitor"] = "f1"
        (folder / "config.json").write_text(json.dumps(config))
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        lines = [json.dumps(json.loads(line) | {"val_f1": 0.5}) + "\n" for line in lines]
        (folder / "metrics.jsonl").write_text("".join(lines))
    written = hpc_mlp.report(tmp_path, metric="loss")
    assert "val_f1" in written.figures
    text = written.path.read_text()
    assert "test loss" in text and "less is better" in text
    # Best first, where less is better.
    assert 0 < text.index(">better") < text.index(">baseline")


@pytest.mark.parametrize("name", METRICS)
def test_equal_models_do_not_differ(name: str, tmp_path: Path) -> None:
    truth = labels(50)
    for seeds, variants in ((1, ("baseline", "dropout")), (2, ("baseline", "dropout"))):
        root = tmp_path / str(seeds)
        for variant in variants:
            for seed in range(seeds):
                write_run(root, variant, seed, truth=truth, correct=np.arange(50) < 40)
        [c] = summary(root, name).comparisons
        assert not c.differs and c.difference == 0 and c.low <= 0 <= c.high


def test_levels_of_the_metrics_roughly() -> None:
    """tools/simulate_metrics.py has them of more settings and repetitions."""
    found = simulation.rates(simulation.Cell("equal", 300, num_seeds=3), 100)
    for name, (shown, _, right) in found.items():
        assert shown <= 11 and right >= 89, name
