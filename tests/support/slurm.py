"""What the tests on a real Slurm do with it: submit, wait, freeze and look."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hpc_mlp.launch.status import read_status

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "slurm" / "dev-cluster"
STANDIN = Path(__file__).parent / "standin"
Json = dict[str, Any]


def dev_cluster(*arguments: str) -> str:
    done = subprocess.run(
        [str(CLUSTER), *arguments], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def cli(*arguments: object, code: int | None = 0) -> str:
    """`hpc-mlp …` from another working directory, as a user would call it."""
    command = [sys.executable, "-m", "hpc_mlp", *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, cwd="/", check=False
    )
    assert code is None or done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def submit(shards: Path, runs: Path, *arguments: object, sets: Json | None = None) -> str:
    values = {"launch.cpus_per_task": 1, **(sets or {})}
    options = [
        item for key, value in values.items() for item in ("--set", f"{key}={json.dumps(value)}")
    ]
    return cli("submit", shards, "--runs", runs, "--cluster", "slurm", *arguments, *options)


STANDIN_SUBMIT = """
import sys
from pathlib import Path
from hpc_mlp.launch.submit import JobOptions, load_launch, submit
from hpc_mlp.config.assignments import parse_set
from hpc_mlp.config.plan import parse_seeds, parse_variants, plan_runs
runs, variants, seeds, *sets = sys.argv[1:]
values = parse_set(sets)
others = {key: value for key, value in values.items() if not key.startswith("launch.")}
specs = plan_runs(parse_variants(variants), parse_seeds(seeds), [], others)
wanted = JobOptions("slurm", load_launch(None, [], values), entry="standin:train_specs")
submit(specs, Path("/"), "x", Path(runs), wanted)
"""


def start_standin(runs: Path, variants: str, seeds: str, *sets: str) -> subprocess.Popen[bytes]:
    """Submit runs of the stand-in for training, which lasts as long as it is told to."""
    arguments = [str(runs), variants, seeds, "launch.cpus_per_task=1", *sets]
    return subprocess.Popen([sys.executable, "-c", STANDIN_SUBMIT, *arguments])


def submit_standin(runs: Path, variants: str, seeds: str, *sets: str) -> None:
    assert start_standin(runs, variants, seeds, *sets).wait(timeout=120) == 0


def states(runs: Path) -> dict[str, Json]:
    return {
        run["name"]: run for run in json.loads(cli("status", runs, "--format", "json", code=None))
    }


def wait_until(
    what: str, condition: Callable[[], bool], seconds: float = 240, pause: float = 0.5
) -> None:
    """The limit is for what never comes: two shared cores may be slow. Requeued jobs are
    hurried."""
    begun = hurried = time.monotonic()
    while not condition():
        now = time.monotonic()
        assert now - begun < seconds, f"{what}: not within {seconds} s"
        if now - hurried > 1:
            dev_cluster("hurry")
            hurried = now
        time.sleep(pause)


def all_are(state: str, *folders: Path) -> Callable[[], bool]:
    return lambda: all(run.state == state for runs in folders for run in read_status(runs))


def epoch(run: Path) -> int:
    path = run / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def started(runs: Path, restart: int) -> Json:
    """The record of a start of the first job: host, pid, …"""
    record: Json = json.loads(next(runs.glob(f".launch/*/started/0.{restart}.json")).read_text())
    return record


def node_state(node: str) -> str:
    command = ["sinfo", "-h", "-N", "-n", node, "-p", "low", "-o", "%T"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def freeze(runs: Path, name: str, restart: int = 0) -> None:
    """Stop the job's process (SIGSTOP) once this run has trained two epochs, or has its lease after
    a requeue."""
    lease = runs / name / "lease.json"

    def is_there() -> bool:
        if restart == 0:
            return epoch(runs / name) >= 2
        return lease.exists() and json.loads(lease.read_text())["restart"] == restart

    wait_until(f"{runs.name} has begun", is_there, pause=0.05)
    os.kill(started(runs, restart)["pid"], signal.SIGSTOP)


def thaw(runs: Path, restart: int) -> None:
    os.kill(started(runs, restart)["pid"], signal.SIGCONT)


def outcome(run: Path) -> tuple[bytes, list[tuple[Any, ...]], Json]:
    """What must be the same in a disturbed and an undisturbed run, to the last bit."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    metrics = [
        (line["epoch"], line["train_loss"], line["val_loss"], line["val_accuracy"])
        for line in lines
    ]
    return (
        (run / "best.safetensors").read_bytes(),
        metrics,
        json.loads((run / "result.json").read_text())["test"],
    )
