"""`hpc-mlp table RUNS`."""

from __future__ import annotations

from pathlib import Path

import click

from hpc_mlp.cli.options import Command, detect_option
from hpc_mlp.terminal.output import say


@click.command("table", cls=Command)
@click.argument("runs", type=click.Path(path_type=Path), default=Path("runs"))
@click.option("--format", "form", type=click.Choice(["rich", "json", "csv", "markdown"]), default="rich",
              show_default=True, help="In json and csv, metrics are fractions, not percent. In csv, "
                                      "texts that a spreadsheet would take for a formula begin with '.")  # fmt: skip
@click.option("--by", metavar="KEY,…", help="Group by these keys, e.g. optim.lr or seed, and not by what "
                                            "a sweep varied; 'variant': by nothing else.")  # fmt: skip
@click.option("--sort", metavar="COLUMN", help="Sort the rows: best first for metrics, else smallest first.")
@detect_option
@click.option("--columns", metavar="A,B,…", help="Show these columns only, named as in --format json.")
def table(
    runs: Path, form: str, by: str | None, sort: str | None, detect: float, columns: str | None
) -> None:
    """Show the runs of a folder as one table: mean ± sd over seeds, failed and unfinished runs too.

    \b
    hpc-mlp table runs
    hpc-mlp table runs --format csv > runs.csv
    hpc-mlp table runs --by optim.lr --sort val_loss --columns variant,optim.lr,val_loss,test_accuracy
    hpc-mlp table runs --sort difference --columns variant,test_accuracy,difference,interval,p_adjusted
    hpc-mlp table runs --detect 0.5
    """
    from hpc_mlp.files.wrong_path import want_runs
    from hpc_mlp.reporting import records
    from hpc_mlp.reporting import table as people
    from hpc_mlp.reporting.summary import read_runs, summarise

    want_runs(runs, "table")
    summary = summarise(read_runs(runs), _names(by), detect / 100)
    names = _names(columns)
    if names is not None:
        for_people = form in ("rich", "markdown")
        known = (
            people.known_columns(summary) if for_people else [*records.records(summary)[0], *records.SHORT]
        )
        records.check_names(names, known)
    if sort:
        summary = records.sort_rows(summary, sort)
    if form == "rich":
        from hpc_mlp.terminal.console import Console

        people.print_summary(summary, Console(), names)
    else:
        write = {"json": records.as_json, "csv": records.as_csv, "markdown": people.as_markdown}[form]
        say(write(summary, names))


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name for part in text.split(",") if (name := part.strip())]
