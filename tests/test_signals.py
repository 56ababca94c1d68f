"""Signals: obeyed within a second wherever training is, and nothing is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from interrupted import check_equal, start, train, wait_for


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


@pytest.fixture(scope="module")
def undisturbed(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("undisturbed")
    assert train(digits, runs) == 0
    return runs


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
