"""`table --ensembles`: the runs of a row as one model, beside numpy and scikit-learn."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, log_loss, precision_recall_fscore_support
from support.folds import write_folds
from support.process import Cli
from support.runs import labels, write_run

import hpc_mlp
from hpc_mlp.reporting.naming import labelled
from hpc_mlp.reporting.summary import summarise
from hpc_mlp.runs.folder import list_runs

TRUTH = labels(400)


def records(cli: Cli, runs: Path, *options: str) -> list[dict[str, Any]]:
    done = cli("table", runs, "--format", "json", *options)
    assert done.exit_code == 0, done.output
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def errors(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """Expected calibration error by its definition, bin by bin."""
    sure, right = probabilities.max(1), probabilities.argmax(1) == truth
    bins = np.minimum((sure * 15).astype(int), 14)
    gaps = [abs((right - sure.astype(float))[bins == k].sum()) for k in range(15)]
    return float(sum(gaps) / truth.size)


def check(row: dict[str, Any], probabilities: np.ndarray, truth: np.ndarray) -> None:
    predicted = probabilities.argmax(1)
    assert row["test_accuracy"] == pytest.approx(accuracy_score(truth, predicted), abs=1e-12)
    assert row["test_loss"] == pytest.approx(log_loss(truth, probabilities), rel=1e-6)
    wanted = precision_recall_fscore_support(truth, predicted, average="macro", zero_division=0)
    for name, value in zip(("precision", "recall", "f1"), wanted, strict=False):
        assert row[name] == pytest.approx(value, abs=1e-12)
    assert row["ece"] == pytest.approx(errors(probabilities, truth), abs=1e-12)
    assert row["test_accuracy_sd"] is row["val_loss"] is row["seconds"] is row["wins"] is None


def test_a_row_is_the_mean_of_the_probabilities(tmp_path: Path, cli: Cli) -> None:
    for variant in ("baseline", "dropout"):
        for seed in range(3):
            write_run(tmp_path, variant, seed, truth=TRUTH)
    # No complete run, and a single one.
    write_run(tmp_path, "dropout", 3, truth=TRUTH, state="failed")
    write_run(tmp_path, "batchnorm", 0, truth=TRUTH)
    plain, found = records(cli, tmp_path), records(cli, tmp_path, "--ensembles")
    assert [(row["variant"], row["ensemble"]) for row in found] == [
        ("baseline", None),
        ("baseline", 3),
        ("dropout", None),
        ("dropout", 3),
        ("batchnorm", None),
    ]
    for row in (row for row in found if row["ensemble"]):
        paths = [tmp_path / f"{row['variant']}-s{seed}/predictions.npz" for seed in range(3)]
        parts = [np.load(path)["probabilities"].astype(np.float64) for path in paths]
        check(row, np.mean(parts, axis=0), TRUTH)
        assert row["seeds"] == [0, 1, 2] and row["n"] == 3 and row["parameters"] == 3 * 85_002
        assert row["best"] is False and row["p"] is None
        single = next(one for one in found if one["variant"] == row["variant"])
        assert single["ece"] == pytest.approx(np.mean([errors(part, TRUTH) for part in parts]))
    # The other rows are what they are without.
    for before, after in zip(plain, [row for row in found if not row["ensemble"]], strict=True):
        assert before == {key: after[key] for key in before}
        assert set(after) - set(before) == {"ece", "ece_sd", "ensemble"}
    table = csv.DictReader(
        io.StringIO(cli("table", tmp_path, "--ensembles", "--format=csv").stdout)
    )
    assert [row["ensemble"] for row in table] == ["", "3", "", "3", ""]


def test_the_error_of_a_row_is_of_all_runs_that_its_other_metrics_are_of(
    tmp_path: Path, cli: Cli
) -> None:
    states = ("done", "done", "diverged")
    paths = [
        write_run(tmp_path, "baseline", seed, truth=TRUTH, state=state)
        for seed, state in enumerate(states)
    ]
    row, ensemble = records(cli, tmp_path, "--ensembles")
    parts = [np.load(path / "predictions.npz")["probabilities"] for path in paths]
    assert row["n"] == 3 and ensemble["ensemble"] == 2
    assert row["ece"] == pytest.approx(np.mean([errors(part, TRUTH) for part in parts]))
    [of_metric] = records(cli, tmp_path, "--metric", "ece")
    assert of_metric["ece"] == row["ece"]


def test_neither_the_comparison_nor_the_best_nor_the_order_sees_them(tmp_path: Path) -> None:
    for variant, loss in (("baseline", 0.4), ("dropout", 0.3)):
        for seed in range(3):
            write_run(tmp_path, variant, seed, truth=TRUTH, val_loss=loss + seed / 100)
    runs = list_runs(tmp_path)
    without, with_them = summarise(runs), summarise(runs, ensembles=True)
    assert without.comparisons and without.comparisons == with_them.comparisons
    assert without.sentences == with_them.sentences
    assert [row.best for row in with_them.lines] == [False, False, True, False]
    shown = hpc_mlp.table(tmp_path, ensembles=True, sort="val_loss")
    lines = [line for line in str(shown).splitlines() if line.startswith(("  ens", "base", "drop"))]
    assert [line.split()[0] for line in lines[:4]] == [
        "dropout",
        "ensemble",
        "baseline",
        "ensemble",
    ]
    assert "not compared" in str(shown) and "ensemble" not in str(hpc_mlp.table(tmp_path))


def test_of_folds_each_image_by_the_folds_that_held_it_out(tmp_path: Path, cli: Cli) -> None:
    total = np.zeros((TRUTH.size, 10))
    for seed in range(2):
        for path in write_folds(tmp_path, "baseline", seed, truth=TRUTH, folds=4):
            arrays = np.load(path / "predictions.npz")
            total[arrays["rows"]] += arrays["probabilities"]
    # A seed that lacks folds does not count.
    write_folds(tmp_path, "baseline", 2, truth=TRUTH, folds=4, only=[0, 1])
    _, row = records(cli, tmp_path, "--ensembles")
    assert row["ensemble"] == 2 and row["seeds"] == [0, 1] and row["n"] == 8
    check(row, total / 2, TRUTH)


def test_beside_a_given_test_split_it_is_of_what_the_folds_held_out(
    tmp_path: Path, cli: Cli
) -> None:
    total = np.zeros((TRUTH.size, 10))
    for seed in range(2):
        given = labels(50, seed=1)
        for path in write_folds(tmp_path, "baseline", seed, truth=TRUTH, folds=4, given_test=given):
            arrays = np.load(path / "held_out.npz")
            total[arrays["rows"]] += arrays["probabilities"]
    single, row = records(cli, tmp_path, "--ensembles")
    # Deviations are over the folds there, not over the seeds.
    assert single["ece"] is not None and single["ece_sd"] is None
    assert "calibration error of what folds hold out" in " ".join(
        cli("table", tmp_path, "--ensembles", "--columns", "variant,ece").stdout.split()
    )
    assert row["held_out_accuracy"] == pytest.approx(accuracy_score(TRUTH, total.argmax(1)))
    assert row["test_accuracy"] is None and row["test_loss"] is None
    assert row["ece"] == pytest.approx(errors(total / 2, TRUTH), abs=1e-12)


def test_runs_of_different_images_have_none_and_it_is_said(tmp_path: Path, cli: Cli) -> None:
    write_run(tmp_path, "baseline", 0, truth=TRUTH)
    write_run(tmp_path, "baseline", 1, truth=labels(400, seed=5))
    assert [row["ensemble"] for row in records(cli, tmp_path, "--ensembles")] == [None]
    said = cli("table", tmp_path, "--ensembles").stdout
    assert "No ensemble of baseline: its runs were tested on different images" in said


def test_the_report_has_them(tmp_path: Path, cli: Cli) -> None:
    for seed in range(2):
        write_run(tmp_path, "baseline", seed, truth=TRUTH)
    assert cli("report", tmp_path).exit_code == 0
    page = (tmp_path / "report.html").read_text()
    assert page.count("ensemble of 2 seeds") == 1 and "are not compared" in page


def test_on_the_page_it_has_the_colour_of_its_row(tmp_path: Path) -> None:
    """Of many rows the best get the first colours, wherever they stand."""
    for number in range(7):
        for seed in range(2):
            swept = {"optim.lr": 0.001 * (number + 1)}
            write_run(tmp_path, "dropout", seed, val_loss=0.5 - 0.05 * number, swept=swept)
    rows = labelled(summarise(list_runs(tmp_path), ensembles=True).rows)
    assert {row.index for row in rows} == {*range(7)} and rows[1].index != 1
    assert [row.ensemble.index for row in rows if row.ensemble] == [row.index for row in rows]
