"""`hpc-mlp clean`: what it removes, what it says of it, and what it leaves alone."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.process import Cli, environment
from support.runs import write_run

import hpc_mlp
from hpc_mlp.runs.folder import list_runs

MB = 1_000_000
HOLDER = """
import sys, time
from pathlib import Path
from hpc_mlp.runs.lease import Lease
with Lease(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two complete runs, one unfinished and two failed ones, each with a checkpoint of 2 MB and
    what a killed process leaves."""
    root = tmp_path / "runs"
    for variant, seed, state in (
        ("baseline", 0, "done"),
        ("baseline", 1, "diverged"),
        ("baseline", 2, "unfinished"),
        ("dropout", 0, "failed"),
        ("dropout", 1, "failed"),
    ):
        folder = write_run(root, variant, seed, state=state)
        (folder / "last.ckpt").write_bytes(bytes(2 * MB))
        (folder / ".best.safetensors.abc").write_bytes(bytes(MB))
    return root


def test_checkpoints_of_complete_runs_and_leftovers_go(cli: Cli, runs: Path) -> None:
    before = files(runs)
    shown = cli("clean", runs, "--dry-run")
    assert shown.exit_code == 0 and files(runs) == before
    removed = cli("clean", runs)
    assert removed.exit_code == 0, removed.output
    assert before - files(runs) == {
        "baseline-s0/last.ckpt",
        "baseline-s1/last.ckpt",
        "baseline-s0/.best.safetensors.abc",
        "baseline-s1/.best.safetensors.abc",
        "baseline-s2/.best.safetensors.abc",
    }
    total = "2 checkpoints and leftovers in 3 runs, 7.0 MB"
    assert f"would be removed: {total}" in shown.output
    assert f"\nremoved: {total}" in removed.output
    for text in (shown.output, removed.output):
        assert f"{runs}/baseline-s0/last.ckpt  2.0 MB" in text
        assert "kept: 2 failed runs, 6." in text and "(--failed removes them)" in text
    again = cli("clean", runs)
    assert again.exit_code == 0 and "nothing removed" in again.output


def test_the_function_says_what_the_command_does(cli: Cli, runs: Path) -> None:
    before = files(runs)
    shown = hpc_mlp.clean(runs, failed=True, dry_run=True)
    assert cli("clean", runs, "--failed", "--dry-run").output == f"{shown}\n"
    assert files(runs) == before
    some = [run for run in list_runs(runs) if run.name == "baseline-s0"]
    assert {one["run"] for one in hpc_mlp.clean(some, dry_run=True).records()} == {"baseline-s0"}
    removed = hpc_mlp.clean(runs)
    kinds = [record["kind"] for record in removed.records()]
    assert (kinds.count("checkpoint"), kinds.count("leftovers")) == (2, 3)
    assert "kept: 2 failed runs" in str(removed) and removed.problems == []
    assert not any(Path(record["path"]).exists() for record in removed.records())


def test_halved_trials_keep_their_checkpoint_unless_asked(cli: Cli, runs: Path) -> None:
    for seed, state in ((1000, "halved"), (1001, "done"), (1002, "failed")):
        folder = write_run(runs / "search", "dropout", seed, state=state)
        if state == "halved":
            (folder / "result.json").write_text('{"status": "halved"}')
        (folder / "last.ckpt").write_bytes(bytes(2 * MB))
    halved = runs / "search" / "dropout-s1000" / "last.ckpt"
    kept = "kept: checkpoints of 1 halved trial, 2.0 MB (--halved removes them)"
    assert kept in cli("clean", runs / "search", "--dry-run").output
    said = cli("clean", runs, "--failed").output
    assert kept in said and "removed: 3 checkpoints" in said and "3 failed runs" in said
    assert halved.exists() and not (runs / "search" / "dropout-s1001" / "last.ckpt").exists()
    assert "removed: checkpoints of 1 halved trial, 2.0 MB" in cli("clean", runs, "--halved").output
    assert not halved.exists()


def test_failed_runs_go_where_that_is_asked_for(cli: Cli, runs: Path) -> None:
    done = cli("clean", runs, "--failed")
    assert done.exit_code == 0, done.output
    assert sorted(os.listdir(runs)) == ["baseline-s0", "baseline-s1", "baseline-s2"]
    assert (runs / "baseline-s2" / "last.ckpt").exists()
    assert "2 failed runs" in done.output


@pytest.fixture
def holder(runs: Path) -> Iterator[Path]:
    """A failed and a complete run that a living process holds."""
    held = [runs / "dropout-s0", runs / "baseline-s0"]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(folder)],
            env=environment(),
            stdout=subprocess.PIPE,
            text=True,
        )
        for folder in held
    ]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield runs
    for process in processes:
        process.kill()
        process.wait()


def test_what_somebody_holds_is_left_alone(cli: Cli, holder: Path) -> None:
    done = cli("clean", holder, "--failed", "--cache")
    assert done.exit_code == 0 and "left alone: 2 runs under way" in done.output
    assert (holder / "dropout-s0" / "last.ckpt").exists()
    assert (holder / "baseline-s0" / "last.ckpt").exists()
    assert not (holder / "dropout-s1").exists()
    assert not (holder / "baseline-s1" / "last.ckpt").exists()


def test_a_run_that_begins_between_the_look_and_the_removal(runs: Path) -> None:
    from hpc_mlp.errors import RunError
    from hpc_mlp.launch.clean import find, remove
    from hpc_mlp.runs.lease import Lease

    [waste] = [item for item in find([runs]).waste if item.paths == (runs / "dropout-s0",)]
    with Lease(runs / "dropout-s0"), pytest.raises(RunError, match="is being trained"):
        remove(waste)
    assert (runs / "dropout-s0" / "last.ckpt").exists()
    # It has been trained to its end meanwhile.
    (runs / "dropout-s0" / "result.json").write_bytes(
        (runs / "baseline-s0" / "result.json").read_bytes()
    )
    with pytest.raises(RunError, match="has changed meanwhile"):
        remove(waste)
    assert (runs / "dropout-s0" / "last.ckpt").exists()


def test_decoded_images_beside_the_shards(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runs of `write_run` name the shards folder `shards`."""
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs", "baseline", 0)
    cache = tmp_path / "shards" / ".cache"
    cache.mkdir(parents=True)
    for name in ("ab-train.npy", "ab-train.json", "ab-train.lock"):
        (cache / name).write_bytes(bytes(MB))
    assert "kept: the decoded images of 1 dataset, 2.0 MB" in cli("clean", "runs").output
    assert len(os.listdir(cache)) == 3
    assert cli("clean", "runs", "--cache").exit_code == 0
    assert os.listdir(cache) == ["ab-train.lock"]


def test_what_is_no_runs_folder_is_refused(cli: Cli, tmp_path: Path) -> None:
    for name in ("nosuch", "."):
        refused = cli("clean", tmp_path / name)
        assert refused.exit_code == 2 and "no runs" in refused.output


@pytest.mark.alone
def test_a_hundred_runs_take_not_long(cli: Cli, tmp_path: Path) -> None:
    for seed in range(100):
        folder = write_run(tmp_path, "baseline", seed)
        (folder / "last.ckpt").write_bytes(b"x")
    before = time.process_time()
    assert cli("clean", tmp_path).exit_code == 0
    # 0.3 s on a calm machine.
    assert time.process_time() - before < 3
    assert not list(tmp_path.glob("*/last.ckpt"))
