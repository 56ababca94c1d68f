"""Killed anywhere and started again: the same bits as never killed."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import command, environment, result, run_process, timeless

from hpc_mlp.plan import RunSpec, parse_seeds, parse_set, parse_variants, plan_runs

SETTINGS = ("model.hidden=[24,16]", "train.epochs=4", "train.checkpoint_every=3 steps",
            "train.ema=0.9", "train.batch_size=64")  # fmt: skip
VARIANTS = "baseline,dropout_batchnorm"


def options(*more: str) -> list[str]:
    words = ["--cpu", "--variants", VARIANTS]
    return words + [word for setting in (*SETTINGS, *more) for word in ("--set", setting)]


def specs(*more: str, variants: str = VARIANTS, seeds: str = "0") -> list[RunSpec]:
    return plan_runs(parse_variants(variants), parse_seeds(seeds), (), parse_set([*SETTINGS, *more]))


def train(digits: Path, runs: Path, *more: str, **which: str) -> int:
    from hpc_mlp.training.session import train_specs

    return train_specs(digits, specs(*more, **which), runs, cpu=True)


@pytest.fixture(scope="module")
def undisturbed(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("undisturbed")
    assert train(digits, runs) == 0
    return runs


def check_equal(runs: Path, undisturbed: Path) -> None:
    """Weights to the bit, metrics apart from times, test results; nothing else lies about."""
    for folder in sorted(undisturbed.iterdir()):
        mine = runs / folder.name
        assert (mine / "best.safetensors").read_bytes() == (folder / "best.safetensors").read_bytes()
        assert tensors(mine / "last.ckpt") == tensors(folder / "last.ckpt")
        assert timeless(mine) == timeless(folder)
        changing = (
            "seconds",
            "images_per_second",
            "data_wait_seconds",
            "bank_size",
        )  # the last bank may be smaller
        one, other = ({k: v for k, v in result(f).items() if k not in changing} for f in (mine, folder))
        assert one == other
        names = [{p.name for p in f.iterdir()} - {"lease.json"} for f in (mine, folder)]
        assert (
            names[0] == names[1]
        )  # a kill after the result may leave the lease, which nobody needs any more


def check_close(runs: Path, undisturbed: Path) -> None:
    """The same up to rounding: what is left when runs change their company."""
    for folder in undisturbed.iterdir():
        one, other = (
            [line["val_loss"] for line in timeless(place)] for place in (runs / folder.name, folder)
        )
        assert one == pytest.approx(other, rel=1e-4)


def tensors(path: Path) -> dict[str, bytes]:
    from safetensors.torch import load_file

    return {name: tensor.numpy().tobytes() for name, tensor in load_file(path).items()}


class Killed(BaseException):
    """What SIGKILL is to a process: no `except Exception` sees it."""


class Guillotine:
    """Counts a function's calls and raises Killed at the n-th, before or after doing it."""

    def __init__(self, function: Any, number: int, after: bool) -> None:
        self.function, self.number, self.after, self.calls = function, number, after, 0

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        self.calls += 1
        if self.calls == self.number and not self.after:
            raise Killed
        value = self.function(*arguments, **named)
        if self.calls == self.number:
            raise Killed
        return value


def renames(digits: Path, runs: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    with monkeypatch.context() as patch:
        counter = Guillotine(os.replace, 0, after=False)
        patch.setattr(os, "replace", counter)
        assert train(digits, runs) == 0
        return counter.calls


def test_killed_between_renames(
    digits: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file appears by a rename. Cut off at 20 of them, among these all of the first epoch's end, where
    checkpoints, best weights and metrics of two runs change hands; twice each, for kills of what resumed."""
    total = renames(digits, tmp_path / "count", monkeypatch)
    assert total > 100
    check_equal(tmp_path / "count", undisturbed)
    first_end = 2 + 4 * 7  # two config.json; seven step checkpoints of two files, each written and renamed
    for number in [*range(first_end, first_end + 14), *range(60, total, total // 4), total - 1, total]:
        runs = tmp_path / f"kill{number}"
        for attempt in (number, 3):
            with monkeypatch.context() as patch:
                patch.setattr(os, "replace", Guillotine(os.replace, attempt, after=attempt % 2 == 1))
                with contextlib.suppress(Killed):
                    assert train(digits, runs) == 0
        assert train(digits, runs) == 0
        check_equal(runs, undisturbed)


@pytest.mark.parametrize("kills", [(5, 9), (40, 41), (70, 2, 2, 2, 2)])
def test_killed_again_and_again(
    digits: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kills: tuple[int, ...]
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
    from hpc_mlp.training.step import TrainStep

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


def test_saving_by_the_clock_gives_the_same(digits: Path, undisturbed: Path, tmp_path: Path) -> None:
    assert train(digits, tmp_path, "train.checkpoint_every=60 s") == 0
    check_equal(tmp_path, undisturbed)


def test_a_truncated_checkpoint_is_as_good_as_absent(
    digits: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", Guillotine(os.replace, 40, after=False))
        with pytest.raises(Killed):
            train(digits, tmp_path)
    path = tmp_path / "baseline-s0" / "last.ckpt"
    path.write_bytes(path.read_bytes()[:-100])
    assert train(digits, tmp_path) == 0  # this run from its start, the other from where it was: two banks
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
    """Cut off after an epoch's last step, before its end: the epoch's rate is not that of the rest alone."""
    from hpc_mlp.training.engine import BankTrainer

    with monkeypatch.context() as patch:
        finish = Guillotine(BankTrainer._finish_epoch, 2, after=False)
        patch.setattr(BankTrainer, "_finish_epoch", lambda trainer: finish(trainer))
        with pytest.raises(Killed):
            train(digits, tmp_path, "train.checkpoint_every=1 steps")
    assert train(digits, tmp_path, "train.checkpoint_every=1 steps") == 0
    from conftest import metrics

    lines = metrics(tmp_path / "baseline-s0")
    rates = [line["images_per_second"] for line in lines]
    assert max(rates) < 20 * min(rates)
    assert sum(line["seconds"] for line in lines) == pytest.approx(
        result(tmp_path / "baseline-s0")["seconds"]
    )


# ---- real processes and real signals


def start(digits: Path, runs: Path, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command("train", digits, "--runs", runs, *options(*more)),
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for(path: Path, process: subprocess.Popen[str], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.fixture
def long_run(digits: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Training in a process of its own, some steps in, and far from done."""
    process = start(digits, tmp_path / "runs", "train.epochs=2000", "train.early_stopping=false",
                    "train.checkpoint_every=7 steps")  # fmt: skip
    wait_for(tmp_path / "runs" / "baseline-s0" / "metrics.jsonl", process)
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize("name, code", [("SIGTERM", 143), ("SIGINT", 130), ("SIGUSR1", 138)])
def test_signals_leave_a_checkpoint_within_a_second(
    long_run: subprocess.Popen[str], digits: Path, tmp_path: Path, name: str, code: int
) -> None:
    time.sleep(0.3)
    long_run.send_signal(getattr(signal, name))
    started = time.monotonic()
    # Training must leave the loop within a second; Python's own end with torch loaded may take another.
    _, errors = long_run.communicate(timeout=20)
    assert time.monotonic() - started < 3
    assert long_run.returncode == code and "Traceback" not in errors
    assert f"stopped by {name}" in errors
    folder = tmp_path / "runs" / "baseline-s0"
    from hpc_mlp.runs import read_run
    from hpc_mlp.training.checkpoint import load_checkpoints

    run = read_run(folder)
    assert run is not None and run.state == "unfinished"
    checkpoints = load_checkpoints([folder])
    assert checkpoints is not None and checkpoints[0].position[0] == len(run.metrics)
    assert not (folder / "lease.json").exists()


def test_stopped_by_signal_and_resumed(
    digits: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM to this very process, after one of the steps: a checkpoint of that step, and the same in the end."""
    from hpc_mlp.training.step import TrainStep

    done, original = 0, TrainStep.__call__

    def step(self: TrainStep, *arguments: Any) -> None:
        nonlocal done
        original(self, *arguments)
        done += 1
        if done % 31 == 0:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(TrainStep, "__call__", step)
    codes = [train(digits, tmp_path)]
    while codes[-1] != 0:
        codes.append(train(digits, tmp_path))
    assert codes == [143] * (4 * 23 // 31) + [0]
    check_equal(tmp_path, undisturbed)


@pytest.mark.slow
def test_sigkill_at_random_moments(digits: Path, undisturbed: Path, tmp_path: Path) -> None:
    """At least 20 kills, at moments that fall into steps, validations, checkpoints and results."""
    rng = random.Random(1)
    kills = turn = 0
    while kills < 20:
        turn += 1
        runs = tmp_path / f"{turn}"
        for _ in range(4):
            process = start(digits, runs)
            try:
                wait_for(runs / "baseline-s0" / "lease.json", process)
                time.sleep(rng.uniform(0.0, 0.6))
            except AssertionError:
                assert process.returncode == 0  # done before we looked
            if process.poll() is None:
                process.kill()
                kills += 1
            process.communicate()
        assert run_process(command("train", digits, "--runs", runs, *options())).returncode == 0
        check_equal(runs, undisturbed)
