"""The command line in a subprocess, and what a run left behind."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from click.testing import Result

REPOSITORY = Path(__file__).parents[2]


Cli = Callable[..., Result]


def command(*arguments: object, module: str = "hpc_mlp") -> list[str]:
    return [sys.executable, "-m", module, *(str(argument) for argument in arguments)]


def set_keys(*settings: str) -> list[str]:
    """`--set KEY=VALUE …`"""
    return [word for setting in settings for word in ("--set", setting)]


def on_cpu(variants: str, *settings: str) -> list[str]:
    """`--cpu --variants VARIANTS --set KEY=VALUE …`: how `hpc-mlp train SHARDS` goes on."""
    return ["--cpu", "--variants", variants, *set_keys(*settings)]


def environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}


def run_process(arguments: list[str], timeout: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments, env=environment(), capture_output=True, text=True, timeout=timeout
    )


def processor_seconds(arguments: list[str], tries: int = 5) -> float:
    """What the command takes: the least of some tries, as others on the machine only add to it."""
    found = []
    for _ in range(tries):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(arguments, env=environment(), check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        found.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(found)


def imports_seconds() -> float:
    """`processor_seconds` of importing what every table needs: a measure of the machine, as the
    same command takes 0.4 s on one and 0.8 on another. 0.13 s where `table` takes 0.7."""
    return processor_seconds([sys.executable, "-c", "import click, numpy, rich.console"])


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
