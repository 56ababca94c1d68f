"""TensorBoard, through Accelerate: the lines of metrics.jsonl as event files in the run folder."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from support.process import Cli, metrics, on_cpu
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

SETTINGS = on_cpu("baseline,batchnorm", "model.hidden=[24]", 'train.trackers=["tensorboard"]')


def logged(folder: Path, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_each_run_has_its_lines_in_tensorboard(digits: Path, tmp_path: Path, cli: Cli) -> None:
    ran = cli("train", digits, "--runs", tmp_path, *SETTINGS, "--set", "train.epochs=3")
    assert ran.exit_code == 0, ran.output
    for run in ("baseline-s0", "batchnorm-s0"):
        lines = metrics(tmp_path / run)
        assert len(lines) == 3
        for name in set(lines[0]) - {"epoch"}:
            epochs, values = zip(*logged(tmp_path / run, name), strict=True)
            assert list(epochs) == [line["epoch"] for line in lines], name
            assert list(values) == pytest.approx([line[name] for line in lines], rel=1e-6), name


def test_a_tracker_that_is_not_installed(
    digits: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "tensorboard" else find(name, *rest),
    )
    ran = cli("train", digits, "--runs", tmp_path / "runs", *SETTINGS)
    assert ran.exit_code == 2 and "pip install 'hpc-mlp[tensorboard]'" in ran.stderr
    assert not (tmp_path / "runs").exists()
