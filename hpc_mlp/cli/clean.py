"""The command `clean`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from hpc_mlp.cli.options import Command, folders, runs_argument
from hpc_mlp.terminal.output import say


@click.command(cls=Command)
@runs_argument
@click.option("--failed", is_flag=True, help="Failed runs too, as a whole.")
@click.option(
    "--halved",
    is_flag=True,
    help="Checkpoints of a search's halved trials too; continued later, these begin anew.",
)
@click.option(
    "--cache",
    is_flag=True,
    help="Decoded images beside the shards too; the next training decodes them anew.",
)
@click.option("--dry-run", is_flag=True, help="Show what would be removed; remove nothing.")
def clean(runs: tuple[Path, ...], failed: bool, halved: bool, cache: bool, dry_run: bool) -> None:
    """Remove what nobody needs any more: checkpoints of complete runs, and what killed processes
    left behind, of trials of a search too. It asks nothing and says what it has removed.

    Nothing is touched of runs that train or wait in a queue. Without its checkpoint a complete run
    keeps its weights, metrics and predictions, but --extend trains it anew.

    \b
    hpc-mlp clean runs --dry-run
    hpc-mlp clean runs --failed --cache
    """
    from hpc_mlp.launch.clean import clean as remove

    cleaned = remove(folders(runs), failed=failed, halved=halved, cache=cache, dry_run=dry_run)
    for line in cleaned.lines():
        say(line)
    for problem in cleaned.problems:
        say(f"hpc-mlp: {problem}", err=True)
    sys.exit(1 if cleaned.problems else 0)
