"""`table` and `report` of some runs, of several folders, and of the first rows."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from support.process import Cli
from support.runs import write_run


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two variants, three learning rates, two seeds; the lower the rate, the lower the loss."""
    for lr in (0.1, 0.01, 0.001):
        for variant, loss in (("baseline", 0.5), ("dropout", 0.4)):
            for seed in (0, 1):
                write_run(
                    tmp_path / "runs", variant, seed, swept={"optim.lr": lr}, val_loss=loss + lr
                )
    return tmp_path / "runs"


def rows(cli: Cli, *words: object) -> list[dict[str, Any]]:
    done = cli("table", *words, "--format", "json")
    assert done.exit_code == 0, done.output
    found: list[dict[str, Any]] = json.loads(done.output)
    return found


def test_where_chooses_by_fields_and_keys(cli: Cli, runs: Path) -> None:
    where = "optim.lr<5e-2 and variant!=dropout"
    found = rows(cli, runs, "--where", where)
    assert [(row["variant"], row["optim.lr"], row["n"]) for row in found] == [
        ("baseline", 0.001, 2),
        ("baseline", 0.01, 2),
    ]
    assert f"--where {where}: 4 of 12 runs." in cli("table", runs, "--where", where).output
    assert [row["seeds"] for row in rows(cli, runs, "--where", "seed==1")] == [[1]] * 6
    assert len(rows(cli, runs, "--where", "val_loss<0.45")) == 2
    assert len(rows(cli, runs, "--where", "'lr=0.1' in name and status==done")) == 2


def test_a_choice_by_test_metrics_is_said(cli: Cli, runs: Path) -> None:
    text = cli("table", runs, "--where", "test_accuracy>0.5").output
    assert "Chosen by test_accuracy, on the test images" in text
    assert "on the test images: what" not in cli("table", runs, "--where", "seed==0").output


def test_where_nothing_is_found_the_values_are_named(cli: Cli, runs: Path) -> None:
    refused = cli("table", runs, "--where", "variant==dropuot and seed<5")
    assert refused.exit_code == 2
    assert "none of 12 runs" in refused.output
    assert "variant: baseline, dropout\n" in refused.output and "seed: 0, 1\n" in refused.output


def test_top_is_by_validation_loss_or_by_the_column(cli: Cli, runs: Path) -> None:
    found = rows(cli, runs, "--top", 3)
    assert [(row["variant"], row["optim.lr"]) for row in found] == [
        ("dropout", 0.001),
        ("dropout", 0.01),
        ("dropout", 0.1),
    ]
    by_f1 = rows(cli, runs, "--top", 2, "--sort", "f1")
    best = sorted((row["f1"] for row in rows(cli, runs)), reverse=True)[:2]
    assert [row["f1"] for row in by_f1] == best
    text = cli("table", runs, "--top", 2).output
    assert "Shown: 2 of 6 rows, the first by validation loss." in text
    assert len(rows(cli, runs, "--top", 99)) == 6
    assert cli("table", runs, "--top", 0).exit_code == 2


def test_group_by_is_by(cli: Cli, runs: Path) -> None:
    assert rows(cli, runs, "--group-by", "seed") == rows(cli, runs, "--by", "seed")


def test_folders_are_compared_by_what_differs(cli: Cli, tmp_path: Path) -> None:
    for folder, epochs in (("short", 5), ("long", 20)):
        for seed in (0, 1):
            write_run(tmp_path / folder, "baseline", seed, epochs=epochs, val_loss=1 / epochs)
    short, long = tmp_path / "short", tmp_path / "long"
    found = rows(cli, short, long)
    assert [(row["train.epochs"], row["seeds"], row["n"]) for row in found] == [
        (5, [0, 1], 2),
        (20, [0, 1], 2),
    ]
    assert found[0]["compared_with"] == "baseline epochs=20"
    by_folder = rows(cli, short, long, "--by", "folder")
    assert [row["folder"] for row in by_folder] == sorted(map(str, (short, long)))
    assert rows(cli, short, long, "--where", f"folder=='{short}'")[0]["n"] == 2
    # The same folder twice is one.
    assert rows(cli, short, short / ".." / "short") == rows(cli, short)


def test_the_same_run_in_two_folders_counts_once(cli: Cli, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write_run(tmp_path / folder, "baseline", 0)
    assert [row["n"] for row in rows(cli, tmp_path / "a", tmp_path / "b")] == [1]
    text = cli("table", tmp_path / "a", tmp_path / "b").output
    assert f"{tmp_path}/b/baseline-s0 is the same run as {tmp_path}/a/baseline-s0" in text


def test_folders_that_differ_in_much_are_told_by_name(cli: Cli, tmp_path: Path) -> None:
    write_run(tmp_path / "a", "baseline", 0)
    other: dict[str, Any] = {
        "optim": {"lr": 0.5, "weight_decay": 0.1},
        "model": {"dropout": 0.1, "hidden": [8]},
    }
    write_run(tmp_path / "b", "baseline", 0, config=other)
    assert [row["folder"] for row in rows(cli, tmp_path / "a", tmp_path / "b")] == [
        str(tmp_path / "a"),
        str(tmp_path / "b"),
    ]


def test_a_folder_without_runs_among_several_is_named(cli: Cli, runs: Path, tmp_path: Path) -> None:
    refused = cli("table", runs, tmp_path / "nosuch")
    assert refused.exit_code == 2 and "nosuch" in refused.output


def test_a_report_of_several_folders_lies_here(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, epochs in (("short", 5), ("long", 20)):
        write_run(tmp_path / folder, "baseline", 0, epochs=epochs)
        write_run(tmp_path / folder, "dropout", 0, epochs=epochs)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    done = cli("report", "../short", "../long", "--where", "variant==baseline", "--top", 1)
    assert done.exit_code == 0, done.output
    assert sorted(os.listdir()) == ["report-figures", "report.html"]
    page = Path("report.html").read_text()
    assert "Shown: 1 of 2 rows" in page and "2 of 4 runs" in page
    assert "dropout" not in page.partition("Reproduce")[0].replace("model.dropout", "")
