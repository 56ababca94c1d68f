"""Killed anywhere and started again: the same bits as never killed."""

from __future__ import annotations

import contextlib
import os
import random
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from support.interrupted import (
    VARIANTS,
    Guillotine,
    Killed,
    check_close,
    check_equal,
    options,
    specs,
    start,
    train,
    wait_for,
)
from support.process import command, result, run_process

from hpc_mlp.bank.step import TrainStep
from hpc_mlp.config.plan import TrainOptions
from hpc_mlp.training.checkpoint import data_mode, load_checkpoints
from hpc_mlp.training.session import train_specs


@pytest.fixture(scope="module")
def undisturbed(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("undisturbed")
    assert train(digits, runs) == 0
    return runs


def renames(digits: Path, runs: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    with monkeypatch.context() as patch:
        counter = Guillotine(os.replace, 0, after=False)
        patch.setattr(os, "replace", counter)
        assert train(digits, runs) == 0
        return counter.calls


@pytest.mark.slow
def test_killed_between_renames(
    digits: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file appears by a rename. Cut off at 20 of them, among these all of the first epoch's
    end, where checkpoints, best weights and metrics of two runs change hands; twice each, for kills
    of what resumed."""
    total = renames(digits, tmp_path / "count", monkeypatch)
    assert total > 100
    check_equal(tmp_path / "count", undisturbed)
    # Two config.json; seven step checkpoints of two files, each written and renamed.
    first_end = 2 + 4 * 7
    for number in [
        *range(first_end, first_end + 14),
        *range(60, total, total // 4),
        total - 1,
        total,
    ]:
        runs = tmp_path / f"kill{number}"
        for attempt in (number, 3):
            with monkeypatch.context() as patch:
                patch.setattr(
                    os, "replace", Guillotine(os.replace, attempt, after=attempt % 2 == 1)
                )
                with contextlib.suppress(Killed):
                    assert train(digits, runs) == 0
        assert train(digits, runs) == 0
        check_equal(runs, undisturbed)


@pytest.mark.parametrize("kills", [(5, 9), (40, 41), (70, 2, 2, 2, 2)])
def test_killed_again_and_again(
    digits: Path,
    undisturbed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kills: tuple[int, ...],
) -> None:
    for number in kills:
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", Guillotine(os.replace, number, after=False))
            with pytest.raises(Killed):
                train(digits, tmp_path / "runs")
    assert train(digits, tmp_path / "runs") == 0
    check_equal(tmp_path / "runs", undisturbed)


def test_killed_between_steps(
    digits: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(0)
    for turn in range(4):
        for _ in range(3):
            with monkeypatch.context() as patch:
                compute = Guillotine(TrainStep.compute, rng.randint(1, 60), after=turn % 2 == 1)
                patch.setattr(TrainStep, "compute", lambda *a, compute=compute: compute(*a))
                with contextlib.suppress(Killed):
                    train(digits, tmp_path / f"{turn}")
        assert train(digits, tmp_path / f"{turn}") == 0
        check_equal(tmp_path / f"{turn}", undisturbed)


def test_lion_muon_and_residual_mlps_learn_and_go_on_in_any_company(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "residual.toml").write_text('[model]\nkind = "residual_mlp"\nblocks = 1\n')
    more = ("optim.lr=0.01", "optim.weight_decay=0.01", "optim.name=lion,muon")
    variants = f"baseline,{tmp_path / 'residual.toml'}"
    for spec in specs(*more, variants=variants):
        assert train_specs(digits, [spec], tmp_path / "whole", TrainOptions(cpu=True)) == 0
    for step in (30, 20):
        with monkeypatch.context() as patch:
            compute = Guillotine(TrainStep.compute, step, after=False)
            patch.setattr(TrainStep, "compute", lambda *a, compute=compute: compute(*a))
            with pytest.raises(Killed):
                train(digits, tmp_path / "runs", *more, variants=variants)
    assert train(digits, tmp_path / "runs", *more, variants=variants) == 0
    check_equal(tmp_path / "runs", tmp_path / "whole")
    for run in (tmp_path / "runs").iterdir():
        assert result(run)["test"]["accuracy"] > 0.9, run


def test_saving_by_the_clock_gives_the_same(
    digits: Path, undisturbed: Path, tmp_path: Path
) -> None:
    assert train(digits, tmp_path, "train.checkpoint_every=60 s") == 0
    check_equal(tmp_path, undisturbed)


# Batches of 64: 23 steps an epoch. So high a rate that the best epoch is an early one, kept in
# memory when it ends, and in the checkpoint of a later one.
RARELY = (
    "train.checkpoint_every=50 steps",
    "optim.lr=0.3",
    "train.epochs=6",
    "train.early_stopping=false",
)


@pytest.mark.parametrize(
    "numbers", [range(4, 40, 9), pytest.param(range(1, 40), marks=pytest.mark.slow)]
)
def test_killed_between_rare_checkpoints(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, numbers: range
) -> None:
    """At each rename: of checkpoints every second epoch, best weights, metrics, predictions,
    results."""
    assert train(digits, tmp_path / "whole", *RARELY) == 0
    best = {result(run)["best_epoch"] for run in (tmp_path / "whole").iterdir()}
    assert best != {6}
    for number in numbers:
        runs = tmp_path / f"{number}"
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", Guillotine(os.replace, number, after=number % 2 == 1))
            with contextlib.suppress(Killed):
                train(digits, runs, *RARELY)
        assert train(digits, runs, *RARELY) == 0
        check_equal(runs, tmp_path / "whole")


def test_a_short_training_writes_no_checkpoint(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is ever resumed from it; on photographs they took a sixth of the training."""
    written = []
    monkeypatch.setattr(
        "hpc_mlp.training.trainer.save_checkpoints", lambda *arguments: written.append(arguments)
    )
    assert train(digits, tmp_path, "train.checkpoint_every=60 s") == 0
    assert not written and not list(tmp_path.glob("*/last.ckpt*"))


def test_a_truncated_checkpoint_is_as_good_as_absent(
    digits: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", Guillotine(os.replace, 40, after=False))
        with pytest.raises(Killed):
            train(digits, tmp_path)
    path = tmp_path / "baseline-s0" / "last.ckpt"
    path.write_bytes(path.read_bytes()[:-100])
    # This run from its start, the other from where it was: two banks.
    assert train(digits, tmp_path) == 0
    check_close(tmp_path, undisturbed)


def test_a_run_that_joins_does_not_send_the_others_back(
    digits: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    """One run is unfinished, one is new: the unfinished one goes on where it was."""
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", Guillotine(os.replace, 60, after=False))
        with pytest.raises(Killed):
            train(digits, tmp_path, variants="baseline")
    assert train(digits, tmp_path) == 0
    resumed = re.search(r"resuming after epoch (\d)", capfd.readouterr().err)
    assert resumed is not None and int(resumed[1]) >= 1
    check_close(tmp_path, undisturbed)


def test_a_resumed_run_keeps_the_mode_that_auto_chose(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Streamed images come in another order: a run that began with little memory goes on streaming
    with much."""
    from hpc_mlp.data import resident

    free = resident.free_memory
    # Which tells the mode.
    two_epochs = ("train.epochs=2", "train.keep_checkpoint=true")
    with monkeypatch.context() as patch:
        patch.setattr(resident, "free_memory", lambda device: 1000)
        assert train(digits, tmp_path / "undisturbed", *two_epochs) == 0
        patch.setattr(os, "replace", Guillotine(os.replace, 40, after=False))
        with pytest.raises(Killed):
            train(digits, tmp_path / "runs", *two_epochs)
    assert resident.free_memory is free
    assert train(digits, tmp_path / "runs", *two_epochs, seeds="0-1") == 0
    check_equal(tmp_path / "runs", tmp_path / "undisturbed")
    new = [data_mode(tmp_path / "runs" / f"{variant}-s1") for variant in VARIANTS.split(",")]
    # They joined: no images are loaded twice.
    assert new == ["streaming", "streaming"]


def test_resuming_with_another_configuration_is_refused(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hpc_mlp.errors import UserError

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", Guillotine(os.replace, 40, after=False))
        with pytest.raises(Killed):
            train(digits, tmp_path)
    with pytest.raises(UserError, match=r"train.epochs: 4 → 5"):
        train(digits, tmp_path, "train.epochs=5")


def test_times_of_a_resumed_epoch_cover_all_of_it(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off after an epoch's last step, before its end: the epoch's rate is not that of the rest
    alone."""
    from hpc_mlp.training import trainer, validation

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "validate", Guillotine(validation.validate, 2, after=False))
        with pytest.raises(Killed):
            train(digits, tmp_path, "train.checkpoint_every=1 steps")
    assert train(digits, tmp_path, "train.checkpoint_every=1 steps") == 0
    from support.process import metrics

    lines = metrics(tmp_path / "baseline-s0")
    rates = [line["images_per_second"] for line in lines]
    assert max(rates) < 20 * min(rates)
    assert sum(line["seconds"] for line in lines) == pytest.approx(
        result(tmp_path / "baseline-s0")["seconds"]
    )


MOMENTS = (".last.ckpt.new.*", "last.ckpt.new", ".best.safetensors.*", ".predictions.npz.*")


def wait_for_moment(
    folder: Path, pattern: str, before: set[Path], process: subprocess.Popen[str]
) -> None:
    """Until a file appears that was not there `before`."""
    while process.poll() is None and not set(folder.glob(pattern)) - before:
        time.sleep(0.0003)


@pytest.mark.slow
# A minute or two, on a machine with nothing else to do.
@pytest.mark.timeout(900)
def test_sigkill_at_random_moments(digits: Path, undisturbed: Path, tmp_path: Path) -> None:
    """At least 20 kills: half of them anywhere, half of them in or just after a checkpoint, a
    validation, a test."""
    rng = random.Random(1)
    kills = cut_in_writing = turn = 0
    while kills < 20:
        runs = tmp_path / f"{turn}"
        folder = runs / "baseline-s0"
        for attempt in range(4):
            before = set(runs.glob("*/*"))
            process = start(digits, runs)
            try:
                wait_for(folder / "lease.json", process)
            except AssertionError:
                # Done before we looked.
                assert process.returncode == 0
            if attempt % 2:
                wait_for_moment(
                    folder, MOMENTS[(turn + attempt // 2) % len(MOMENTS)], before, process
                )
            else:
                time.sleep(rng.uniform(0.0, 0.6))
            if process.poll() is None:
                process.kill()
                kills += 1
                process.wait()
                cut_in_writing += bool(set(runs.glob("*/.*.*")) - before)
            process.communicate()
        assert run_process(command("train", digits, "--runs", runs, *options())).returncode == 0
        check_equal(runs, undisturbed)
        turn += 1
    # A file half-written, or not renamed.
    assert cut_in_writing >= 1


@pytest.mark.parametrize(
    "every, wanted",
    [("0.000001 s", (0, 10)), ("4 steps", (0, 8)), ("23 steps", None), ("60 s", None)],
)
def test_checkpoints_within_an_epoch(
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    every: str,
    wanted: tuple[int, int] | None,
) -> None:
    """Killed in the eleventh step."""
    from hpc_mlp.bank.step import TrainStep

    compute = Guillotine(TrainStep.compute, 11, after=False)
    monkeypatch.setattr(TrainStep, "compute", lambda *a: compute(*a))
    with pytest.raises(Killed):
        train(digits, tmp_path, f"train.checkpoint_every={every}", variants="baseline")
    checkpoints = load_checkpoints([tmp_path / "baseline-s0"])
    assert (checkpoints[0].position if checkpoints else None) == wanted
