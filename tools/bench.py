#!/usr/bin/env python3
"""Benchmarks, side by side in one run.

    python tools/bench.py train SHARDS [--repeats 5] [--json FILE]      one epoch: notebook, Lightning, ours, floor
    python tools/bench.py job photos.zip [--epochs 10] [--json FILE]    ZIP → table: the notebook's way against ours,
                                                                        all epochs (no early stopping) in both
    python tools/bench.py convert photos.zip …                          conversion (bench_convert.py)
    python tools/bench.py input SHARDS …                                reading shards (bench_input.py)

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
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import torch  # noqa: E402
from rich.console import Console  # noqa: E402


def bench_job(arguments: argparse.Namespace) -> dict[str, Any]:
    """From the ZIP to the table: ours through the command line, the notebook's way in one script."""
    with tempfile.TemporaryDirectory() as folder:
        shards, runs = Path(folder) / "shards", Path(folder) / "runs"
        ours = [sys.executable, "-m", "hpc_mlp"]
        times: dict[str, float] = {}
        for name, command in {
            "convert": [*ours, "convert", str(arguments.zip), str(shards), "--size", str(arguments.size)],
            "train": [*ours, "train", str(shards), "--runs", str(runs), "--set", f"train.epochs={arguments.epochs}",
                      "--set", "train.early_stopping=false", "--cpu"],
            "table": [*ours, "table", str(runs)],
        }.items():  # fmt: skip
            start = time.perf_counter()
            subprocess.run(command, check=True, cwd=HERE.parent)
            times[name] = time.perf_counter() - start
    total = sum(times.values())
    yardstick = [
        sys.executable,
        str(HERE / "notebook.py"),
        str(arguments.zip),
        "--epochs",
        str(arguments.epochs),
    ]
    done = subprocess.run(
        [*yardstick, "--size", str(arguments.size)], check=True, capture_output=True, text=True
    )
    theirs = json.loads(done.stdout)
    return {"ours": times | {"seconds": total}, "notebook": theirs, "ratio": theirs["seconds"] / total}


def show_job(result: dict[str, Any], machine: str) -> None:
    ours, theirs = result["ours"], result["notebook"]
    console = Console(width=110)
    console.print(f"ours: {ours['seconds']:.1f} s (convert {ours['convert']:.1f}, train {ours['train']:.1f}, "
                  f"table {ours['table']:.1f}); the notebook's way: {theirs['seconds']:.1f} s; "
                  f"ratio {result['ratio']:.2f}; n = 1; {machine}. Every epoch of both: ours with "
                  "train.early_stopping=false, as the notebook has no early stopping")  # fmt: skip


def machine() -> str:
    name = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else platform.processor() or platform.machine()
    )
    return f"{name}, {os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}"


def main() -> None:
    if len(sys.argv) > 1 and sys.argv[1] in ("convert", "input"):
        module = importlib.import_module(f"bench_{sys.argv[1]}")
        sys.argv.pop(1)
        module.main()
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train")
    train.add_argument("shards", type=Path)
    train.add_argument("--repeats", type=int, default=5)
    train.add_argument("--slow-repeats", type=int, default=1, help="of the notebook's way and Lightning")
    train.add_argument("--slow-steps", type=int, help="of theirs per repeat [default: a whole epoch]")
    train.add_argument(
        "--steps", type=int, default=400, help="per repeat, at most an epoch; seconds are scaled"
    )
    train.add_argument("--seeds", type=int, default=5)
    train.add_argument("--no-notebook", action="store_true")
    train.add_argument("--cpu", action="store_true")
    train.add_argument("--prediction", type=Path, help="of bench_predict.py --json, shown beside the banks")
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
