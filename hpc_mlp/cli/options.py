"""Click options that several commands share, and the one way errors reach the user."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from hpc_mlp.errors import HpcMlpError
from hpc_mlp.machine import ranks
from hpc_mlp.terminal import output

if TYPE_CHECKING:
    from hpc_mlp.config.plan import RunSpec

F = TypeVar("F", bound=Callable[..., Any])
PATH = click.Path(path_type=Path)

# What the user can mend and no bug of ours causes: permissions, space, a file for a folder.
_SURROUNDINGS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT}
_SURROUNDINGS |= {errno.ENOTDIR, errno.EISDIR, errno.EEXIST}


class Command(click.Command):
    """A command whose expected errors become one message on stderr and an exit code."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.context_settings = {"help_option_names": ["-h", "--help"], "show_default": True}

    def main(self, *arguments: Any, **options: Any) -> Any:
        output.prepare()
        return super().main(*arguments, **options)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        given = [*args]
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            # As argparse has it: --seeds 0 1 2
            lists = [param.opts[0] for param in self.params if "," in (param.metavar or "")]
            if "unexpected extra" in error.message and (used := [o for o in lists if o in given]):
                told = f"{error.message}. Values of {used[0]} are separated by commas."
                raise click.UsageError(told, ctx) from None
            raise

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except HpcMlpError as error:
            fail(str(error), error.exit_code)
        except KeyboardInterrupt:
            fail("interrupted.", 130)
        # `hpc-mlp table | head`
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except OSError as error:
            if error.errno not in _SURROUNDINGS or error.filename is None:
                raise
            fail(f"{error.filename}: {error.strerror}.", 2)


def fail(message: str, code: int) -> NoReturn:
    rank = ranks.rank()
    if rank == 0:
        output.say(f"hpc-mlp: {message}", err=True)
    # Wrong input is found by all processes alike, and said once.
    elif code != 2:
        output.say(f"hpc-mlp (process {rank}): {message}", err=True)
    sys.exit(code)


def names(text: str | None) -> list[str] | None:
    """`"a, b"` → `["a", "b"]`"""
    return None if text is None else [name for part in text.split(",") if (name := part.strip())]


def folders(runs: tuple[Path, ...]) -> list[Path]:
    """What `runs_argument` names, each once."""
    named = runs or (Path("runs"),)
    return list({path.resolve(): path for path in reversed(named)}.values())[::-1]


# click gives an argument of many values no default; `folders` does.
runs_argument = click.argument("runs", metavar="[RUNS]...", nargs=-1, type=PATH)
where_option = click.option(
    "--where",
    metavar="CONDITION",
    help="Only runs such as 'optim.lr<1e-2 and variant!=dropout': fields of --format json and "
    "configuration keys, with < <= == != in, and, or, not and parentheses.",
)
top_option = click.option(
    "--top",
    type=click.IntRange(min=1),
    metavar="N",
    help="Only the first N rows by --sort, without it by validation loss, as ★ is chosen.",
)
runs_option = click.option(
    "--runs", default="runs", metavar="DIR", type=PATH, help="Where the run folders go."
)
log_format_option = click.option(
    "--log-format",
    default="auto",
    type=click.Choice(["auto", "text", "json"]),
    help="auto: live on a terminal, else lines. json: JSON lines on stdout.",
)
data_option = click.option(
    "--data",
    "shards",
    metavar="OUT",
    type=PATH,
    help="The shards folder, where it is no longer at the path that the runs name.",
)
detect_option = click.option(
    "--detect",
    type=click.FloatRange(0, 100, min_open=True),
    default=1.0,
    metavar="POINTS",
    help="Say how many seeds would find a difference of so many points; of the loss, hundredths.",
)
metric_option = click.option(
    "--metric",
    type=click.Choice(["accuracy", "f1", "loss", "ece"]),
    default="accuracy",
    help="Compare in this metric of the test images: accuracy, macro F1, cross entropy, expected "
    "calibration error.",
)
cluster_config_option = click.option(
    "--cluster-config",
    metavar="NAME|FILE.toml",
    help="The cluster's profile: a file with [launch], or one of configs/clusters by name.",
)


@dataclass(frozen=True)
class PlannedRuns:
    """What --variants, --seeds, --runs, --config, --set and those of a search say: what to run,
    and where."""

    variants: str
    seeds: str
    runs: Path
    config_files: tuple[Path, ...]
    sets: tuple[str, ...]
    search: tuple[str, ...]
    trials: int | None
    halving: int | None
    search_seeds: str | None

    def specs(self, sets: list[str] | None = None) -> list[RunSpec]:
        """`sets`: in place of all --set."""
        from hpc_mlp.config.assignments import parse_set
        from hpc_mlp.config.plan import parse_seeds, parse_variants
        from hpc_mlp.config.search import plan_search, read_search

        files = self.config_files
        return plan_search(
            read_search(files, self.search, self.trials, self.halving, self.search_seeds),
            parse_variants(self.variants),
            parse_seeds(self.seeds),
            files,
            parse_set(self.sets if sets is None else sets),
        )


# The last one first in --help.
_RUN_OPTIONS = (
    log_format_option,
    click.option("--overwrite", is_flag=True, help="Train anew what is already there."),
    click.option(
        "--extend",
        is_flag=True,
        help="Take runs that were planned with fewer epochs to these: on from the checkpoint "
        "where one was kept (train.keep_checkpoint), else anew.",
    ),
    click.option("--cpu", is_flag=True, help="Do not use a GPU."),
    click.option(
        "--parallel",
        type=click.Choice(["auto", "members", "data"]),
        default="auto",
        help="With several processes or tasks: deal out the runs, or split every batch. auto: "
        "split where there are fewer runs than processes, but MLPs never on GPUs.",
    ),
    click.option(
        "--search-seeds",
        metavar="0-4|0,3",
        help="The seeds of each trial, other ones than --seeds. [default: 1000]",
    ),
    click.option(
        "--halving",
        type=int,
        metavar="N",
        help="After epochs/N², epochs/N, … epochs one trial in N goes on, and the others keep "
        "their checkpoint. 0: all go on.",
    ),
    click.option("--trials", type=int, metavar="N", help="Settings to try of each variant."),
    click.option(
        "--search",
        multiple=True,
        metavar="KEY=RANGE",
        help="Search a key: 0:0.6, log:1e-4:1e-1, or choice:A|B. The best --trials by "
        "validation are then trained with --seeds, and these alone are compared.",
    ),
    click.option(
        "--set",
        "sets",
        multiple=True,
        metavar="KEY=VALUE",
        help="Set one key, e.g. train.epochs=20; commas or start:stop:step make a sweep.",
    ),
    click.option(
        "--config",
        "config_files",
        multiple=True,
        metavar="FILE.toml",
        type=PATH,
        help="A delta over the defaults; may be repeated.",
    ),
    runs_option,
    click.option(
        "--folds",
        type=click.IntRange(2, 100),
        metavar="K",
        help="Cross-validation: every variant and seed K times, each time tested on another "
        "K-th of the images (data.folds).",
    ),
    click.option("--seeds", default="0", metavar="0-4|0,3", help="Which seeds."),
    click.option(
        "--variants",
        default="all",
        metavar="a,b|all|FILE.toml",
        help="Which variants; 'all' means baseline, dropout, batchnorm, dropout_batchnorm.",
    ),
)


def run_options(command: F) -> F:
    """The options of `PlannedRuns`, which the command gets as `planned`, and those of
    `config.plan.TrainOptions`, which it gets as `options`."""

    @wraps(command)
    def gathering(**values: Any) -> Any:
        from hpc_mlp.config.plan import TrainOptions

        if (folds := values.pop("folds")) is not None:
            values["sets"] += (f"data.folds={folds}",)
        planned, options = (
            kind(**{field.name: values.pop(field.name) for field in fields(kind)})
            for kind in (PlannedRuns, TrainOptions)
        )
        return command(planned=planned, options=options, **values)

    decorated: Any = gathering
    for option in _RUN_OPTIONS:
        decorated = option(decorated)
    return decorated  # type: ignore[no-any-return]
