"""The command `track`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import click

from hpc_mlp.cli.options import Command, folders, runs_argument, where_option
from hpc_mlp.terminal.output import say


@click.command(cls=Command)
@runs_argument
@click.option("--to", required=True, metavar="tensorboard|mlflow", help="The tracker.")
@click.option(
    "--place",
    metavar="URI|DIR",
    help="MLflow's tracking URI [default: MLFLOW_TRACKING_URI], or a folder for all event files "
    "[default: each run's own].",
)
@click.option(
    "--experiment", metavar="NAME", help="MLflow's experiment. [default: the name of RUNS]"
)
@where_option
def track(
    runs: tuple[Path, ...], to: str, place: str | None, experiment: str | None, where: str | None
) -> None:
    """Write finished and running runs to an experiment tracker, from their folders.

    For nodes without internet: train there, and track from where there is one. The same command
    again adds what is new, and writes nothing twice; a run that was trained anew replaces what the
    tracker has of it.

    \b
    hpc-mlp track runs --to tensorboard
    hpc-mlp track runs --to mlflow --place http://localhost:5000
    """
    from hpc_mlp.reporting.choice import choose_runs
    from hpc_mlp.terminal.text import count
    from hpc_mlp.tracking.records import open_tracker, write_runs

    roots = folders(runs)
    chosen = choose_runs(roots, where, "track").runs
    tracker = open_tracker(to, place, experiment or roots[0].resolve().name)
    done, problems = write_runs(tracker, [run.path for run in chosen])
    told = ", ".join(f"{number:,} {what}" for what, number in done.items())
    say(f"{to}: {count(sum(done.values()), 'run')}: {told}" if told else f"{to}: nothing written")
    if told and to == "tensorboard":
        say(f"To see them:  tensorboard --logdir {shlex.quote(str(place or roots[0]))}")
    for problem in problems:
        say(f"hpc-mlp: {problem}", err=True)
    sys.exit(1 if problems else 0)
