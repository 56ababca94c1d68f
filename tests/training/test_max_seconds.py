"""`train.max_seconds`: over at the next step, with a result; the time of all sessions counts."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from support.interrupted import Guillotine, Killed, tensors, train
from support.process import Cli, command, metrics, on_cpu, result, run_process, timeless

from hpc_mlp.training.checkpoint import Position, load_checkpoints

# Over after the first step.
AT_ONCE = "train.max_seconds=0.000001"
KEEP = "train.keep_checkpoint=true"


def position(folder: Path) -> Position:
    checkpoints = load_checkpoints([folder])
    assert checkpoints is not None
    return checkpoints[0].position


def test_over_within_its_first_epoch_a_run_has_a_result(
    digits: Path, tmp_path: Path, cli: Cli
) -> None:
    ran = cli(
        "train", digits, "--runs", tmp_path, *on_cpu("baseline", AT_ONCE, "train.epochs=50", KEEP)
    )
    folder = tmp_path / "baseline-s0"
    outcome, (line,) = result(folder), metrics(folder)
    assert ran.exit_code == 0 and "done" in ran.stdout and "out of time" in ran.stderr
    assert outcome["status"] == "done" and outcome["stopped"] == "max_seconds"
    assert (
        outcome["epochs_run"] == outcome["best_epoch"] == 1 and outcome["test"]["num_images"] == 179
    )
    assert position(folder) == (0, 1)
    # The mean over one batch, before any training: about log(10).
    assert 1.5 < line["train_loss"] < 3.5
    assert outcome["images_per_second"] == pytest.approx(32 / outcome["seconds"])
    again = cli("train", digits, "--runs", tmp_path, *on_cpu("baseline", "train.epochs=50"))
    assert "1 of 1 run is complete" in again.stderr


def test_the_others_of_the_bank_go_on_with_the_epoch(digits: Path, tmp_path: Path) -> None:
    assert (
        train(digits, tmp_path / "both", f"{AT_ONCE},1000000", KEEP, variants="dropout_batchnorm")
        == 0
    )
    assert train(digits, tmp_path / "alone", KEEP, variants="dropout_batchnorm") == 0
    short = tmp_path / "both" / "dropout_batchnorm-s0-train.max_seconds=1e-06"
    long = tmp_path / "both" / "dropout_batchnorm-s0-train.max_seconds=1000000"
    alone = tmp_path / "alone" / "dropout_batchnorm-s0"
    assert result(short)["stopped"] == "max_seconds" and position(short) == (0, 1)
    assert timeless(long) == timeless(alone)
    for name in ("best.safetensors", "last.ckpt"):
        assert tensors(long / name) == tensors(alone / name)


def test_the_time_of_earlier_sessions_counts(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hpc_mlp.bank.step import TrainStep

    calls, original = 0, TrainStep.compute

    def compute(self: TrainStep, *arguments: Any) -> None:
        nonlocal calls
        original(self, *arguments)
        calls += 1
        if calls == 30:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(TrainStep, "compute", compute)
    assert train(digits, tmp_path, variants="baseline") == 143
    folder = tmp_path / "baseline-s0"
    assert position(folder) == (1, 7)
    (checkpoint,) = load_checkpoints([folder]) or []
    spent = checkpoint.state["seconds"]
    assert train(digits, tmp_path, f"train.max_seconds={spent}", KEEP, variants="baseline") == 0
    outcome = result(folder)
    assert calls == 31 and position(folder) == (1, 8)
    assert outcome["stopped"] == "max_seconds" and outcome["epochs_run"] == 2
    assert outcome["seconds"] > spent
    assert outcome["seconds"] == pytest.approx(sum(line["seconds"] for line in metrics(folder)))


def test_killed_while_it_ends(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off before and after each of the renames: checkpoint, best weights, metrics, predictions,
    result."""
    name = "baseline-s0"
    settings = (AT_ONCE, KEEP, "train.checkpoint_every=60 s")
    assert train(digits, tmp_path / "whole", *settings, variants="baseline") == 0
    whole = tmp_path / "whole" / name
    # The first one is config.json.
    for number in range(2, 8):
        for after in (False, True):
            runs = tmp_path / f"{number}-{after}"
            with monkeypatch.context() as patch:
                patch.setattr(os, "replace", Guillotine(os.replace, number, after))
                with pytest.raises(Killed):
                    train(digits, runs, *settings, variants="baseline")
            assert train(digits, runs, *settings, variants="baseline") == 0
            mine = runs / name
            assert result(mine)["stopped"] == "max_seconds" and position(mine) == (0, 1)
            assert timeless(mine) == timeless(whole)
            assert (mine / "best.safetensors").read_bytes() == (
                whole / "best.safetensors"
            ).read_bytes()
            assert result(mine)["test"] == result(whole)["test"]


@pytest.mark.slow
def test_processes_that_split_batches_stop_at_the_same_step(digits: Path, tmp_path: Path) -> None:
    words = (*on_cpu("baseline", AT_ONCE, KEEP), "--processes", 2, "--parallel", "data")
    done = run_process(command("train", digits, "--runs", tmp_path, *words))
    assert done.returncode == 0, done.stderr
    assert result(tmp_path / "baseline-s0")["stopped"] == "max_seconds"
    # They agree every eight steps.
    assert position(tmp_path / "baseline-s0") == (0, 8)
