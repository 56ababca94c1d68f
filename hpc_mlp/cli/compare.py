"""The command `compare`."""

from __future__ import annotations

from pathlib import Path

import click

from hpc_mlp.cli.options import PATH, Command, data_option, metric_option
from hpc_mlp.terminal.output import say


@click.command(cls=Command)
@click.argument("first", metavar="A", type=PATH)
@click.argument("second", metavar="B", type=PATH)
@data_option
@metric_option
@click.option(
    "--out", metavar="FILE.html", type=PATH, default=Path("compare.html"), help="The page."
)
def compare(first: Path, second: Path, shards: Path | None, metric: str, out: Path) -> None:
    """Show how two runs, or two folders of runs, differ: settings, metrics, and the test images.

    The page has pictures of the images on which they differ. It is one file without scripts or
    network access.

    \b
    hpc-mlp compare runs/baseline-s0 runs/batchnorm-s0
    hpc-mlp compare runs longer --out longer.html
    """
    from hpc_mlp.reporting.pair import read_pair
    from hpc_mlp.reporting.pair_output import print_pair, write_page
    from hpc_mlp.terminal.console import Console

    pair = read_pair(first, second, metric)
    print_pair(pair, Console())
    missing = write_page(pair, out, shards)
    say(f"\n{out}")
    for line in missing:
        say(f"missing: {line}")
