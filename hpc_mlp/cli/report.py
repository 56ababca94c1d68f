"""`hpc-mlp table RUNS` and `hpc-mlp report RUNS`."""

from __future__ import annotations

import os
from pathlib import Path

import click

from hpc_mlp.cli.options import PATH, Command, detect_option, names
from hpc_mlp.terminal.output import say

runs_argument = click.argument("runs", type=PATH, default=Path("runs"))
by_option = click.option(
    "--by",
    metavar="KEY,…",
    help="Group by these keys, e.g. optim.lr or seed, and not by what a sweep varied; 'variant': "
    "by nothing else.",
)


@click.command("table", cls=Command)
@runs_argument
@click.option(
    "--format",
    "form",
    type=click.Choice(["rich", "json", "csv", "markdown"]),
    default="rich",
    help="In json and csv, metrics are fractions, not percent. In csv, texts that a spreadsheet "
    "would take for a formula begin with '.",
)
@by_option
@click.option("--sort", metavar="COLUMN", help="Sort: metrics best first, the rest smallest first.")
@detect_option
@click.option("--columns", metavar="A,B,…", help="Show these columns only: names of --format json.")
def table(
    runs: Path, form: str, by: str | None, sort: str | None, detect: float, columns: str | None
) -> None:
    """Show the runs of a folder as one table: mean ± sd over seeds, failed and unfinished runs too.

    \b
    hpc-mlp table runs
    hpc-mlp table runs --format csv > runs.csv
    hpc-mlp table runs --sort val_loss --columns variant,val_loss,test_accuracy
    hpc-mlp table runs --by optim.lr
    hpc-mlp table runs --sort difference --columns variant,difference,interval
    hpc-mlp table runs --detect 0.5
    """
    from hpc_mlp.files.wrong_path import want_runs
    from hpc_mlp.reporting import columns as shown
    from hpc_mlp.reporting import records, summary
    from hpc_mlp.reporting import table as tables
    from hpc_mlp.runs.folder import list_runs

    want_runs(runs, "table")
    found = summary.summarise(list_runs(runs), names(by), detect / 100)
    wanted = names(columns)
    if wanted is not None:
        for_people = form in ("rich", "markdown")
        known = shown.known_columns(found) if for_people else records.known_columns(found)
        records.check_names(wanted, known)
    if sort:
        found = records.sort_rows(found, sort)
    if form == "rich":
        from hpc_mlp.terminal.console import Console

        tables.print_summary(found, Console(), wanted)
    else:
        forms = {"json": records.as_json, "csv": records.as_csv, "markdown": tables.as_markdown}
        say(forms[form](found, wanted))


@click.command(cls=Command)
@runs_argument
@click.option(
    "--data",
    "shards",
    metavar="OUT",
    type=PATH,
    help="The shards folder, where it is no longer at the path that the runs name.",
)
@click.option("--out", metavar="FILE", type=PATH, help="Instead of RUNS/report.html.")
@by_option
@detect_option
def report(
    runs: Path, shards: Path | None, out: Path | None, by: str | None, detect: float
) -> None:
    """Write one HTML page with plots of all runs, and the plots as PNG and SVG in RUNS/figures.

    The page is one file without scripts or network access: mail it, or open it from disk. Failed
    and unfinished runs are shown as far as they went.

    \b
    hpc-mlp report runs
    hpc-mlp report runs --data /scratch/shards --out comparison.html
    """
    from hpc_mlp.files.wrong_path import want_runs

    want_runs(runs, "report")
    # We only write files. A notebook's kernel names a backend that another environment may lack,
    # and matplotlib would stop at its import.
    os.environ["MPLBACKEND"] = "agg"
    from hpc_mlp.reporting.page import write_report
    from hpc_mlp.reporting.summary import summarise
    from hpc_mlp.runs.folder import list_runs

    found = summarise(list_runs(runs), names(by), detect / 100)
    for line in write_report(found, runs, out or runs / "report.html", shards):
        say(line)
