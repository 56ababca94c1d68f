"""A metric of one's own: in every record, table and page, deciding where it is asked to, alone
where it fails."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.own import BAD_METRIC, CPU, METRICS, SMALL, outcome, specs, variant, write_plugin
from support.process import Cli, metrics, result
from torch import Tensor

import hpc_mlp
from hpc_mlp.data.manifest import Manifest
from hpc_mlp.data.resident import load_resident
from hpc_mlp.live.live_file import folder_status
from hpc_mlp.live.render import render
from hpc_mlp.terminal.console import Console
from hpc_mlp.tracking.records import tracked
from hpc_mlp.training.session import train_specs

WORDS = tuple(word for setting in SMALL for word in ("--set", setting))


def by_hand(probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """float32 [N, K], int64 [N]"""
    best = probabilities.numpy().argsort(1)[:, -2:]
    truth = np.eye(probabilities.shape[1])[labels.numpy()]
    return {
        "top2": float((best == labels.numpy()[:, None]).any(1).mean()),
        "brier": float(((probabilities.numpy() - truth) ** 2).sum(1).mean()),
    }


@pytest.fixture
def runs(digits: Path, tmp_path: Path, cli: Cli) -> Path:
    """Two seeds of two variants that are shipped: the plugin is named by --config."""
    common = ("--config", write_plugin(tmp_path, METRICS), *WORDS, "--cpu")
    done = cli(
        "train", digits, "--runs", tmp_path / "runs", "--variants", "baseline,dropout", "--seeds",
        "0-1", *common,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "test top2" in done.output or "top2" in done.output
    return tmp_path / "runs"


def test_it_is_in_every_record_as_computed_by_hand(digits: Path, runs: Path) -> None:
    manifest = Manifest.load(digits)
    val = load_resident(digits, manifest, "val", torch.device("cpu"))
    for run in runs.iterdir():
        config = json.loads((run / "config.json").read_text())
        assert config["metrics"] == {
            "top2": {"higher_is_better": True},
            "brier": {"higher_is_better": False},
        }
        found = result(run)
        stored = np.load(run / "predictions.npz")
        test = [torch.from_numpy(stored[name]) for name in ("probabilities", "labels")]
        assert found["test"]["metrics"] == pytest.approx(by_hand(*test), rel=1e-5)
        # Of validation: by the best weights, in plain PyTorch.
        probabilities = hpc_mlp.load_run(run).probabilities(val.images)
        expected = by_hand(probabilities, val.labels)
        assert found["best_val_metrics"] == pytest.approx(expected, rel=1e-4)
        lines = metrics(run)
        assert [set(line["metrics"]) for line in lines] == [{"top2", "brier"}] * len(lines)
        assert lines[found["best_epoch"] - 1]["metrics"] == found["best_val_metrics"]
        # What a tracker is told.
        (told,) = tracked([run])
        assert [point.values["val_brier"] for point in told.points] == [
            line["metrics"]["brier"] for line in lines
        ]
        assert told.test and told.test.values["test_top2"] == found["test"]["metrics"]["top2"]


def test_evaluate_measures_it_where_its_file_may_be_run(
    digits: Path, runs: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs / "baseline-s0"
    measured = result(run)["test"]["metrics"]
    told = json.loads(cli("evaluate", run, digits, "--format", "json").stdout)
    assert told["metrics"] == pytest.approx(measured, rel=1e-5)
    assert f"own metrics: top2 {measured['top2']:.4f}" in cli("evaluate", run, digits).stdout
    # By somebody who has not trained with the file: the rest is measured all the same.
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "another"))
    refused = cli("evaluate", run, digits)
    assert refused.exit_code == 0 and "own metrics" not in refused.stdout
    assert "not measured: top2, brier" in refused.stderr and "--trust-plugins" in refused.stderr
    assert "own metrics" in cli("evaluate", run, digits, "--trust-plugins").stdout


def test_the_live_table_and_status_show_it(runs: Path, cli: Cli) -> None:
    found = [status for run in sorted(runs.iterdir()) if (status := folder_status(run))]

    def lines(width: int) -> list[str]:
        console = Console(file=(file := io.StringIO()), width=width, color_system=None)
        console.print(render(found, width, 40))
        return file.getvalue().splitlines()

    head, line = lines(120)[1:3]
    assert "val top2" in head and "val brier" in head
    last = [metrics(runs / f"baseline-s{seed}")[-1]["metrics"]["brier"] for seed in (0, 1)]
    assert f"{np.mean(last):.4f}" in line
    (first, *_) = json.loads(cli("status", runs, "--format", "json").stdout)
    assert first["val_brier"] == last[0]
    # Names come first.
    assert "brier" not in lines(50)[1]


def test_the_table_shows_it(runs: Path, cli: Cli) -> None:
    shown = cli("table", runs, "--format", "markdown")
    assert "| test top2 | test brier |" in shown.stdout
    assert "As their functions give them: top2 and brier." in shown.stdout
    chosen = cli("table", runs, "--columns", "variant,val_brier,test_brier", "--format", "markdown")
    rows = json.loads(cli("table", runs, "--format", "json", "--sort", "test_brier").stdout)
    assert f"{rows[0]['val_brier']:.3f} ± " in chosen.stdout
    mean = np.mean([result(runs / f"baseline-s{s}")["test"]["metrics"]["brier"] for s in (0, 1)])
    baseline = next(row for row in rows if row["variant"] == "baseline")
    assert baseline["test_brier"] == pytest.approx(mean) and baseline["test_brier_sd"] > 0
    # Less is better of one, more of the other.
    assert rows[0]["test_brier"] <= rows[1]["test_brier"]
    rows = json.loads(cli("table", runs, "--format", "json", "--sort", "val_top2").stdout)
    assert rows[0]["val_top2"] >= rows[1]["val_top2"]


@pytest.mark.slow
def test_the_report_shows_it(runs: Path, cli: Cli) -> None:
    assert cli("report", runs).exit_code == 0
    page = (runs / "report.html").read_text()
    assert "test top2" in page and "Validation: brier by epoch" in page
    assert {"val_top2.svg", "val_brier.svg"} <= {p.name for p in (runs / "figures").iterdir()}


def test_runs_without_it_have_a_row_all_the_same(
    digits: Path, runs: Path, tmp_path: Path, cli: Cli
) -> None:
    words = ("--runs", runs, "--variants", "batchnorm", *WORDS, "--cpu")
    assert cli("train", digits, *words).exit_code == 0
    rows = json.loads(cli("table", runs, "--format", "json").stdout)
    assert [row["test_top2"] is None for row in rows] == [False, False, True]
    (runs / "dropout-s0" / "result.json").write_text("{")
    rows = json.loads(cli("table", runs, "--format", "json").stdout)
    assert [row["status"][:7] for row in rows][-1] == "damaged"


@pytest.mark.parametrize(("monitor", "best"), [("top2", max), ("brier", min)])
def test_it_decides_which_epoch_is_best(
    digits: Path, tmp_path: Path, cli: Cli, monitor: str, best: Any
) -> None:
    """Also for those who see an unfinished run from elsewhere. A rate that is too high, so that
    the curves go up and down."""
    own = variant(tmp_path, "own", f'train.monitor = "{monitor}"\noptim.lr = 0.03', METRICS)
    sets = ("model.hidden=[16]", "train.epochs=8", "train.early_stopping=false")
    assert train_specs(digits, specs(str(own), [0], *sets), tmp_path / "runs", CPU) == 0
    run = tmp_path / "runs" / "own-s0"
    values = [line["metrics"][monitor] for line in metrics(run)]
    tied = [i for i, value in enumerate(values) if value == best(values)]
    wanted = 1 + min(tied, key=lambda i: metrics(run)[i]["val_loss"])
    assert result(run)["best_epoch"] == wanted
    for name in ("result.json", "predictions.npz"):
        (run / name).unlink()
    (row,) = json.loads(cli("table", tmp_path / "runs", "--format", "json").stdout)
    assert row["best_epoch"] == wanted and row[f"val_{monitor}"] == best(values)


FAILING = {
    'raise ValueError("no")': "metric 'bad' failed: ValueError: no",
    'return float("nan")': "metric 'bad' gives nan for 179 images",
    "return probabilities": "metric 'bad' gives [179, 10]; one number is needed.",
    'return "high"': "metric 'bad' gives str; one number is needed.",
}


@pytest.mark.parametrize(
    ("fails", "first"), [*((fails, 1) for fails in FAILING), ('raise ValueError("no")', 3)]
)
def test_one_that_fails_does_so_alone(
    digits: Path, healthy: Path, tmp_path: Path, cli: Cli, fails: str, first: int
) -> None:
    """After the second epoch, and of the test images."""
    code = BAD_METRIC.replace("FAILS", fails).replace("FIRST", str(first))
    bad = variant(tmp_path, "bad", "", code)
    variants = ("--variants", f"baseline,{bad},dropout_batchnorm", *WORDS, "--cpu")
    done = cli("train", digits, "--runs", tmp_path / "runs", *variants)
    assert done.exit_code == 1 and FAILING[fails] in done.output, done.output
    failed = json.loads((tmp_path / "runs" / "bad-s0" / "failed.json").read_text())
    assert failed["error"].startswith(FAILING[fails])
    assert not (tmp_path / "runs" / "bad-s0" / "result.json").exists()
    for run in healthy.iterdir():
        assert outcome(run) == outcome(tmp_path / "runs" / run.name), run.name


def test_a_run_that_diverges_is_not_one_whose_metric_fails(digits: Path, tmp_path: Path) -> None:
    code = BAD_METRIC.replace("FAILS", 'return float("nan")').replace("== FIRST", ">= 0")
    own = variant(tmp_path, "own", "optim = { name = 'sgd', lr = 1e30 }", code)
    assert train_specs(digits, specs(str(own), [0], *SMALL), tmp_path / "runs", CPU) == 0
    assert result(tmp_path / "runs" / "own-s0")["status"] == "diverged"


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["resident", "streaming"])
def test_processes_that_share_batches_give_the_number_of_one(
    digits: Path, tmp_path: Path, cli: Cli, mode: str
) -> None:
    own = variant(tmp_path, "own", "", METRICS)
    found = []
    for processes in (1, 2):
        runs = tmp_path / str(processes)
        split = ("--processes", processes, "--parallel", "data") if processes > 1 else ()
        words = ("--variants", own, *WORDS, "--cpu", "--set", f"data.mode={mode}", *split)
        done = cli("train", digits, "--runs", runs, *words)
        assert done.exit_code == 0, done.output
        found.append([line["metrics"] for line in metrics(runs / "own-s0")])
    for one, other in zip(*found, strict=True):
        assert one["brier"] == pytest.approx(other["brier"], rel=1e-3)
        assert abs(one["top2"] - other["top2"]) < 1.5 / 179


@pytest.mark.parametrize("name", ["accuracy", "last", "two words", "top-2"])
def test_names_that_are_taken_or_no_names(
    digits: Path, tmp_path: Path, cli: Cli, name: str
) -> None:
    code = f"import hpc_mlp\nhpc_mlp.register_metric({name!r})(lambda p, y: 1.0)\n"
    own = variant(tmp_path, "own", "", code)
    done = cli("train", digits, "--runs", tmp_path / "runs", "--variants", own)
    assert done.exit_code == 2 and f"metric {name!r}" in done.stderr
    assert not (tmp_path / "runs").exists()
