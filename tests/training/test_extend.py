"""`train --extend`: more epochs, with the bits of a run that was planned so from the start."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.process import Cli, result, timeless

import hpc_mlp
from hpc_mlp.errors import UserError

Train = Callable[..., str]
SETTINGS = ("--cpu", "--set", "model.hidden=[16]", "--set", "train.batch_size=256")


@pytest.fixture
def train(cli: Cli, digits: Path, tmp_path: Path) -> Train:
    """`train("runs", 2, …)`: dropout with two seeds in that folder, for two epochs; → what it
    said."""

    def run(folder: str, epochs: int, *words: object, code: int = 0) -> str:
        runs = ("--runs", tmp_path / folder, "--variants", "dropout", "--seeds", "0,1")
        done = cli("train", digits, *runs, *SETTINGS, "--set", f"train.epochs={epochs}", *words)
        assert done.exit_code == code, done.output
        return str(done.output)

    return run


def same(one: Path, two: Path) -> bool:
    """The same bits: weights, predictions, metrics but for times; and the same configuration."""
    for seed in (0, 1):
        a, b = (folder / f"dropout-s{seed}" for folder in (one, two))
        for name in ("best.safetensors", "predictions.npz"):
            assert (a / name).read_bytes() == (b / name).read_bytes(), name
        assert timeless(a) == timeless(b)
        configs = [json.loads((folder / "config.json").read_text()) for folder in (a, b)]
        assert configs[0]["config"]["train"]["epochs"] == configs[1]["config"]["train"]["epochs"]
        results = [result(folder) for folder in (a, b)]
        for key in ("epochs_run", "best_epoch", "stopped", "test"):
            assert results[0][key] == results[1][key], key
    return True


KEEP = ("--set", "train.keep_checkpoint=true")


def test_on_from_the_checkpoint(train: Train, tmp_path: Path) -> None:
    train("runs", 2, *KEEP)
    said = train("runs", 5, "--extend")
    assert "--extend: 2 runs to go on from the checkpoint, 2 epochs to 5." in said
    assert "resuming after epoch 2, step 0" in said
    train("planned", 5)
    assert same(tmp_path / "runs", tmp_path / "planned")
    # Again there is nothing to do.
    assert "2 of 2 runs are complete" in train("runs", 5, "--extend")


def test_anew_where_no_checkpoint_was_kept(train: Train, tmp_path: Path) -> None:
    train("runs", 2)
    said = train("runs", 4, "--extend")
    assert "2 runs to start anew, as no checkpoint was kept" in said
    assert "4 epochs and not 2, about 0:0" in said and "resuming" not in said
    train("planned", 4)
    assert same(tmp_path / "runs", tmp_path / "planned")


def test_anew_where_the_schedule_counts_on_the_length(train: Train, tmp_path: Path) -> None:
    cosine = ("--set", "schedule.name=cosine")
    train("runs", 2, *KEEP, *cosine)
    said = train("runs", 4, "--extend", *cosine)
    assert "anew, as schedule.name=cosine counts on the number of epochs" in said
    train("planned", 4, *cosine)
    assert same(tmp_path / "runs", tmp_path / "planned")


def test_a_run_that_early_stopping_ended_stays(train: Train, tmp_path: Path) -> None:
    # With such a rate the validation loss soon rises.
    hasty = ("--set", "optim.lr=0.5", "--set", "train.patience=1")
    train("runs", 20, *hasty)
    before = {path.name: path.read_bytes() for path in (tmp_path / "runs").rglob("*.npz")}
    said = train("runs", 30, "--extend", *hasty)
    assert "2 runs had ended before epoch 20 (early stopping): more epochs change nothing" in said
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "runs").rglob("*.npz")}
    train("planned", 30, *hasty)
    assert same(tmp_path / "runs", tmp_path / "planned")


def test_an_end_that_was_due_to_patience_as_well(train: Train, tmp_path: Path) -> None:
    """The last epoch was also the one after which early stopping would have ended it."""
    hasty = ("--set", "optim.lr=0.5", "--set", "train.patience=1")
    train("long", 20, *hasty)
    epochs = max(result(path)["epochs_run"] for path in (tmp_path / "long").glob("dropout-s*"))
    train("runs", epochs, *KEEP, *hasty)
    train("runs", 20, "--extend", *hasty)
    assert same(tmp_path / "runs", tmp_path / "long")


def test_what_cannot_be_extended_is_refused_and_left_alone(train: Train, tmp_path: Path) -> None:
    train("runs", 3)
    before = {path: path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file()}
    assert "asks for fewer" in train("runs", 2, "--extend", code=2)
    changed = train("runs", 5, "--extend", "--set", "optim.lr=0.1", code=2)
    assert "optim.lr: 0.001 → 0.1" in changed and "train.epochs" not in changed
    assert "give one of them" in train("runs", 5, "--extend", "--overwrite", code=2)
    # Without the option it is another run.
    assert "train.epochs: 3 → 5" in train("runs", 5, code=2)
    now = {path: path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file()}
    assert now == before


@pytest.mark.parametrize("step", ["result", "config"])
def test_a_kill_in_the_middle_loses_nothing(train: Train, tmp_path: Path, step: str) -> None:
    train("runs", 2, *KEEP)
    for folder in (tmp_path / "runs").glob("dropout-s*"):
        (folder / "result.json").unlink()
        if step == "config":
            text = (folder / "config.json").read_text()
            (folder / "config.json").write_text(text.replace('"epochs": 2', '"epochs": 4'))
    train("runs", 4, "--extend")
    train("planned", 4)
    assert same(tmp_path / "runs", tmp_path / "planned")


def test_new_runs_beside_those_that_are_extended(
    train: Train, cli: Cli, digits: Path, tmp_path: Path
) -> None:
    train("runs", 2, *KEEP)
    words = ("--runs", tmp_path / "runs", "--variants", "dropout", "--seeds", "0-2", *SETTINGS)
    done = cli("train", digits, *words, "--set", "train.epochs=3", "--extend")
    assert done.exit_code == 0, done.output
    assert [len(timeless(tmp_path / "runs" / f"dropout-s{seed}")) for seed in range(3)] == [3, 3, 3]


def test_jobs_extend_too(train: Train, digits: Path, tmp_path: Path) -> None:
    train("runs", 2)
    planned = {"model.hidden": [16], "train.batch_size": 256, "train.epochs": 3}
    jobs: dict[str, Any] = {
        "variants": "dropout",
        "seeds": "0,1",
        "settings": planned,
        "cluster": "local",
    }
    runs = tmp_path / "runs"
    sent = hpc_mlp.submit(digits, runs=runs, extend=True, dry_run=True, cpu=True, **jobs)
    assert "2 runs to start anew" in str(sent) and len(sent.records()) == 2
    with pytest.raises(UserError, match=r"train\.epochs: 2 → 3"):
        hpc_mlp.submit(digits, runs=runs, dry_run=True, cpu=True, **jobs)
