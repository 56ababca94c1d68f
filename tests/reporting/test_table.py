"""`hpc-mlp table`: what a person and a program read from a folder of runs."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from support.process import imports_seconds, processor_seconds
from support.runs import labels, write_run

from hpc_mlp.cli import main
from hpc_mlp.reporting.table import print_table
from hpc_mlp.terminal.console import Console

KEYS = {
    "variant",
    "seeds",
    "n",
    "parameters",
    "best_epoch",
    "val_loss",
    "test_accuracy",
    "precision",
    "recall",
    "f1",
    "images_per_second",
    "seconds",
    "status",
    "best",
}
FOUR = ("baseline", "dropout", "batchnorm", "dropout_batchnorm")


def table(*args: object) -> Result:
    return CliRunner().invoke(main, ["table", *map(str, args)])


def rows(*args: object) -> list[dict[str, Any]]:
    result = table(*args, "--format", "json")
    assert result.exit_code == 0, result.output
    found: list[dict[str, Any]] = json.loads(result.output)
    return found


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Four variants and dropout_l2, three seeds each; batchnorm is best."""
    losses = {
        "dropout_l2": 0.35,
        "dropout_batchnorm": 0.33,
        "batchnorm": 0.31,
        "dropout": 0.34,
        "baseline": 0.36,
    }
    for variant, loss in losses.items():
        for seed in range(3):
            write_run(tmp_path / "runs", variant, seed, val_loss=loss + 0.01 * seed)
    return tmp_path / "runs"


def test_rows_are_mean_and_sd_of_the_result_files(runs: Path) -> None:
    table_rows = rows(runs)
    assert [row["variant"] for row in table_rows] == [*FOUR, "dropout_l2"]
    for row in table_rows:
        results = [
            json.loads((runs / f"{row['variant']}-s{s}/result.json").read_text()) for s in range(3)
        ]
        assert row["seeds"] == [0, 1, 2] and row["n"] == 3 and row["status"] == "done"
        assert row["parameters"] == 85_002
        for key, values in {
            "test_accuracy": [result["test"]["accuracy"] for result in results],
            "precision": [result["test"]["precision"] for result in results],
            "recall": [result["test"]["recall"] for result in results],
            "f1": [result["test"]["f1"] for result in results],
            "val_loss": [result["best_val_loss"] for result in results],
            "seconds": [result["seconds"] for result in results],
        }.items():
            assert row[key] == pytest.approx(statistics.mean(values), abs=1e-12)
            assert row[f"{key}_sd"] == pytest.approx(statistics.stdev(values), abs=1e-12)
    assert [row["variant"] for row in table_rows if row["best"]] == ["batchnorm"]


def test_single_runs_have_the_same_keys(tmp_path: Path, runs: Path) -> None:
    write_run(tmp_path / "single", "dropout", 7)
    [row] = rows(tmp_path / "single")
    assert set(row) == set(rows(runs)[0]) >= KEYS
    assert row["seeds"] == [7] and row["n"] == 1 and row["test_accuracy_sd"] is None
    assert isinstance(row["best_epoch"], int) and row["best"] is True


def test_failed_diverged_and_unfinished_runs_are_shown(tmp_path: Path) -> None:
    write_run(tmp_path, "baseline", 0)
    write_run(tmp_path, "baseline", 1, state="failed")
    write_run(tmp_path, "dropout", 0, state="unfinished", val_loss=0.01)
    write_run(tmp_path, "batchnorm", 0, state="failed")
    folder = write_run(tmp_path, "dropout_l2", 0, state="diverged", val_loss=0.2)
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(
        json.dumps(result | {"test": None, "best_val_loss": float("nan")})
    )
    by_name = {row["variant"]: row for row in rows(tmp_path)}
    assert by_name["baseline"]["status"] == "1 done, 1 failed"
    assert by_name["baseline"]["seeds"] == [0, 1] and by_name["baseline"]["n"] == 1
    assert (
        by_name["dropout"]["status"] == "unfinished" and by_name["dropout"]["test_accuracy"] is None
    )
    # So far.
    assert by_name["dropout"]["best_epoch"] == 5
    assert by_name["batchnorm"]["status"] == "failed"
    assert (
        by_name["dropout_l2"]["status"] == "diverged" and by_name["dropout_l2"]["val_loss"] is None
    )
    # A lower loss of a run that has not finished does not count.
    assert by_name["baseline"]["best"]
    text = table(tmp_path).output
    assert "batchnorm-s0 failed: CUDA out of memory" in text
    assert "dropout-s0 (5 of 10 epochs)" in text and "dropout_l2-s0 (in its first epoch)" in text


def test_a_group_with_a_diverged_run_is_not_the_best_a_failed_job_does_not_matter(
    tmp_path: Path,
) -> None:
    for seed in (0, 1):
        write_run(tmp_path, "baseline", seed, val_loss=0.5)
        write_run(tmp_path, "dropout", seed, val_loss=0.1, state=("done", "diverged")[seed])
        write_run(tmp_path, "batchnorm", seed, val_loss=0.3, state=("done", "failed")[seed])
    assert [row["variant"] for row in rows(tmp_path) if row["best"]] == ["batchnorm"]
    assert "the mean of dropout is lower, but a run of it diverged" in table(tmp_path).output


@pytest.mark.parametrize("width", [60, 80, 100, 140, 200])
def test_fits_the_terminal_and_cuts_nothing(runs: Path, width: int) -> None:
    console = Console(
        width=width, force_terminal=True, color_system=None, record=True, file=io.StringIO()
    )
    print_table(runs, console)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text.split("\n\n")[0]
    for name in ["dropout_batchnorm", "test", "val."] if width >= 80 else ["dropout", "test"]:
        assert name in text
    assert ("No room here for" in text) == (width < 140)
    if width >= 80:
        assert "recall" in text and "precision" in text
    for row in rows(runs):
        assert f"{100 * row['test_accuracy']:.1f}" in text


@pytest.mark.parametrize("columns", [None, 60, 100, 200])
def test_piped_it_is_plain_and_as_wide_as_columns(runs: Path, columns: int | None) -> None:
    env = os.environ | {"PYTHONIOENCODING": "utf-8"}
    env.pop("COLUMNS", None)
    env |= {"COLUMNS": str(columns)} if columns else {}
    command = [sys.executable, "-m", "hpc_mlp", "table", str(runs)]

    def piped(**more: str) -> bytes:
        done = subprocess.run(
            command, capture_output=True, env=env | more, check=True, stdin=subprocess.DEVNULL
        )
        return done.stdout

    text = piped().decode()
    assert "\x1b" not in text and max(map(len, text.splitlines())) <= (columns or 80)
    assert "set COLUMNS, or choose --columns" in " ".join(text.split()) or columns == 200
    assert sum("★" in line for line in text.split("\n\n")[0].splitlines()) == 1
    if columns == 200:
        titles = ("parameters", "images/s", "recall", "val. loss", "seconds", "status")
        assert all(title in text.splitlines()[0] for title in titles)
    if columns is None:
        assert "batchnorm *" in piped(PYTHONIOENCODING="ascii").decode("ascii")


def test_csv_and_markdown_say_the_same(runs: Path) -> None:
    expected = rows(runs)
    read = list(csv.DictReader(io.StringIO(table(runs, "--format", "csv").output)))
    assert [row["variant"] for row in read] == [row["variant"] for row in expected]
    assert list(read[0]) == list(expected[0])
    assert [float(row["f1"]) for row in read] == [row["f1"] for row in expected]
    assert read[0]["seeds"] == "0 1 2" and read[2]["best"] == "true"
    markdown = table(runs, "--format", "markdown").output
    lines = [line for line in markdown.split("\n\n")[0].splitlines() if line.startswith("|")]
    assert len(lines) == 7 and len({line.count("|") for line in lines}) == 1
    assert "**batchnorm ★**" in markdown and "validation loss" in markdown


def test_sort_and_columns(runs: Path) -> None:
    for column, best_first in (("val_loss", False), ("test_accuracy", True), ("variant", False)):
        values = [row[column] for row in rows(runs, "--sort", column)]
        assert values == sorted(values, reverse=best_first)
    assert list(rows(runs, "--columns", "f1,variant")[0]) == ["f1", "variant"]
    head = table(runs, "--columns", "variant,f1,test_images").output.splitlines()[0]
    assert head.split() == ["variant", "F1", "test", "images"]


def test_sweeps_group_by_what_varies(tmp_path: Path) -> None:
    for lr in (0.01, 0.001):
        for seed in (0, 1):
            write_run(tmp_path, "dropout", seed, swept={"optim.lr": lr}, val_loss=0.3 + lr)
            write_run(tmp_path, "dropout", seed + 5, swept={"optim.lr": lr, "model.dropout": 0.2})
    grouped = rows(tmp_path)
    assert [(row["optim.lr"], row["model.dropout"], row["seeds"]) for row in grouped] == [
        (0.001, 0.2, [5, 6]),
        (0.001, 0.5, [0, 1]),
        (0.01, 0.2, [5, 6]),
        (0.01, 0.5, [0, 1]),
    ]
    by_lr = rows(tmp_path, "--by", "optim.lr")
    assert [(row["optim.lr"], row["n"]) for row in by_lr] == [(0.001, 4), (0.01, 4)]
    assert len(rows(tmp_path, "--by", "seed")) == 4
    assert [row["n"] for row in rows(tmp_path, "--by", "variant")] == [8]
    assert "optim.lr" in table(tmp_path).output.splitlines()[0]
    # Where room lacks, a key stands on two lines, and no word is cut.
    print_table(tmp_path, Console(width=60, color_system=None, file=(file := io.StringIO())))
    above, below = file.getvalue().splitlines()[:2]
    assert above.split()[:2] == ["optim.", "model."] and {"lr", "dropout"} <= {*below.split()}


def test_wrong_input_is_one_message(tmp_path: Path, runs: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    wrong: list[tuple[list[object], str]] = [
        ([tmp_path / "nosuch"], "nosuch"),
        ([tmp_path / "empty"], "no runs"),
        ([tmp_path / "file"], "file"),
        ([runs, "--sort", "f2"], " f1,"),
        ([runs, "--columns", "varian"], "'variant'"),
        ([runs, "--columns", ","], "no column"),
        ([runs, "--by", "optim.lrr"], "'optim.lr'"),
        ([runs, "--format", "xml"], "markdown"),
    ]
    for args, word in wrong:
        result = table(*args)
        assert result.exit_code == 2 and word in result.output and "Traceback" not in result.output
        assert isinstance(result.exception, SystemExit)


@pytest.mark.alone
def test_starts_at_once_without_torch(runs: Path) -> None:
    code = "import sys; from hpc_mlp.cli import main\ntry: main()\n"
    code += "finally: assert 'torch' not in sys.modules"
    seconds = processor_seconds([sys.executable, "-c", code, "table", str(runs)])
    assert seconds < 10 * imports_seconds()


def test_rows_of_two_datasets_stay_apart(tmp_path: Path) -> None:
    for digest in ("a" * 64, "b" * 64):
        for seed, variant in enumerate(FOUR[:2]):
            write_run(
                tmp_path,
                variant,
                seed + 10 * (digest[0] == "b"),
                digest=digest,
                val_loss=0.3 + seed,
                truth=labels(300),
                correct=np.arange(300) % 7 > 0,
            )
    found = rows(tmp_path)
    assert [(row["dataset"][0], row["variant"], row["best"]) for row in found] == [
        ("a", "baseline", True),
        ("b", "baseline", True),
        ("a", "dropout", False),
        ("b", "dropout", False),
    ]


def test_comparison_columns_can_be_chosen_and_sorted(runs: Path) -> None:
    columns = "variant,difference,interval,p_adjusted"
    told = json.loads(
        table(runs, "--format", "json", "--sort", "difference", "--columns", columns).output
    )
    assert list(told[0]) == [
        "variant",
        "difference",
        "difference_low",
        "difference_high",
        "p_adjusted",
    ]
    known = [row["difference"] for row in told if row["difference"] is not None]
    assert known == sorted(known, reverse=True) and len(known) >= 2
    # The baseline itself.
    assert told[-1]["difference"] is None
    for form in ("rich", "markdown"):
        text = table(runs, "--format", form, "--sort", "difference", "--columns", columns).output
        first = next(line for line in text.splitlines() if told[0]["variant"] in line)
        assert f"{100 * told[0]['difference']:+.1f}".replace("-", "−") in first and " … " in first
        # The comparisons are in the table already.
        assert "against baseline" not in text
    csv = table(runs, "--format", "csv", "--columns", columns).output.splitlines()
    assert csv[0] == "variant,difference,difference_low,difference_high,p_adjusted"


# A run that lies there twice


def test_a_copy_of_a_run_is_named_and_counted_once(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path, "baseline", seed)
    before = rows(tmp_path)
    for name in ("renamed", "a-copy"):
        shutil.copytree(tmp_path / "baseline-s0", tmp_path / name)
    assert rows(tmp_path) == before and before[0]["n"] == 2
    text = table(tmp_path).output
    for name in ("renamed", "a-copy"):
        assert (
            f"{name} is the same run as baseline-s0 (configuration, dataset and seed): counted "
            "once." in text
        )
    # Without the original one of the copies counts, and where there is one alone nothing is said.
    shutil.rmtree(tmp_path / "baseline-s0")
    assert (
        rows(tmp_path) == before and "renamed is the same run as a-copy" in table(tmp_path).output
    )
    shutil.rmtree(tmp_path / "renamed")
    assert rows(tmp_path) == before and "the same run" not in table(tmp_path).output


def test_the_default_inside_a_sweep_counts_once(tmp_path: Path) -> None:
    write_run(tmp_path, "baseline", 0)
    write_run(tmp_path, "baseline", 0, swept={"optim.lr": 0.001})
    write_run(tmp_path, "baseline", 0, swept={"optim.lr": 0.01})
    assert [(row["optim.lr"], row["n"]) for row in rows(tmp_path)] == [(0.001, 1), (0.01, 1)]


def test_runs_that_differ_are_no_copies(tmp_path: Path) -> None:
    """In the seed, the dataset, a key that decides the result, the variant; or in one that was
    swept on purpose."""
    write_run(tmp_path / "a", "baseline", 0)
    write_run(tmp_path / "a", "baseline", 1)
    shutil.move(
        write_run(tmp_path / "b", "baseline", 0, digest="1" * 64), tmp_path / "a" / "other-data"
    )
    shutil.move(
        write_run(tmp_path / "b", "baseline", 0, config={"optim": {"lr": 0.5}}),
        tmp_path / "a" / "other-lr",
    )
    write_run(tmp_path / "a", "mine", 0)
    assert "the same run" not in table(tmp_path / "a").output
    for workers in (0, 2):
        write_run(tmp_path / "c", "baseline", 0, swept={"train.max_seconds": workers})
    assert len(rows(tmp_path / "c")) == 2 and "the same run" not in table(tmp_path / "c").output
    assert "the same run" in table(tmp_path / "c", "--by", "variant").output


# Wrong words


@pytest.mark.parametrize(
    ("arguments", "right"),
    [
        (["--by", "lr"], "Did you mean 'optim.lr'?"),
        (["--sort", "accuracy"], "Did you mean 'val_accuracy' or 'test_accuracy'?"),
        (["--columns", "variant,accuracy"], "Did you mean 'val_accuracy' or 'test_accuracy'?"),
    ],
)
def test_a_part_of_a_name_is_answered_with_the_whole(
    runs: Path, arguments: list[str], right: str
) -> None:
    refused = table(runs, *arguments)
    assert refused.exit_code == 2 and right in refused.output


def test_a_mistyped_verb_is_answered_with_the_right_one() -> None:
    for word, answer in (
        ("trian", " Did you mean 'train'?"),
        ("tabel", " Did you mean 'table'?"),
        ("xyz", ""),
    ):
        refused = CliRunner().invoke(main, [word, "shards"])
        assert refused.exit_code == 2 and refused.stderr.endswith(
            f"No such command {word!r}.{answer}\n"
        )
