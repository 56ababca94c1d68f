"""Several processes: the same results as one, whether runs are dealt out or batches are split."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.process import (
    Cli,
    command,
    environment,
    metrics,
    num_correct,
    on_cpu,
    result,
    run_process,
    set_keys,
    timeless,
)
from support.shards import batch_size_with_rest_one

from hpc_mlp.machine.ports import keep_port
from hpc_mlp.machine.ranks import variables

SMALL = ("--cpu", "--set", "model.hidden=[32,16]", "--set", "train.epochs=2")
SPLIT = ("--parallel", "data")
FOUR = ("baseline", "dropout", "batchnorm", "dropout_batchnorm")


@pytest.fixture(scope="module")
def alone(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The four variants in one process, in batches of 33: no number of processes divides all of
    them."""
    runs = tmp_path_factory.mktemp("alone")
    done = run_process(
        command("train", digits, "--runs", runs, *SMALL, "--set", "train.batch_size=33")
    )
    assert done.returncode == 0, done.stderr
    return runs


def check_close(
    runs: Path, alone: Path, variants: tuple[str, ...] = FOUR, rel: float = 1e-4
) -> None:
    for variant in variants:
        one, other = runs / f"{variant}-s0", alone / f"{variant}-s0"
        assert len(metrics(one)) == len(metrics(other))
        for mine, theirs in zip(metrics(one), metrics(other), strict=True):
            assert mine["train_loss"] == pytest.approx(theirs["train_loss"], rel=rel), variant
            assert mine["val_loss"] == pytest.approx(theirs["val_loss"], rel=rel), variant
        assert result(one)["test"]["num_images"] == result(other)["test"]["num_images"] == 179
        assert abs(num_correct(one) - num_correct(other)) <= 1


@pytest.mark.slow
def test_accelerate_launch_gives_the_table_of_one_process(
    digits: Path, alone: Path, tmp_path: Path
) -> None:
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    words = ["--runs", str(tmp_path / "runs"), *SMALL[1:], "--set", "train.batch_size=33"]
    with keep_port("127.0.0.1") as kept:
        port = str(kept.getsockname()[1])
        launch += ["--main_process_port", port, "-m", "hpc_mlp.train"]
        done = run_process([*launch, str(digits), *words])
    assert done.returncode == 0, done.stderr
    check_close(tmp_path / "runs", alone)
    # One table.
    assert done.stdout.count("seeds  parameters") == 1
    # two banks of two: the runs were dealt out
    assert [result(tmp_path / "runs" / f"{v}-s0")["bank_size"] for v in FOUR] == [2] * 4


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_split_batches_give_the_losses_of_one_process(
    digits: Path, alone: Path, tmp_path: Path, processes: int
) -> None:
    words = (*SMALL, *SPLIT, "--set", "train.batch_size=33", "--processes", processes)
    done = run_process(command("train", digits, "--runs", tmp_path, *words))
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    check_close(tmp_path, alone)


@pytest.mark.slow
def test_more_processes_than_runs(digits: Path, alone: Path, tmp_path: Path) -> None:
    words = (*SMALL, "--set", "train.batch_size=33", "--variants", "batchnorm,dropout")
    done = run_process(command("train", digits, "--runs", tmp_path, *words, "--processes", 3))
    assert done.returncode == 0, done.stderr
    check_close(tmp_path, alone, ("batchnorm", "dropout"))
    assert [result(tmp_path / f"{v}-s0")["bank_size"] for v in ("batchnorm", "dropout")] == [2, 2]


@pytest.mark.slow
def test_split_batches_with_everything_on(digits: Path, tmp_path: Path, cli: Cli) -> None:
    """Clipping, smoothing, class weights, averages, a residual MLP, a model beside the stacks, a
    last batch of one image."""
    residual = tmp_path / "residual.toml"
    residual.write_text('[model]\nkind = "residual_mlp"\nblocks = 1\n')
    settings = (
        *SMALL,
        *set_keys(
            "optim.clip_norm=0.5",
            "train.label_smoothing=0.1",
            "train.class_weights=balanced",
            "train.ema=0.9",
            f"train.batch_size={batch_size_with_rest_one(digits)}",
            "model.channels=[4,8]",
        ),
        "--variants",
        f"batchnorm,dropout_l2,cnn,{residual}",
    )
    assert cli("train", digits, "--runs", tmp_path / "one", *settings).exit_code == 0
    done = run_process(
        command("train", digits, "--runs", tmp_path / "two", *settings, *SPLIT, "--processes", 2)
    )
    assert done.returncode == 0, done.stderr
    check_close(tmp_path / "two", tmp_path / "one", ("batchnorm", "dropout_l2", "cnn", "residual"))


@pytest.mark.slow
@pytest.mark.parametrize("first, second", [(2, 1), (1, 2)])
def test_stopped_and_resumed_with_split_batches(
    digits: Path, alone: Path, tmp_path: Path, first: int, second: int
) -> None:
    """SIGTERM leaves a checkpoint on all processes' behalf; any number of them goes on from
    there."""
    settings = set_keys("train.batch_size=33", "train.checkpoint_every=5 steps")
    words = (*SMALL, *SPLIT, *settings, "--variants", "batchnorm,dropout")
    arguments = ["train", digits, "--runs", tmp_path, *words]
    process = subprocess.Popen(
        command(*arguments, "--processes", first),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 90
    while not (tmp_path / "dropout-s0" / "last.ckpt").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    # fast machines may have finished before the signal arrived
    assert process.returncode in (143, 0), errors
    done = run_process(command(*arguments, "--processes", second))
    assert done.returncode == 0, done.stderr
    check_close(tmp_path, alone, ("batchnorm", "dropout"))


@pytest.mark.slow
def test_killed_with_split_batches_the_bits_are_the_same(digits: Path, tmp_path: Path) -> None:
    """The same number of processes: metrics to the last digit, weights to the last bit."""
    settings = set_keys("train.batch_size=33", "train.checkpoint_every=5 steps")
    words = (*SMALL, *SPLIT, *settings, "--variants", "batchnorm,dropout", "--processes", 2)
    done = run_process(command("train", digits, "--runs", tmp_path / "whole", *words))
    assert done.returncode == 0, done.stderr
    process = subprocess.Popen(
        command("train", digits, "--runs", tmp_path / "cut", *words),
        env=environment(),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    deadline = time.monotonic() + 90
    while not (tmp_path / "cut" / "dropout-s0" / "last.ckpt").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.001)
    kill_family(process.pid)
    process.communicate()
    done = run_process(command("train", digits, "--runs", tmp_path / "cut", *words))
    assert done.returncode == 0, done.stderr
    for variant in ("batchnorm", "dropout"):
        cut, whole = tmp_path / "cut" / f"{variant}-s0", tmp_path / "whole" / f"{variant}-s0"
        assert timeless(cut) == timeless(whole)
        assert (cut / "best.safetensors").read_bytes() == (whole / "best.safetensors").read_bytes()


def kill_family(pid: int) -> None:
    import psutil

    parent = psutil.Process(pid)
    for process in [*parent.children(recursive=True), parent]:
        os.kill(process.pid, signal.SIGKILL)


@pytest.mark.slow
def test_max_seconds_means_the_same_to_all_processes(digits: Path, tmp_path: Path) -> None:
    endless = ("train.epochs=500", "train.max_seconds=0.5", "train.early_stopping=false")
    words = (*on_cpu("baseline", "model.hidden=[32,16]", *endless), *SPLIT, "--processes", 2)
    done = run_process(command("train", digits, "--runs", tmp_path, *words))
    assert done.returncode == 0, done.stderr
    outcome = result(tmp_path / "baseline-s0")
    assert outcome["stopped"] == "max_seconds" and outcome["epochs_run"] == len(
        metrics(tmp_path / "baseline-s0")
    )


@pytest.mark.slow
def test_wrong_input_is_said_once(tmp_path: Path) -> None:
    done = run_process(
        command(
            "train", tmp_path / "nowhere", "--runs", tmp_path / "runs", "--cpu", "--processes", 2
        )
    )
    assert done.returncode == 2
    assert done.stderr.count("hpc-mlp:") == 1 and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_port_that_is_taken_is_named(digits: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        place = variables(0, 2, 0, 2, *taken.getsockname())
        done = subprocess.run(
            command("train", digits, "--runs", tmp_path, "--seeds", "0-1", *SMALL),
            env=environment() | place,
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    where = f"{place['MASTER_ADDR']}:{place['MASTER_PORT']}"
    assert f"process 0 of 2 did not meet the others at {where}: " in done.stderr
    assert "address already in use" in done.stderr
