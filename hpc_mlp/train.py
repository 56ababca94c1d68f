"""Training from the command line: `hpc-mlp train OUT` and `accelerate launch -m hpc_mlp.train OUT`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

import click

from hpc_mlp.options import Command, run_options

Parallel = Literal["auto", "members", "data"]


@click.command(cls=Command, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("out")
@run_options
@click.option("--cpu", is_flag=True, help="Do not use a GPU.")
@click.option(
    "--parallel",
    type=click.Choice(["auto", "members", "data"]),
    default="auto",
    show_default=True,
    help="With several processes: deal out the runs, or split every batch.",
)
@click.option(
    "--processes", type=click.IntRange(min=1), help="Processes to start here. [default: one per GPU]"
)
@click.option("--overwrite", is_flag=True, help="Train anew what is already there.")
def train(
    out: str,
    variants: str,
    seeds: str,
    runs: Path,
    config_files: tuple[Path, ...],
    sets: tuple[str, ...],
    cpu: bool,
    parallel: Parallel,
    processes: int | None,
    overwrite: bool,
) -> None:  # fmt: skip
    """Train variants × seeds on the shards folder OUT, all at once, and show the table.

    What is complete is not trained again; what was interrupted goes on where it was.

    \b
    hpc-mlp train shards
    hpc-mlp train shards --variants all,dropout_l2 --seeds 0-4 --set train.epochs=20
    hpc-mlp train shards --variants dropout --set model.dropout=0.1:0.5:0.1
    accelerate launch --num_processes 2 -m hpc_mlp.train shards --variants all
    """
    from hpc_mlp.plan import parse_seeds, parse_set, parse_variants, plan_runs

    chosen = parse_variants(variants)
    specs = plan_runs(chosen, parse_seeds(seeds), config_files, parse_set(sets))

    from hpc_mlp.models.registry import load_plugins

    load_plugins(plugin for variant in chosen for plugin in variant.plugins)
    launched = "LOCAL_RANK" in os.environ
    wanted = 1 if launched else _processes(processes, cpu)
    if wanted > 1:
        sys.exit(_launch(wanted, cpu))

    from rich.console import Console

    from hpc_mlp.data.remote import is_url
    from hpc_mlp.training.session import train_specs

    code = train_specs(
        out if is_url(out) else Path(out), specs, runs, cpu=cpu, parallel=parallel, overwrite=overwrite
    )
    if int(os.environ.get("RANK", "0")) == 0 and code in (0, 1):
        from hpc_mlp.report.table import print_table

        print_table(runs, Console())
    sys.exit(code)


def _processes(wanted: int | None, cpu: bool) -> int:
    if wanted is not None or cpu:
        return wanted or 1
    import torch

    return max(1, torch.cuda.device_count())


def _launch(processes: int, cpu: bool) -> int:
    """The same command once per device of this machine, through Accelerate's launcher."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(processes)]
    command += ["--cpu"] if cpu else []
    arguments = sys.argv[sys.argv.index("train") + 1 :] if "train" in sys.argv else sys.argv[1:]
    return subprocess.call([*command, "-m", "hpc_mlp.train", *arguments])


if __name__ == "__main__":
    train()
