"""What a person does with the command line: one variant or all, on as many threads as there are
cores, on and off. The weights are the same to the bit."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.process import command, environment, set_keys, timeless

from hpc_mlp.config.plan import ALL
from hpc_mlp.conversion.convert import convert
from hpc_mlp.conversion.settings import Settings

SETS = (*set_keys("train.epochs=2", "train.early_stopping=false"), "--processes", "1", "--cpu")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 images of 64 × 64 in colour: 12288 inputs, as the notebook's photographs."""
    folder, rng = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    with zipfile.ZipFile(folder / "images.zip", "w") as file:
        for i in range(240):
            pixels = rng.integers(0, 120, (64, 64, 3)) + 12 * (i % 10)
            png = io.BytesIO()
            Image.fromarray(pixels.astype(np.uint8)).save(png, "PNG", compress_level=1)
            file.writestr(f"{i % 10}/{i:03}.png", png.getvalue())
    convert([folder / "images.zip"], folder / "shards", Settings(height=64, width=64, workers=1))
    return folder / "shards"


def start(
    shards: Path, runs: Path, variants: str, threads: int, *more: str
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command("train", shards, "--runs", runs, "--variants", variants, *SETS, *more),
        env=environment() | {"OMP_NUM_THREADS": str(threads)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def train(shards: Path, runs: Path, variants: str, threads: int, *more: str) -> None:
    process = start(shards, runs, variants, threads, *more)
    output = process.communicate(timeout=280)
    assert process.returncode == 0, output


def check_same(runs: Path, others: Path) -> None:
    for run in runs.iterdir():
        other = others / run.name
        assert (run / "best.safetensors").read_bytes() == (
            other / "best.safetensors"
        ).read_bytes(), run
        assert timeless(run) == timeless(other)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("which", ["photographs", "digits"])
def test_one_by_one_or_together_on_as_many_threads_as_cores(
    which: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    shards: Path = request.getfixturevalue(which)
    train(shards, tmp_path / "all", "all", 1)
    for variant in ALL:
        train(shards, tmp_path / "single", variant, 2)
    check_same(tmp_path / "all", tmp_path / "single")
    for threads in {2, os.cpu_count() or 1}:
        train(shards, tmp_path / f"{threads}", "all", threads)
        check_same(tmp_path / "all", tmp_path / f"{threads}")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_job_goes_on_with_another_number_of_cores(
    photographs: Path, tmp_path: Path
) -> None:
    often = ("--set", "train.checkpoint_every=2 steps")
    train(photographs, tmp_path / "whole", "all", 1)
    process = start(photographs, tmp_path / "cut", "all", 1, *often)
    deadline = time.monotonic() + 120
    while not all((tmp_path / "cut" / f"{variant}-s0" / "last.ckpt").exists() for variant in ALL):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not list((tmp_path / "cut").glob("*/result.json"))
    train(photographs, tmp_path / "cut", "all", 2, *often)
    check_same(tmp_path / "whole", tmp_path / "cut")
