"""Training that is interrupted: the runs, how they are started, and what must be equal in the
end."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from hpc_mlp.config.assignments import parse_set
from hpc_mlp.config.plan import RunSpec, TrainOptions, parse_seeds, parse_variants, plan_runs
from support.process import command, environment, on_cpu, result, timeless

SETTINGS = (
    "model.hidden=[24,16]",
    "train.epochs=4",
    "train.checkpoint_every=3 steps",
    "train.ema=0.9",
    "train.batch_size=64",
)
VARIANTS = "baseline,dropout_batchnorm"


def options(*more: str) -> list[str]:
    return on_cpu(VARIANTS, *SETTINGS, *more)


def specs(*more: str, variants: str = VARIANTS, seeds: str = "0") -> list[RunSpec]:
    return plan_runs(
        parse_variants(variants), parse_seeds(seeds), (), parse_set([*SETTINGS, *more])
    )


def train(digits: Path, runs: Path, *more: str, **which: str) -> int:
    from hpc_mlp.training.session import train_specs

    return train_specs(digits, specs(*more, **which), runs, TrainOptions(cpu=True))


def check_equal(runs: Path, undisturbed: Path) -> None:
    """Weights to the bit, metrics apart from times, test results; nothing else lies about."""
    for folder in sorted(undisturbed.iterdir()):
        mine = runs / folder.name
        assert (mine / "best.safetensors").read_bytes() == (
            folder / "best.safetensors"
        ).read_bytes()
        # train.keep_checkpoint
        if (folder / "last.ckpt").exists():
            assert tensors(mine / "last.ckpt") == tensors(folder / "last.ckpt")
        assert timeless(mine) == timeless(folder)
        changing = (
            "seconds",
            "images_per_second",
            "data_wait_seconds",
            "bank_size",
        )  # the last bank may be smaller
        one, other = (
            {k: v for k, v in result(f).items() if k not in changing} for f in (mine, folder)
        )
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


def start(
    digits: Path, runs: Path, *more: str, words: tuple[str, ...] = ()
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command("train", digits, "--runs", runs, *options(*more), *words),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(path: Path, process: subprocess.Popen[str], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.002)


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
