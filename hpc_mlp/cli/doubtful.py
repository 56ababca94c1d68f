"""The command `doubtful`."""

from __future__ import annotations

from pathlib import Path

import click

from hpc_mlp.cli.options import Command, data_option, folders, runs_argument, where_option
from hpc_mlp.terminal.output import say


@click.command(cls=Command)
@runs_argument
@data_option
@click.option(
    "--format",
    "form",
    type=click.Choice(["rich", "json", "csv"]),
    default="rich",
    help="In csv, texts that a spreadsheet would take for a formula begin with '.",
)
@where_option
def doubtful(runs: tuple[Path, ...], shards: Path | None, form: str, where: str | None) -> None:
    """Name the images whose label is most doubtful, by what folds say of images that they were not
    trained on (confident learning). For runs of `train --folds`; `report` shows the images.

    \b
    hpc-mlp doubtful runs
    hpc-mlp doubtful runs --format csv > doubtful.csv
    """
    from hpc_mlp.reporting import shown
    from hpc_mlp.terminal.console import Console
    from hpc_mlp.terminal.text import json_text

    found = shown.doubtful(folders(runs), shards=shards, where=where)
    if form == "rich":
        found.show(Console())
        return
    say(json_text(found.records(), indent=1) if form == "json" else found.as_csv())
    for note in found.notes:
        say(note, err=True)
