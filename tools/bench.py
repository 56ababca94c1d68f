#!/usr/bin/env python3
"""Benchmarks, side by side in one run.

    python tools/bench.py train SHARDS [--repeats 5] [--json FILE]
        one epoch: notebook, Lightning, ours, floor
    python tools/bench.py job photos.zip [--epochs 10] [--json FILE]
        ZIP → table: the notebook's way against ours, all epochs (no early stopping) in both
    python tools/bench.py convert photos.zip …
        conversion (bench_convert.py)
    python tools/bench.py folds SHARDS …
        cross-validation (bench_folds.py)
    python tools/bench.py input SHARDS …
        reading shards (bench_input.py)

Compare ratios, not seconds: all ways of one repeat run one after the other on the same machine.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import torch  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Column, Table  # noqa: E402


def bench_job(arguments: argparse.Namespace) -> dict[str, Any]:
    """From the ZIP to the table, whole commands: ours through the command line, the notebook's way
    in one script."""
    with tempfile.TemporaryDirectory() as folder:
        shards, runs = Path(folder) / "shards", Path(folder) / "runs"
        ours = [sys.executable, "-m", "hpc_mlp"]
        wanted = ["--runs", str(runs), "--set", f"train.epochs={arguments.epochs}", "--cpu"]
        converted = _run(
            [*ours, "convert", str(arguments.zip), str(shards), "--size", str(arguments.size)]
        )
        trained = _run(
            [*ours, "train", str(shards), *wanted, "--set", "train.early_stopping=false"]
        )
        shown = _run([*ours, "table", str(runs)])
        stages = {"conversion": converted[1] - converted[0]} | _stages(shards, runs, *trained)
        stages["table"] = shown[1] - shown[0]
    notebook = [
        sys.executable,
        str(HERE / "notebook.py"),
        str(arguments.zip),
        "--epochs",
        str(arguments.epochs),
    ]
    began, ended = _run([*notebook, "--size", str(arguments.size)])
    total = sum(stages.values())
    return {
        "stages": stages,
        "seconds": total,
        "notebook": ended - began,
        "ratio": (ended - began) / total,
    }


def _run(command: Sequence[str]) -> tuple[float, float]:
    """→ when it began and ended, as files' times count."""
    began = time.time()
    subprocess.run(command, check=True, cwd=HERE.parent)
    return began, time.time()


def _stages(shards: Path, runs: Path, began: float, ended: float) -> dict[str, float]:
    """Seconds of the stages of `train`, by its process that took longest: its files say when each
    was over."""

    def written(path: Path) -> float:
        return path.stat().st_mtime

    run = max(runs.iterdir(), key=lambda folder: written(folder / "result.json"))
    prepared, metrics, result = (
        written(run / name) for name in ("config.json", "metrics.jsonl", "result.json")
    )
    cache = sorted(map(written, (shards / ".cache").iterdir()))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    images = json.loads((shards / "manifest.json").read_text())["splits"]["train"]["num_images"]
    training = sum(images / line["images_per_second"] for line in lines)
    epochs = sum(line["seconds"] for line in lines)
    return {
        "start-up": prepared - began - (cache[-1] - cache[0]),
        "cache": cache[-1] - cache[0],
        "training": training,
        "validation": epochs - training,
        "first weights, metrics, checkpoints": metrics - prepared - epochs,
        "results": result - metrics,
        "first table, exit": ended - result,
    }


def show_job(result: dict[str, Any], machine: str) -> None:
    table = Table("stage", Column("seconds", justify="right"), Column("%", justify="right"))
    total = result["seconds"]
    for name, seconds in {
        **result["stages"],
        "all": total,
        "the notebook's way": result["notebook"],
    }.items():
        table.add_row(name, f"{seconds:.2f}", f"{100 * seconds / total:.1f}")
    console = Console(width=110)
    console.print(table)
    console.print(
        f"ratio {result['ratio']:.2f}; n = 1; {machine}. Every epoch of both: ours with "
        "train.early_stopping=false, as the notebook has no early stopping"
    )


def machine() -> str:
    name = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else platform.processor() or platform.machine()
    )
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{name}, {os.cpu_count()} cores, {versions}"


def main() -> None:
    if len(sys.argv) > 1 and sys.argv[1] in ("convert", "folds", "input"):
        module = importlib.import_module(f"bench_{sys.argv[1]}")
        sys.argv.pop(1)
        module.main()
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train")
    train.add_argument("shards", type=Path)
    train.add_argument("--repeats", type=int, default=5)
    train.add_argument(
        "--slow-repeats", type=int, default=1, help="of the notebook's way and Lightning"
    )
    train.add_argument(
        "--slow-steps", type=int, help="of theirs per repeat [default: a whole epoch]"
    )
    train.add_argument(
        "--steps", type=int, default=400, help="per repeat, at most an epoch; seconds are scaled"
    )
    train.add_argument("--seeds", type=int, default=5)
    train.add_argument("--no-notebook", action="store_true")
    train.add_argument(
        "--vmap", action="store_true", help="also torch.func.vmap beside a bank of 4 and of 20"
    )
    train.add_argument("--cpu", action="store_true")
    train.add_argument(
        "--prediction", type=Path, help="of bench_predict.py --json, shown beside the banks"
    )
    job = commands.add_parser("job")
    job.add_argument("zip", type=lambda text: Path(text).resolve())
    job.add_argument("--epochs", type=int, default=10)
    job.add_argument("--size", type=int, default=64)
    for command in (train, job):
        command.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "train":
        from bench_train import bench_train, show_train

        result = bench_train(arguments)
        show_train(result, machine())
    else:
        result = bench_job(arguments)
        show_job(result, machine())
    if arguments.json:
        arguments.json.write_text(json.dumps(result | {"machine": machine()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
