"""The command `demo`: the whole way, on data that come with scikit-learn."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from hpc_mlp.cli.options import PATH, Command
from hpc_mlp.terminal.output import say


@click.command(cls=Command)
@click.argument("folder", default="demo", type=PATH)
@click.option("--overwrite", is_flag=True, help="Start anew.")
def demo(folder: Path, overwrite: bool) -> None:
    """Digits → ZIP → shards → the four variants, three seeds each → table, in FOLDER (default:
    demo).

    \b
    hpc-mlp demo
    """
    from hpc_mlp.conversion.convert import convert
    from hpc_mlp.conversion.digits import write_digits_zip
    from hpc_mlp.conversion.settings import Settings

    archive, shards, runs = folder / "digits.zip", folder / "shards", folder / "runs"
    if overwrite or not archive.exists():
        write_digits_zip(archive)
    say(f"1. {archive}: scikit-learn's 1,797 handwritten digits, one folder a class")
    if overwrite or not shards.exists():
        convert([archive], shards, Settings(height=8, width=8, grayscale=True, overwrite=True))
    say(f"2. {shards}: WebDataset shards and manifest.json (hpc-mlp inspect {shards})")
    say(
        "3. training baseline, dropout, batchnorm and dropout_batchnorm with three seeds, as one "
        "bank",
        end=True,
    )

    from hpc_mlp.config.plan import TrainOptions, make_specs
    from hpc_mlp.launch.cores import share_cores
    from hpc_mlp.reporting.table import print_table
    from hpc_mlp.terminal.console import Console

    # Before torch is imported: see there.
    share_cores()
    from hpc_mlp.training.session import train_specs

    options = TrainOptions(cpu=True, overwrite=overwrite)
    code = train_specs(shards, make_specs(seeds="0-2"), runs, options)
    if code in (0, 1):
        print_table(runs, Console())
        say(f"4. {runs}: one folder a run (hpc-mlp table {runs}, hpc-mlp report {runs})")
        say(
            "\nYour own images: hpc-mlp convert YOUR.zip shards && hpc-mlp train shards --seeds 0-2"
        )
    sys.exit(code)
