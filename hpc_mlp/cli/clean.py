"""The command `clean`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hpc_mlp.cli.options import Command, folders, runs_argument
from hpc_mlp.terminal.output import say

if TYPE_CHECKING:
    from hpc_mlp.launch.clean import Kind, Waste

# Lines of single files.
_MOST_LINES = 20


@click.command(cls=Command)
@runs_argument
@click.option("--failed", is_flag=True, help="Failed runs too, as a whole.")
@click.option(
    "--cache",
    is_flag=True,
    help="Decoded images beside the shards too; the next training decodes them anew.",
)
@click.option("--dry-run", is_flag=True, help="Show what would be removed; remove nothing.")
def clean(runs: tuple[Path, ...], failed: bool, cache: bool, dry_run: bool) -> None:
    """Remove what nobody needs any more: checkpoints of complete runs, and what killed processes
    left behind. It asks nothing and says what it has removed.

    Nothing is touched of runs that train or wait in a queue. Without its checkpoint a complete run
    keeps its weights, metrics and predictions, but --extend trains it anew.

    \b
    hpc-mlp clean runs --dry-run
    hpc-mlp clean runs --failed --cache
    """
    from hpc_mlp.errors import RunError
    from hpc_mlp.files.wrong_path import want_runs
    from hpc_mlp.launch.clean import find, remove
    from hpc_mlp.launch.status import require_status
    from hpc_mlp.terminal.text import count

    for root in folders(runs):
        want_runs(root, "clean")
        require_status(root)
    found = find(folders(runs))
    kinds: set[Kind] = {"checkpoint", "leftovers"}
    kinds |= {"failed run"} if failed else set()
    kinds |= {"decoded images"} if cache else set()
    removed: list[Waste] = []
    problems = []
    for item in found.waste:
        if item.kind not in kinds:
            continue
        try:
            if not dry_run:
                remove(item)
            removed.append(item)
        except (RunError, OSError) as error:
            problems.append(str(error))
    _show(removed, "would be removed" if dry_run else "removed")
    options: tuple[tuple[Kind, str], ...]
    options = (("failed run", "--failed"), ("decoded images", "--cache"))
    for kind, option in options:
        kept = [item for item in found.waste if item.kind == kind and kind not in kinds]
        if kept:
            one = len(kept) == 1 and kind == "failed run"
            say(f"kept: {_sum(kept)} ({option} removes {'it' if one else 'them'})")
    if found.busy:
        say(f"left alone: {count(found.busy, 'run')} under way")
    for problem in problems:
        say(f"hpc-mlp: {problem}", err=True)
    sys.exit(1 if problems else 0)


def _show(items: list[Waste], verb: str) -> None:
    for item in items[:_MOST_LINES]:
        where = ", ".join(map(str, item.paths))
        say(f"{where}  {_mb(item.size)}")
    if len(items) > _MOST_LINES:
        say(f"and {len(items) - _MOST_LINES:,} more")
    say(f"{verb}: {_sum(items)}" if items else f"nothing {verb}")


def _sum(items: list[Waste]) -> str:
    """`2 checkpoints and 1 failed run, 120 MB`"""
    from hpc_mlp.terminal.text import count

    parts = []
    for kind in dict.fromkeys(item.kind for item in items):
        number = sum(item.kind == kind for item in items)
        counted = count(number, kind)
        parts.append(
            {
                "leftovers": f"leftovers in {count(number, 'run')}",
                "decoded images": f"the decoded images of {count(number, 'dataset')}",
            }.get(kind, counted)
        )
    return f"{' and '.join(parts)}, {_mb(sum(item.size for item in items))}"


def _mb(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
