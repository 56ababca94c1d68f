"""The command `doctor`: what a machine or cluster has, and what it lacks."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from hpc_mlp.cli.options import Command, cluster_config_option, runs_option
from hpc_mlp.config.assignments import parse_set
from hpc_mlp.launch import doctor as health
from hpc_mlp.launch import probe
from hpc_mlp.launch.cluster import choose_cluster
from hpc_mlp.launch.submit import load_launch
from hpc_mlp.terminal.console import Console


@click.command(cls=Command)
@runs_option
@click.option("--cluster", default="auto", metavar="slurm|local|auto", help="What to check.")
@cluster_config_option
@click.option(
    "--set",
    "sets",
    multiple=True,
    metavar="KEY=VALUE",
    help="Set one launch.… key, for --test-job.",
)
@click.option(
    "--test-job", "send_test_job", is_flag=True, help="Send a tiny job through and report."
)
def doctor(
    runs: Path, cluster: str, cluster_config: str | None, sets: tuple[str, ...], send_test_job: bool
) -> None:
    """Check this machine and cluster: what is there, what is missing, what to do about it.

    \b
    hpc-mlp doctor --cluster slurm --test-job
    """
    where = choose_cluster(cluster)
    launch = load_launch(cluster_config, [], parse_set(sets))
    findings = health.examine(runs, where, launch)
    if send_test_job:
        findings.append(probe.send(runs, where, launch))
    Console().print(health.table(findings))
    sys.exit(1 if any(finding.level == "error" for finding in findings) else 0)
