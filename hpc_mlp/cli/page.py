"""`hpc-mlp report RUNS`."""

from __future__ import annotations

import os
from pathlib import Path

import click

from hpc_mlp.cli.options import Command, detect_option
from hpc_mlp.terminal.output import say


@click.command(cls=Command)
@click.argument("runs", type=click.Path(path_type=Path), default=Path("runs"))
@click.option("--data", "shards", metavar="OUT", type=click.Path(path_type=Path),
              help="The shards folder, where it is no longer at the path that the runs name.")  # fmt: skip
@click.option("--out", metavar="FILE", type=click.Path(path_type=Path), help="Instead of RUNS/report.html.")
@click.option("--by", metavar="KEY,…", help="Group by these configuration keys, e.g. optim.lr, instead of "
                                            "what a sweep varied; also seed and dataset.")  # fmt: skip
@detect_option
def report(runs: Path, shards: Path | None, out: Path | None, by: str | None, detect: float) -> None:
    """Write one HTML page with plots of all runs, and the plots as PNG and SVG in RUNS/figures.

    The page is one file without scripts or network access: mail it, or open it from disk. Failed and
    unfinished runs are shown as far as they went.

    \b
    hpc-mlp report runs
    hpc-mlp report runs --data /scratch/shards --out comparison.html
    """
    from hpc_mlp.files.wrong_path import want_runs

    want_runs(runs, "report")
    # A notebook's kernel sets a backend that another environment may lack, and matplotlib stops at its import. We only
    # write files.
    os.environ["MPLBACKEND"] = "agg"
    from hpc_mlp.reporting.page import describe, write_report
    from hpc_mlp.reporting.summary import read_runs, summarise

    keys = None if by is None else [name for part in by.split(",") if (name := part.strip())]
    out = out or runs / "report.html"
    material = write_report(summarise(read_runs(runs), keys, detect / 100), runs, out, shards)
    for line in describe(material, out, runs):
        say(line)
