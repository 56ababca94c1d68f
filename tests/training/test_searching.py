"""A search trained: killed, continued, dealt out over processes, its halving taken off: the same
bits."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path

import pytest
from support.interrupted import Guillotine, Killed, check_equal, tensors
from support.process import Cli, command, result, run_process, timeless

import hpc_mlp
from hpc_mlp.config.assignments import parse_set
from hpc_mlp.config.plan import RunSpec, TrainOptions, parse_variants
from hpc_mlp.config.search import plan_search, read_search

SETTINGS = ["model.hidden=[16]", "train.batch_size=256", "train.epochs=4", "optim.lr=3e-3"]
SETTINGS += ["train.early_stopping=false", "schedule.name=cosine"]
LOCAL = ("--cluster", "local")
SEARCH = ["model.dropout=0:0.6", "optim.weight_decay=log:1e-6:1e-1"]


def specs(halving: int = 2, trials: int = 4, seeds: str = "1000,1001") -> list[RunSpec]:
    found = read_search((), SEARCH, trials, halving, seeds)
    return plan_search(found, parse_variants("baseline,dropout"), [0], (), parse_set(SETTINGS))


def train(digits: Path, runs: Path, planned: list[RunSpec]) -> int:
    from hpc_mlp.training.session import train_specs

    return train_specs(digits, planned, runs, TrainOptions(cpu=True))


@pytest.fixture(scope="module")
def undisturbed(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("undisturbed")
    assert train(digits, runs, specs()) == 0
    return runs


def check_same(runs: Path, undisturbed: Path) -> None:
    """The winners' runs and the records; of the trials also what a halved one goes on from."""
    for variant in ("baseline", "dropout"):
        name = f"search/{variant}.json"
        assert (runs / name).read_bytes() == (undisturbed / name).read_bytes()
        mine, other = runs / f"{variant}-s0", undisturbed / f"{variant}-s0"
        assert (mine / "predictions.npz").read_bytes() == (other / "predictions.npz").read_bytes()
        assert timeless(mine) == timeless(other)
    for other in (undisturbed / "search").glob("*-t*"):
        mine = runs / "search" / other.name
        for name in ("best.safetensors", "last.ckpt"):
            assert (mine / name).exists() == (other / name).exists(), mine
            if (mine / name).exists():
                assert tensors(mine / name) == tensors(other / name), mine
        assert timeless(mine) == timeless(other)
        keys = ("status", "stopped", "epochs_run", "best_epoch", "best_val_loss", "test")
        one, two = result(mine), result(other)
        assert [one[key] for key in keys] == [two[key] for key in keys]


def test_what_a_search_leaves(undisturbed: Path, cli: Cli) -> None:
    states = {
        path.name: (found["status"], found["epochs_run"], found["test"])
        for path in (undisturbed / "search").glob("*-t*")
        for found in [result(path)]
    }
    # Each variant: four trials of one epoch, two of two, one of four; two seeds each.
    assert sorted(states.values(), key=str) == (
        [("done", 4, None)] * 4 + [("halved", 1, None)] * 8 + [("halved", 2, None)] * 4
    )
    rows = json.loads(str(cli("table", undisturbed, "--format", "json").stdout))
    assert [(row["variant"], row["seeds"], row["n"]) for row in rows] == [
        ("baseline", [0], 1),
        ("dropout", [0], 1),
    ]
    said = str(cli("table", undisturbed).stdout)
    assert "Searched: optim.weight_decay log:1e-06:0.1, model.dropout 0:0.6; 4 trials of" in said
    assert "each variant, seeds 1000-1001, one in 2 going on after epoch 1 and 2 of 4." in said
    assert "baseline had fewer keys to search (not model.dropout, which make it)." in said
    assert "Chosen by validation: baseline trial" in said
    status = str(cli("status", undisturbed).stdout)
    assert "trials: 12 halved, 4 done" in status
    record = json.loads((undisturbed / "search" / "dropout.json").read_text())
    config = json.loads((undisturbed / "dropout-s0" / "config.json").read_text())
    won = next(trial for trial in record["trials"] if trial["trial"] == record["winner"])
    assert config["trial"] == record["winner"]
    assert config["config"]["model"]["dropout"] == won["values"]["model.dropout"]
    # By the mean over the seeds of the best validation loss.
    means = [
        sum(result(undisturbed / "search" / f"dropout-s{seed}-t{trial:03d}")["best_val_loss"]
            for seed in (1000, 1001)) / 2
        for trial in [record["winner"]]
    ]  # fmt: skip
    assert won["scores"][-1] == pytest.approx(means[0])


def test_what_is_damaged_is_written_anew_as_it_is_said(
    digits: Path, undisturbed: Path, tmp_path: Path, cli: Cli
) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(undisturbed, runs)
    (runs / "search" / "dropout.json").write_text("{")
    assert "The same `train` command writes it anew" in " ".join(cli("table", runs).stdout.split())
    again = cli("train", digits, *words(runs))
    assert (
        again.exit_code == 0
        and "2 of 2 runs are complete; --overwrite begins the whole" in again.output
    )
    check_same(runs, undisturbed)
    # Of a trial: by --overwrite, of `submit` too.
    (runs / "search" / "dropout-s1000-t000" / "config.json").write_text("{")
    send = ("submit", digits, *words(runs), *LOCAL, "--dry-run")
    refused = cli(*send)
    assert refused.exit_code == 1 and "with --overwrite" in refused.output
    planned = cli(*send, "--overwrite")
    assert planned.exit_code == 0 and "18 runs in 2 jobs" in planned.output, planned.output


def test_a_run_in_the_place_of_a_winners_is_told_before_the_search(
    digits: Path, undisturbed: Path, tmp_path: Path, cli: Cli
) -> None:
    shutil.copytree(undisturbed / "dropout-s0", tmp_path / "dropout-s0")
    path = tmp_path / "dropout-s0" / "config.json"
    # With the values of one of the trials it may be there.
    assert (
        "18 runs in 2 jobs" in cli("submit", digits, *words(tmp_path), "--dry-run", *LOCAL).output
    )
    config = json.loads(path.read_text())
    config["config"]["optim"]["lr"] = 0.5
    path.write_text(json.dumps(config))
    for command_ in ("submit", "train"):
        told = cli(command_, digits, *words(tmp_path), *(LOCAL if command_ == "submit" else ()))
        assert told.exit_code == 2 and "no trial of this search can have won" in told.output
    assert not (tmp_path / "search").exists()


def test_a_search_that_finds_nothing_says_so(digits: Path, tmp_path: Path, cli: Cli) -> None:
    search = ("--search", "optim.lr=log:1e30:1e36", "--trials", "2", "--set", "optim.name=sgd")
    small = ("--set", "model.hidden=[8]", "--set", "train.epochs=1", "--cpu", "--runs", tmp_path)
    done = cli("train", digits, "--variants", "baseline", *search, *small)
    assert done.exit_code == 1 and "every trial diverged" in done.output, done.output
    record = json.loads((tmp_path / "search" / "baseline.json").read_text())
    assert [trial["state"] for trial in record["trials"]] == ["diverged"] * 2
    for command_ in ("table", "status"):
        told = cli(command_, tmp_path)
        assert told.exit_code == 2 and "has only trials of a search so far" in told.output


@pytest.mark.slow
def test_killed_and_continued(
    digits: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off at renames of files: while it begins, at rungs, in the winners' runs."""
    with monkeypatch.context() as patch:
        counter = Guillotine(os.replace, 0, after=False)
        patch.setattr(os, "replace", counter)
        assert train(digits, tmp_path / "count", specs()) == 0
    check_same(tmp_path / "count", undisturbed)
    for number in range(20, counter.calls, counter.calls // 5):
        for attempt in (number, 30):
            with monkeypatch.context() as patch:
                kill = Guillotine(os.replace, attempt, after=attempt % 2 == 1)
                patch.setattr(os, "replace", kill)
                with contextlib.suppress(Killed):
                    assert train(digits, tmp_path / f"{number}", specs()) == 0
        assert train(digits, tmp_path / f"{number}", specs()) == 0
        check_same(tmp_path / f"{number}", undisturbed)


@pytest.mark.slow
def test_halving_taken_off_later(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The trials that were halved end as if there had been no halving, and more trials come; those
    that have lost their checkpoint begin anew, which is said."""
    trials = [spec for spec in specs(halving=0, trials=5) if spec.is_trial]
    assert train(digits, tmp_path / "halved", [s for s in specs() if s.is_trial]) == 0
    check_halved = [result(path)["status"] for path in (tmp_path / "halved/search").glob("*-t*")]
    assert check_halved.count("halved") == 12
    shutil.copytree(tmp_path / "halved", tmp_path / "cleaned")
    hpc_mlp.clean(tmp_path / "cleaned", halved=True)
    assert train(digits, tmp_path / "halved", trials) == 0
    assert "begin anew" not in capsys.readouterr().err
    assert train(digits, tmp_path / "cleaned", trials) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "12 of 12 halved trials have no checkpoint any more" in said
    assert train(digits, tmp_path / "plain", trials) == 0
    for path in tmp_path.glob("*/search/*.json"):
        path.unlink()
    for name in ("halved", "cleaned"):
        check_equal(tmp_path / name / "search", tmp_path / "plain" / "search")


def words(runs: Path) -> list[str]:
    """As `specs`, for the command."""
    found = ["--variants", "baseline,dropout", "--trials", "4", "--halving", "2"]
    found += [word for text in SEARCH for word in ("--search", text)]
    found += [word for text in SETTINGS for word in ("--set", text)]
    return [*found, "--search-seeds", "1000,1001", "--runs", str(runs), "--cpu"]


@pytest.mark.slow
def test_a_job_for_each_variant(
    digits: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Slots of its own.
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    runs = tmp_path / "runs"
    send = command("submit", digits, *words(runs), "--cluster", "local", "--slots", "2")
    planned = run_process([*send, "--dry-run"])
    assert "18 runs in 2 jobs" in planned.stdout, planned.stderr
    sent = run_process([*send, "--wait"])
    assert sent.returncode == 0, sent.stdout + sent.stderr
    check_same(runs, undisturbed)
    assert "Nothing to submit: every run is done" in run_process(send).stdout
    refused = run_process([*send, "--per-job", "3"])
    assert refused.returncode == 2 and "a job for each variant" in refused.stderr


@pytest.mark.slow
def test_dealt_out_over_processes_by_the_command(
    digits: Path, undisturbed: Path, tmp_path: Path
) -> None:
    train_it = command("train", digits, *words(tmp_path), "--processes", "2")
    done = run_process([*train_it, "--log-format", "json"])
    assert done.returncode == 0, done.stderr
    check_same(tmp_path, undisturbed)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    # Trials of both processes are told from the winners' runs.
    names = {event["name"] for event in events if event["event"] == "run"}
    trials = {f"search/{path.name}" for path in (tmp_path / "search").glob("*-t*")}
    assert names == trials | {"baseline-s0", "dropout-s0"}
    assert "search of dropout: 2 trials up to epoch 2 (rung 2 of 3), best so far" in done.stderr
    again = run_process(train_it)
    assert "2 of 2 runs are complete" in again.stderr, again.stderr
    # Another winner would be another run in the same folder.
    other = run_process([*train_it, "--set", "train.ema=0.5"])
    assert other.returncode == 2 and "holds another run" in other.stderr
