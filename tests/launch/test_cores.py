"""Runs dealt out over the cores of a machine: when, and with what result."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.process import command, environment, result, set_keys, timeless

from hpc_mlp.config.assignments import parse_set
from hpc_mlp.config.plan import RunSpec, parse_variants, plan_runs
from hpc_mlp.data.manifest import Manifest
from hpc_mlp.launch.cores import PROCESS_BYTES, processes_for, share_cores
from hpc_mlp.machine.memory import num_cpus

PLENTY = 64 << 30
# Of two runs on the digits: some 10 s on one core.
BIG = ("model.hidden=[2048,2048]", "train.epochs=14")


def specs_of(variants: str, seeds: int, *sets: str) -> list[RunSpec]:
    return plan_runs(parse_variants(variants), range(seeds), (), parse_set(sets))


@given(runs=st.integers(1, 40), threads=st.integers(1, 64))
def test_no_process_is_idle(digits: Path, runs: int, threads: int) -> None:
    specs = specs_of("baseline", runs, "train.epochs=100000")
    count = processes_for(specs, Manifest.load(digits), threads=threads, free=1 << 50)
    assert 1 <= count <= min(runs, threads)
    longest = -(-runs // count)
    # Fewer processes would take longer.
    assert count == 1 or -(-runs // (count - 1)) > longest


@pytest.mark.parametrize(
    "runs, threads, count",
    [
        (1, 2, 1),
        (2, 2, 2),
        (4, 2, 2),
        (20, 2, 2),
        (4, 16, 4),
        (20, 64, 20),
        # As 3 + 2, one core would stand idle for a third of the time.
        (5, 2, 1),
        # Two threads each.
        (5, 4, 2),
        (6, 4, 2),
    ],
)
def test_runs_are_dealt_out_where_that_is_quicker(
    digits: Path, runs: int, threads: int, count: int
) -> None:
    specs = specs_of("baseline", runs, "train.epochs=100000")
    assert processes_for(specs, Manifest.load(digits), threads=threads, free=1 << 50) == count


@pytest.mark.parametrize(
    "variants, sets, free, count",
    [
        # Too little to do.
        ("all", (), PLENTY, 1),
        ("all", BIG, PLENTY, 4),
        # Three would be 2 + 1 + 1, no quicker than two.
        ("all", BIG, 3 * PROCESS_BYTES, 2),
        # Each would decode all images again.
        ("all", (*BIG, "data.mode=streaming"), PLENTY, 1),
        ("all", (*BIG, "data.memory_fraction=1e-9"), PLENTY, 1),
        # Unequal work.
        ("baseline,cnn", ("train.epochs=100000",), PLENTY, 1),
        ("cnn", ("train.epochs=100000",), PLENTY, 1),
        ("all", ("model.hidden=[2048],[1024]", "train.epochs=1000"), PLENTY, 1),
    ],
)
def test_one_process_where_more_would_not_pay(
    digits: Path, variants: str, sets: tuple[str, ...], free: int, count: int
) -> None:
    specs = specs_of(variants, 1, *sets)
    assert processes_for(specs, Manifest.load(digits), threads=4, free=free) == count


@pytest.fixture
def no_waiting_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "RANK"):
        # So that it is put back after the test.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    # As where a command begins.
    monkeypatch.delitem(sys.modules, "torch", raising=False)


@pytest.mark.alone
@pytest.mark.usefixtures("no_waiting_set")
def test_beside_busy_processes_threads_do_not_spin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(num_cpus())]
    try:
        for process in busy:
            wait_until_busy(process)
        share_cores()
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert os.environ["GOMP_SPINCOUNT"] == "1000"


def wait_until_busy(process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while psutil.Process(process.pid).cpu_times().user < 0.1:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.usefixtures("no_waiting_set")
def test_a_job_beside_others_that_leave_it_its_cores_is_not_in_a_crowd(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As in the local queue: 16 cores, 14 of them busy with others, two threads."""
    monkeypatch.setattr("hpc_mlp.launch.cores.cores", lambda: list(range(16)))
    monkeypatch.setattr("hpc_mlp.launch.cores.num_cpus", lambda: 16)
    for busy, sleeps in ((14, False), (15, True)):
        monkeypatch.setattr(
            psutil, "cpu_percent", lambda interval, percpu, n=busy: [100.0] * n + [0.0] * (16 - n)
        )
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        share_cores()
        assert ("GOMP_SPINCOUNT" in os.environ) == sleeps


@pytest.mark.parametrize(
    "used, settings",
    [
        (10.0, {}),
        (100.0, {"OMP_NUM_THREADS": "1"}),
        (100.0, {"OMP_WAIT_POLICY": "active"}),
        (100.0, {"GOMP_SPINCOUNT": "77"}),
        (100.0, {"RANK": "1"}),
    ],
)
@pytest.mark.usefixtures("no_waiting_set")
def test_else_waiting_is_left_as_it_is(
    monkeypatch: pytest.MonkeyPatch, used: float, settings: dict[str, str]
) -> None:
    monkeypatch.setattr(psutil, "cpu_percent", lambda interval, percpu: [used] * 1024)
    for name, value in ({"OMP_NUM_THREADS": "2"} | settings).items():
        monkeypatch.setenv(name, value)
    share_cores()
    assert os.environ.get("GOMP_SPINCOUNT") == settings.get("GOMP_SPINCOUNT")


@pytest.mark.parametrize("torch_first", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_api_shares_cores_as_the_command_does(tmp_path: Path, torch_first: bool) -> None:
    """Two threads on a machine without an idle core."""
    code = f"""
import os, warnings
import psutil
import hpc_mlp
from hpc_mlp.errors import HpcMlpError, HpcMlpWarning
psutil.cpu_percent = lambda interval, percpu: [100.0] * 1024
{"import torch" * torch_first}
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    try:
        hpc_mlp.train("nowhere")
    except HpcMlpError:
        pass
print(os.environ.get("GOMP_SPINCOUNT"), *[w.message for w in told if w.category is HpcMlpWarning])
"""
    environ = environment() | {"OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environ, capture_output=True, text=True
    )
    said = done.stdout
    assert "set GOMP_SPINCOUNT=1000" in said if torch_first else said == "1000\n", (
        said + done.stderr
    )


def start(shards: Path, runs: Path, threads: int, *more: str) -> subprocess.Popen[str]:
    words = ["train", shards, "--runs", runs, "--variants", "baseline,batchnorm"]
    words += set_keys(*BIG, "train.early_stopping=false", "train.checkpoint_every=0.5 s")
    return subprocess.Popen(
        command(*words, *more),
        env=environment() | {"OMP_NUM_THREADS": str(threads)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
def test_dealt_out_killed_and_resumed_the_bits_are_those_of_one_process(
    digits: Path, tmp_path: Path
) -> None:
    """By default on two cores two processes train. Killed with the process that started them, they
    leave nobody behind, and the same command goes on from what they had."""
    names = ("baseline-s0", "batchnorm-s0")
    # Not two threads: on a busy machine they wait for each other.
    one = start(digits, tmp_path / "one", 1)
    _, errors = one.communicate(timeout=300)
    assert one.returncode == 0, errors

    first = start(digits, tmp_path / "dealt", 2)
    for name in names:
        wait_for(tmp_path / "dealt" / name / "last.ckpt", first)
    children = psutil.Process(first.pid).children()
    assert len(children) == 2
    first.send_signal(signal.SIGKILL)
    first.communicate(timeout=30)
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive

    second = start(digits, tmp_path / "dealt", 2)
    output, errors = second.communicate(timeout=300)
    assert second.returncode == 0, errors
    # One table, of both.
    assert output.count("★") >= 1
    for name in names:
        mine, theirs = tmp_path / "dealt" / name, tmp_path / "one" / name
        assert result(mine)["bank_size"] == 1 and result(theirs)["bank_size"] == 2
        assert timeless(mine) == timeless(theirs)
        assert (mine / "best.safetensors").read_bytes() == (
            theirs / "best.safetensors"
        ).read_bytes()


@pytest.mark.slow
def test_interrupted_dealt_out_runs_go_on(digits: Path, tmp_path: Path) -> None:
    process = start(digits, tmp_path, 2)
    for name in ("baseline-s0", "batchnorm-s0"):
        wait_for(tmp_path / name / "last.ckpt", process)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert time.monotonic() - began < 20
    # The command that goes on.
    assert "hpc-mlp train" in errors and "--processes" not in errors
    assert not (tmp_path / "baseline-s0" / "result.json").exists()
