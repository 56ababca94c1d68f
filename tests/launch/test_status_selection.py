"""`status` of several folders, of some runs, and by groups."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from support.process import Cli
from support.runs import write_run

import hpc_mlp
from hpc_mlp.cli import main
from hpc_mlp.errors import UserError
from hpc_mlp.runs.folder import list_runs


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for seed, lr in enumerate((0.1, 0.01, 0.001)):
        write_run(tmp_path / "runs", "baseline", seed, swept={"optim.lr": lr}, val_loss=0.5 - lr)
    write_run(tmp_path / "runs", "dropout", 0, state="failed")
    return tmp_path / "runs"


def names(cli: Cli, *words: object, code: int = 0) -> list[str]:
    done = cli("status", *words, "--format", "json")
    assert done.exit_code == code, done.output
    found: list[dict[str, Any]] = json.loads(done.output)
    return [row["name"] for row in found]


def test_in_python_they_are_chosen_too(runs: Path) -> None:
    assert [one.name for one in hpc_mlp.status(runs, where="seed==0", top=1)] == [
        "baseline-s0-optim.lr=0.1"
    ]
    some = list_runs(runs)[1:3]
    assert {one.name for one in hpc_mlp.status(some)} == {run.name for run in some}
    assert [one.name for one in hpc_mlp.status(some[0])] == [some[0].name]
    assert len(hpc_mlp.table(runs, where="variant==baseline", top=2).records()) == 2
    with pytest.raises(UserError, match="give folders of runs, or runs"):
        hpc_mlp.status([])


def test_where_and_top(cli: Cli, runs: Path) -> None:
    assert names(cli, runs, "--where", "state==failed", code=1) == ["dropout-s0"]
    assert names(cli, runs, "--where", "optim.lr<=0.01 and variant==baseline") == [
        "baseline-s1-optim.lr=0.01",
        "baseline-s2-optim.lr=0.001",
    ]
    assert names(cli, runs, "--where", "variant==baseline", "--top", 1) == [
        "baseline-s0-optim.lr=0.1"
    ]
    refused = cli("status", runs, "--where", "stat==failed")
    assert refused.exit_code == 2 and "Did you mean 'state'?" in refused.output
    refused = cli("status", runs, "--where", "seed>90")
    assert refused.exit_code == 2 and "none of 4 runs" in refused.output


def test_several_folders(cli: Cli, runs: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "more", "baseline", 0)
    found = names(cli, runs, tmp_path / "more", "--where", "variant==baseline and seed==0")
    assert found == [f"{runs}/baseline-s0-optim.lr=0.1", f"{tmp_path}/more/baseline-s0"]
    refused = cli("status", runs, tmp_path / "nosuch")
    assert refused.exit_code == 2 and "nosuch" in refused.output


def test_one_row_a_group(cli: Cli, runs: Path) -> None:
    lines = cli("status", runs, "--by", "variant").output.splitlines()
    [baseline] = [line for line in lines if "baseline " in line]
    assert "3 done" in baseline and "30/30" in baseline and "0.4000" in baseline
    [dropout] = [line for line in lines if "dropout" in line and "1 failed" in line]
    assert "5/10" in dropout
    refused = cli("status", runs, "--by", "lr")
    assert refused.exit_code == 2 and "Did you mean 'optim.lr'?" in refused.output


@pytest.mark.parametrize("columns", [60, 80])
def test_it_fits_a_pipe(runs: Path, columns: int) -> None:
    runner = CliRunner(env={"COLUMNS": str(columns)})
    text = runner.invoke(main, ["status", str(runs)]).output
    assert max(map(len, text.splitlines())) <= columns
    # The failed run's own traceback; nothing is cut off.
    assert text.count("…") == 1
