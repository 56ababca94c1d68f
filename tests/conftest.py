"""What the tests share: a small real dataset, and the command line in a subprocess and in
process."""

from __future__ import annotations

import os

# Before torch: tiny models, and the cores are shared.
os.environ["OMP_NUM_THREADS"] = "1"

import signal
import tempfile
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from support.process import Cli

# pytest in a shell's background, whose children ignore Ctrl-C
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# What is trusted here is not what the user trusts; processes that tests start inherit it.
DATA_HOME = tempfile.TemporaryDirectory(prefix="hpc-mlp-tests-")
os.environ["XDG_DATA_HOME"] = DATA_HOME.name


@pytest.fixture(autouse=True)
def wide_pipes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a pipe gets is as wide as COLUMNS: no line of text is broken."""
    monkeypatch.setenv("COLUMNS", "1000")


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shards folder: scikit-learn's 1,797 handwritten digits, 8×8, grayscale. Not to be written
    to."""
    from hpc_mlp.conversion.convert import convert
    from hpc_mlp.conversion.digits import write_digits_zip
    from hpc_mlp.conversion.settings import Settings

    folder = tmp_path_factory.mktemp("digits")
    write_digits_zip(folder / "digits.zip")
    convert(
        [folder / "digits.zip"],
        folder / "shards",
        Settings(height=8, width=8, grayscale=True, workers=1),
    )
    return folder / "shards"


@pytest.fixture(scope="session")
def healthy(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of `support.own.SMALL`, which have nobody beside them that fails. Not to be written
    to."""
    from support.own import CPU, SMALL, specs

    from hpc_mlp.training.session import train_specs

    runs = tmp_path_factory.mktemp("healthy")
    assert train_specs(digits, specs("baseline,dropout_batchnorm", [0], *SMALL), runs, CPU) == 0
    return runs


@pytest.fixture
def cli() -> Cli:
    """`cli("train", …)` in this process → click's Result."""

    def run(*arguments: object) -> Result:
        from hpc_mlp.cli import main

        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    return run
