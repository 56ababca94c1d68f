"""`hpc_mlp.table`, `summary` and `report` say what the commands say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.process import Cli
from support.runs import write_run

import hpc_mlp
from hpc_mlp.errors import UserError
from hpc_mlp.runs.folder import list_runs


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for seed in range(3):
        write_run(tmp_path / "runs", "baseline", seed)
        write_run(tmp_path / "runs", "dropout", seed, val_loss=0.3)
    return tmp_path / "runs"


def test_the_table_is_that_of_the_command(
    runs: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    table = hpc_mlp.table(runs)
    assert table.records() == json.loads(cli("table", runs, "--format", "json").stdout)
    printed = cli("table", runs).stdout
    for text in (printed, repr(table)):
        rows = [
            line.split() for line in text.splitlines() if line.startswith(("base", "dropout ★"))
        ]
        assert rows == [
            line.split()
            for line in str(table).splitlines()
            if line.startswith(("base", "dropout ★"))
        ]
    assert all(line in str(table) and line in printed for line in table.summary.sentences)
    assert repr(table).splitlines()[-1].startswith("dropout ★") and "Best:" not in repr(table)
    html = table._repr_html_()
    assert "dropout ★" in html and all(line in html for line in table.summary.sentences)
    assert list(table.to_pandas()["variant"]) == ["baseline", "dropout"]


def test_the_table_takes_runs_and_the_options_of_the_command(runs: Path) -> None:
    own = [run for run in list_runs(runs) if run.seed < 2]
    table = hpc_mlp.table(own, columns=["variant", "n", "interval"], sort="val_loss", by="variant")
    assert [row["variant"] for row in table.records()] == ["dropout", "baseline"]
    assert set(table.records()[0]) == {"variant", "n", "difference_low", "difference_high"}
    assert table.records()[0]["n"] == 2 and "95 % interval" in table._repr_html_()
    with pytest.raises(UserError, match="Did you mean 'val_loss'"):
        hpc_mlp.table(runs, columns=["val_los"])
    with pytest.raises(UserError, match="no runs to show"):
        hpc_mlp.table([])
    chosen = hpc_mlp.table(runs, where="seed<2")
    assert [row["n"] for row in chosen.records()] == [2, 2] and "seed<2" in str(chosen)
    with pytest.raises(UserError, match="give folders"):
        hpc_mlp.table(own, where="seed<2")


def test_a_narrow_prompt_gets_fewer_columns(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    text = repr(hpc_mlp.table(runs))
    assert (
        max(map(len, text.splitlines())) <= 60 and "images/s" not in text and "recall" not in text
    )


def test_the_summary_names_the_best_and_the_differences(runs: Path) -> None:
    found = hpc_mlp.summary(runs)
    assert found.best == "dropout" and any("Best: dropout" in line for line in found.sentences)
    [compared] = found.records()
    assert compared["name"] == "dropout" and compared["against"] == "baseline"
    assert "against baseline" in found._repr_html_()


def test_a_report_shows_its_figures_one_by_one(runs: Path, tmp_path: Path) -> None:
    report = hpc_mlp.report(runs, out=tmp_path / "page.html")
    assert report.path.is_file() and f'href="{tmp_path}/page.html"' in report._repr_html_()
    figure = report["val_loss"]
    assert figure.width > 300 and (figure._repr_png_() or b"")[:4] == b"\x89PNG"
    assert {row["figure"] for row in report.records()} == set(report.figures)
    assert all(row["png"].is_file() and row["svg"].is_file() for row in report.records())
    with pytest.raises(UserError, match="Did you mean 'val_loss'"):
        report["val_los"]


def test_runs_show_themselves(runs: Path) -> None:
    run = list_runs(runs)[0]
    assert repr(run).startswith("<Run baseline-s0: done, epoch 10 of 10, test accuracy ")
    assert "precision" in run._repr_html_() and len(run.records()) == 10
    assert {"class", "precision", "recall", "f1", "support"} == set(run.records()[0])
