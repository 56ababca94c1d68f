"""`hpc-mlp table RUNS…` and `hpc-mlp report RUNS…`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hpc_mlp.cli.options import (
    PATH,
    Command,
    data_option,
    detect_option,
    folders,
    metric_option,
    names,
    runs_argument,
    top_option,
    where_option,
)
from hpc_mlp.terminal.output import say

if TYPE_CHECKING:
    from hpc_mlp.reporting.summary import Summary

by_option = click.option(
    "--by",
    "--group-by",
    metavar="KEY,…",
    help="Group by these keys, e.g. optim.lr, seed or folder, and not by what a sweep varied; "
    "'variant': by nothing else.",
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
@where_option
@top_option
@click.option("--sort", metavar="COLUMN", help="Sort: metrics best first, the rest smallest first.")
@detect_option
@metric_option
@click.option(
    "--ensembles",
    is_flag=True,
    help="Under each row of several seeds, the mean of their probabilities as one model.",
)
@click.option("--columns", metavar="A,B,…", help="Show these columns only: names of --format json.")
def table(
    runs: tuple[Path, ...],
    form: str,
    by: str | None,
    where: str | None,
    top: int | None,
    sort: str | None,
    detect: float,
    metric: str,
    ensembles: bool,
    columns: str | None,
) -> None:
    """Show the runs of a folder (default: runs), or of several, as one table: mean ± sd over
    seeds, failed and unfinished runs too. It fits the terminal; in a pipe or a file it is as wide
    as COLUMNS says, or 80.

    \b
    hpc-mlp table runs
    hpc-mlp table runs more --where 'optim.lr<1e-2 and variant!=dropout' --top 5
    hpc-mlp table runs --format csv > runs.csv
    hpc-mlp table runs --sort val_loss --columns variant,val_loss,test_accuracy
    hpc-mlp table runs --by optim.lr
    hpc-mlp table runs --sort difference --columns variant,difference,interval
    hpc-mlp table runs --detect 0.5
    hpc-mlp table runs --metric f1
    hpc-mlp table runs --ensembles
    """
    from hpc_mlp.reporting import columns as shown
    from hpc_mlp.reporting import records
    from hpc_mlp.reporting import table as tables

    found = _summary(runs, where, by, detect, metric, "table", ensembles)
    wanted = names(columns)
    if wanted is not None:
        for_people = form in ("rich", "markdown")
        known = shown.known_columns(found) if for_people else records.known_columns(found)
        records.check_names(wanted, known)
    found = _sorted(found, sort, top)
    if form == "rich":
        from hpc_mlp.terminal.console import Console

        tables.print_summary(found, Console(), wanted)
    else:
        forms = {"json": records.as_json, "csv": records.as_csv, "markdown": tables.as_markdown}
        say(forms[form](found, wanted))


@click.command(cls=Command)
@runs_argument
@data_option
@click.option("--out", metavar="FILE", type=PATH, help="Instead of RUNS/report.html.")
@by_option
@where_option
@top_option
@detect_option
@metric_option
def report(
    runs: tuple[Path, ...],
    shards: Path | None,
    out: Path | None,
    by: str | None,
    where: str | None,
    top: int | None,
    detect: float,
    metric: str,
) -> None:
    """Write one HTML page with plots of all runs, and the plots as PNG and SVG in RUNS/figures; of
    several RUNS, report.html and report-figures here.

    The page is one file without scripts or network access: mail it, or open it from disk. Failed
    and unfinished runs are shown as far as they went.

    \b
    hpc-mlp report runs
    hpc-mlp report runs more --where 'variant!=dropout' --out two.html
    hpc-mlp report runs --data /scratch/shards --out comparison.html
    """
    # We only write files. A notebook's kernel names a backend that another environment may lack,
    # and matplotlib would stop at its import.
    os.environ["MPLBACKEND"] = "agg"
    from hpc_mlp.reporting.page import write_report

    found = _summary(runs, where, by, detect, metric, "report", True)
    found = _sorted(found, None, top)
    home = folders(runs)[0] if len(folders(runs)) == 1 else None
    written = write_report(found, home, out or (home or Path()) / "report.html", shards)
    for line in (str(written.path), *written.lines()):
        say(line)


def _summary(
    runs: tuple[Path, ...],
    where: str | None,
    by: str | None,
    detect: float,
    metric: str,
    command: str,
    ensembles: bool,
) -> Summary:
    from hpc_mlp.reporting.choice import choose_runs
    from hpc_mlp.reporting.summary import summarise

    chosen = choose_runs(folders(runs), where, command)
    return summarise(chosen.runs, names(by), detect / 100, chosen.notes, metric, ensembles)


def _sorted(found: Summary, sort: str | None, top: int | None) -> Summary:
    from hpc_mlp.reporting.choice import top_rows
    from hpc_mlp.reporting.records import sort_rows

    if top is not None:
        return top_rows(found, top, sort)
    return sort_rows(found, sort) if sort else found
