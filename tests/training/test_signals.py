"""Signals: obeyed within a second wherever training is, and nothing is lost."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.interrupted import check_equal, specs, start, train, wait_for
from support.process import command, environment
from support.shards import random_arrays, write_shards

from hpc_mlp.data.manifest import Manifest
from hpc_mlp.launch.jobs import plan_jobs
from hpc_mlp.launch.records import new_submission
from hpc_mlp.runs.lease import Lease

# Seconds are counted.
pytestmark = pytest.mark.alone

SIGNALS = [
    signal.SIGTERM,
    *(pytest.param(n, marks=pytest.mark.slow) for n in (signal.SIGINT, signal.SIGUSR1)),
]


def obeys(process: subprocess.Popen[str], number: signal.Signals, seconds: float = 3) -> str:
    """Send the signal; → stderr. Python's own end with torch loaded takes up to a second, too."""
    process.send_signal(number)
    started = time.monotonic()
    _, errors = process.communicate(timeout=20)
    assert time.monotonic() - started < seconds
    assert process.returncode == 128 + number and "Traceback" not in errors
    return errors


@pytest.fixture
def long_run(digits: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Training in a process of its own, some steps in, and far from done."""
    process = start(
        digits,
        tmp_path / "runs",
        "train.epochs=2000",
        "train.early_stopping=false",
        "train.checkpoint_every=7 steps",
    )
    wait_for(tmp_path / "runs" / "baseline-s0" / "metrics.jsonl", process)
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize("number", SIGNALS)
def test_signals_leave_a_checkpoint_within_a_second(
    long_run: subprocess.Popen[str], digits: Path, tmp_path: Path, number: signal.Signals
) -> None:
    time.sleep(0.3)
    assert f"stopped by {number.name}" in obeys(long_run, number)
    folder = tmp_path / "runs" / "baseline-s0"
    from hpc_mlp.runs.folder import read_run
    from hpc_mlp.training.checkpoint import load_checkpoints

    run = read_run(folder)
    assert run is not None and run.state == "unfinished"
    checkpoints = load_checkpoints([folder])
    assert checkpoints is not None and checkpoints[0].position[0] == len(run.metrics)
    assert not (folder / "lease.json").exists()


@pytest.fixture(scope="module")
def undisturbed(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("undisturbed")
    assert train(digits, runs) == 0
    return runs


def test_stopped_by_signal_and_resumed(
    digits: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM to this very process, after one of the steps: a checkpoint of that step, and the same
    in the end."""
    from hpc_mlp.bank.step import TrainStep

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


def test_what_is_overwritten_is_not_to_be_overwritten_again(
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from hpc_mlp.bank.step import TrainStep

    monkeypatch.setattr(TrainStep, "__call__", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    monkeypatch.setenv("HPC_MLP_COMMAND", "hpc-mlp train shards --overwrite --cpu")
    assert train(digits, tmp_path) == 143
    said = capsys.readouterr().err
    assert "without --overwrite it goes on from here:\n  hpc-mlp train shards --cpu" in said


# ---- where there is no training loop


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """The lock of the cache of decoded images, as another process that decodes would hold it."""
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def wait_until_open(path: Path, process: subprocess.Popen[str]) -> None:
    """Until the process has opened the file."""
    deadline = time.monotonic() + 60
    while True:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        with contextlib.suppress(OSError):
            if any(link.readlink() == path for link in Path(f"/proc/{process.pid}/fd").iterdir()):
                return
        time.sleep(0.01)


@pytest.fixture
def cold(digits: Path, tmp_path: Path) -> Path:
    """The digits, not decoded yet."""
    shutil.copytree(digits, tmp_path / "shards", ignore=shutil.ignore_patterns(".cache"))
    return tmp_path / "shards"


def cache_lock(shards: Path) -> Path:
    return shards / ".cache" / f"{Manifest.load(shards).digest}-train.lock"


@pytest.mark.parametrize("number", SIGNALS)
def test_while_data_are_loaded(cold: Path, tmp_path: Path, number: signal.Signals) -> None:
    with held(cache_lock(cold)):
        process = start(cold, tmp_path / "runs")
        wait_until_open(cache_lock(cold), process)
        assert f"stopped by {number.name}" in obeys(process, number)
    assert not (tmp_path / "runs").exists()
    assert train(cold, tmp_path / "runs") == 0


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="looks into /proc")
def test_while_data_are_loaded_by_a_job(cold: Path, tmp_path: Path) -> None:
    """What Slurm sends before the time limit, to what it starts: the code with which a job hands
    itself back."""
    submission = new_submission(tmp_path / "runs", "local", cold, plan_jobs(specs()))
    submission.save()
    with held(cache_lock(cold)):
        process = subprocess.Popen(
            command(submission.folder, 0, module="hpc_mlp.launch.job"),
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_until_open(cache_lock(cold), process)
        process.send_signal(signal.SIGUSR2)
        started = time.monotonic()
        _, errors = process.communicate(timeout=20)
        assert time.monotonic() - started < 3
    assert (
        process.returncode == 143 and "stopped by SIGUSR2" in errors and "Traceback" not in errors
    )


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_while_another_process_holds_the_run_folder(
    digits: Path, tmp_path: Path, processes: int
) -> None:
    folder = tmp_path / "runs" / "baseline-s0"
    with Lease(folder):
        process = start(
            digits, tmp_path / "runs", words=("--parallel", "data", "--processes", str(processes))
        )
        wait_for(tmp_path / "runs" / "dropout_batchnorm-s0" / "lease.json", process)
        obeys(process, signal.SIGTERM, seconds=3 * processes)
    assert train(digits, tmp_path / "runs") == 0


SLOW = """
import os, time
from pathlib import Path
from torch import nn
from hpc_mlp.models.registry import register

evaluations = 0


class Slow(nn.Linear):
    def forward(self, images):
        global evaluations
        if not self.training:
            evaluations += 1
            if evaluations >= int(os.environ.get("SLOW_FROM", "1000")):
                Path("slow").touch()
                time.sleep(0.5)
        return super().forward(images.flatten(1))


@register("slow")
def slow(config, image_shape, num_classes):
    return Slow(16, num_classes)
"""
SLOW_VARIANT = 'plugins = ["slow.py"]\n[model]\nkind = "slow"\n[train]\nepochs = 1\n'


@pytest.mark.slow
# In the validation, which takes six batches, and in the test.
@pytest.mark.parametrize("slow_from", [2, 8])
def test_while_evaluating(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow_from: int) -> None:
    arrays = {
        name: random_arrays(3000, size=4, channels=1, seed=i)
        for i, name in enumerate(("train", "val", "test"))
    }
    write_shards(tmp_path / "shards", arrays, shard_size=3000)
    (tmp_path / "slow.py").write_text(SLOW)
    (tmp_path / "slow.toml").write_text(SLOW_VARIANT)
    monkeypatch.chdir(tmp_path)

    def slow(runs: str, *, since: int = 1000) -> subprocess.Popen[str]:
        arguments = command("train", "shards", "--runs", runs, "--variants", "slow.toml", "--cpu")
        return subprocess.Popen(
            arguments,
            env={**environment(), "SLOW_FROM": str(since)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    process = slow("runs", since=slow_from)
    wait_for(tmp_path / "slow", process)
    assert "stopped by SIGTERM" in obeys(process, signal.SIGTERM)
    assert not Path("runs/slow-s0/result.json").exists()
    for runs in ("runs", "undisturbed"):
        process = slow(runs)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        assert ("resuming after epoch" in errors) == (runs == "runs")
    check_equal(tmp_path / "runs", tmp_path / "undisturbed")


HANGS = """
import contextlib, ctypes, sys
from hpc_mlp.machine import stop

stop._GRACE_SECONDS = 0.5
libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
with stop.enforced(), stop.stop_on_signals():
    with stop.interruptible() if sys.argv[1] == "loading" else contextlib.nullcontext():
        for turn in range(3):
            with contextlib.suppress(stop.Stopped):  # where the signal comes just before
                print("here", flush=True) if turn == 1 else None
                libc.pthread_mutex_lock(mutex)  # the second time for ever, whatever signal comes
"""


@pytest.mark.parametrize("phase", ["loading", "training"])
@pytest.mark.parametrize("number", SIGNALS)
def test_a_process_that_hangs_where_it_sees_no_signal_is_ended(
    phase: str, number: signal.Signals
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HANGS, phase],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "here\n"
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + number and f"ended by {number.name}" in errors
