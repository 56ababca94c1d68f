"""What the tests share: a small real dataset, and the command line in a subprocess and in process."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: tiny models, and the cores are shared

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

REPOSITORY = Path(__file__).parents[1]

# pytest in a shell's background, whose children ignore Ctrl-C
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# What is trusted here is not what the user trusts; processes that tests start inherit it.
DATA_HOME = tempfile.TemporaryDirectory(prefix="hpc-mlp-tests-")
os.environ["XDG_DATA_HOME"] = DATA_HOME.name

Cli = Callable[..., Result]


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shards folder: scikit-learn's 1,797 handwritten digits, 8×8, grayscale. Not to be written to."""
    from hpc_mlp.conversion.convert import Settings, convert
    from hpc_mlp.conversion.digits import write_digits_zip

    folder = tmp_path_factory.mktemp("digits")
    write_digits_zip(folder / "digits.zip")
    convert(
        [folder / "digits.zip"], folder / "shards", Settings(height=8, width=8, grayscale=True, workers=1)
    )
    return folder / "shards"


@pytest.fixture
def cli() -> Cli:
    """`cli("train", …)` in this process → click's Result."""

    def run(*arguments: object) -> Result:
        from hpc_mlp.cli import main

        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    return run


def command(*arguments: object, module: str = "hpc_mlp") -> list[str]:
    return [sys.executable, "-m", module, *(str(argument) for argument in arguments)]


def environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}


def run_process(arguments: list[str], timeout: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, env=environment(), capture_output=True, text=True, timeout=timeout)


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def timeless(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what differs from one run to the next."""
    times = ("seconds", "images_per_second", "data_wait_seconds")
    return [{k: v for k, v in line.items() if k not in times} for line in metrics(folder)]


def result(folder: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return value


def num_correct(folder: Path) -> int:
    matrix = result(folder)["test"]["confusion_matrix"]
    return sum(row[i] for i, row in enumerate(matrix))
