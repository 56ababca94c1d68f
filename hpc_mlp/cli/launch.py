"""The commands that send and end jobs: submit, cancel."""

from __future__ import annotations

from pathlib import Path

import click

from hpc_mlp.cli.options import (
    PATH,
    Command,
    PlannedRuns,
    cluster_config_option,
    fail,
    names,
    run_options,
)
from hpc_mlp.cli.status import finish, watch
from hpc_mlp.config.assignments import parse_set
from hpc_mlp.config.plan import TrainOptions
from hpc_mlp.data.remote import dataset_location
from hpc_mlp.files.wrong_path import want_runs
from hpc_mlp.launch import show, slurm
from hpc_mlp.launch.cluster import choose_cluster
from hpc_mlp.launch.jobs import parse_per_job, shorten_ids
from hpc_mlp.launch.records import FOLDER, read_submissions
from hpc_mlp.launch.slots import make_slots
from hpc_mlp.launch.slurm_commands import max_array_size
from hpc_mlp.launch.status import require_status
from hpc_mlp.launch.submit import JobOptions, load_launch
from hpc_mlp.launch.submit import cancel as cancel_jobs
from hpc_mlp.launch.submitted import send
from hpc_mlp.terminal.console import Console
from hpc_mlp.terminal.output import say
from hpc_mlp.terminal.text import count


@click.command(cls=Command)
@click.argument("out")
@run_options
@click.option(
    "--cluster",
    default="auto",
    metavar="slurm|local|auto",
    help="Where the jobs run; 'auto' means slurm where sbatch is found, else this machine.",
)
@cluster_config_option
@click.option("--per-job", metavar="N|all", help="Runs in a job; default: all seeds of a variant.")
@click.option(
    "--gpus-per-job",
    type=click.IntRange(0),
    metavar="N",
    help="GPUs a job gets on each node, one task for each.",
)
@click.option("--nodes", type=click.IntRange(1), metavar="N", help="Nodes a job gets.")
@click.option(
    "--slots",
    type=click.IntRange(1),
    metavar="N",
    help="--cluster local: how many jobs at once, at most one per GPU (or group).",
)
@click.option(
    "--dry-run", is_flag=True, help="Show the plan, the resources and the script; send nothing."
)
@click.option("--wait", is_flag=True, help="Follow the jobs to their end, then show the table.")
def submit(
    out: str,
    planned: PlannedRuns,
    options: TrainOptions,
    cluster: str,
    cluster_config: str | None,
    per_job: str | None,
    gpus_per_job: int | None,
    nodes: int | None,
    slots: int | None,
    dry_run: bool,
    wait: bool,
) -> None:
    """Train variants × seeds in jobs: on Slurm, or in a queue on this machine.

    Returns at once; `status`, `cancel` and `table` work from any shell later. Runs that are done or
    on their way are left out, so the same command sends only what is missing.

    \b
    hpc-mlp submit shards --seeds 0-4 --cluster slurm --cluster-config gpu
    hpc-mlp submit shards --cluster local --slots 2 --wait
    hpc-mlp submit shards --search optim.lr=log:1e-4:1e-1 --trials 27 --halving 3

    --log-format is for --wait: as with `train`, and with json no table follows.
    """
    shards = dataset_location(out)
    values = parse_set(planned.sets)
    for key, value in (("launch.gpus_per_job", gpus_per_job), ("launch.nodes", nodes)):
        if value is not None:
            values[key] = [value]
    launch = load_launch(cluster_config, planned.config_files, values)
    own = [text for text in planned.sets if not text.lstrip().startswith("launch.")]
    specs, runs = planned.specs(own), planned.runs
    wanted = JobOptions(choose_cluster(cluster), launch, parse_per_job(per_job), slots)
    sent = send(specs, shards, runs, wanted, options, dry_run)
    console, log_format = Console(), options.log_format
    # Standard output is the log's.
    if dry_run or not (wait and log_format == "json"):
        sent.show(console)
    if dry_run:
        _show_resources(wanted, runs, options.cpu, len(sent.plan.jobs))
        return
    if wait:
        awaited = {spec.name for spec in specs if not spec.is_trial}
        ended = watch([runs], console, log_format, awaited)
        finish(ended, [runs], log_format)


def _show_resources(wanted: JobOptions, runs: Path, cpu: bool, num_jobs: int) -> None:
    launch = wanted.launch
    if wanted.cluster == "local":
        for slot in make_slots(launch, wanted.slots, cpu):
            devices = f"GPU {','.join(slot.devices)}" if slot.devices else "CPU"
            say(f"Slot {slot.name}: {devices}, {count(slot.threads, 'thread')}")
        return
    say(f"Each job: {show.resources(launch)}.")
    if num_jobs:
        limit = max_array_size()
        chunks = -(-num_jobs // limit)
        if chunks > 1:
            size = f"(MaxArraySize {limit})"
            say(f"{num_jobs} jobs in {chunks} arrays {size}; the first one's script:")
        logs = (runs / FOLDER / "<id>" / "logs").absolute()
        say(slurm.script(launch, "hpc-mlp-<id>", logs, min(num_jobs, limit)))


@click.command(cls=Command)
@click.argument("runs", default="runs", metavar="[RUNS]", type=PATH)
@click.option("--variants", metavar="a,b", help="Only the jobs of these variants.")
def cancel(runs: Path, variants: str | None) -> None:
    """End the jobs of a runs folder: exactly those submitted from it, nothing else of yours.

    \b
    hpc-mlp cancel runs --variants dropout
    """
    want_runs(runs, "cancel")
    require_status(runs)
    ended = cancel_jobs(runs, None if variants == "all" else names(variants))
    if ended:
        say(f"Cancelled {count(len(ended), 'job')}: {shorten_ids(ended)}")
    else:
        say("Nothing to cancel.")
    if problems := read_submissions(runs)[1]:
        fail("\n".join(problems.values()), 1)
