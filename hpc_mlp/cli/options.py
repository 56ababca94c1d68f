"""Click options that several commands share, and the one way errors reach the user."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from hpc_mlp.errors import HpcMlpError
from hpc_mlp.machine import ranks
from hpc_mlp.terminal import output

F = TypeVar("F", bound=Callable[..., Any])

# What the user can mend and no bug of ours causes: no permission, no space, a file in a folder's place.
_SURROUNDINGS = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST,
}  # fmt: skip


class Command(click.Command):
    """A command whose expected errors become one message on stderr and an exit code."""

    def main(self, *arguments: Any, **options: Any) -> Any:
        output.prepare()
        return super().main(*arguments, **options)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except HpcMlpError as error:
            fail(str(error), error.exit_code)
        except KeyboardInterrupt:
            fail("interrupted.", 130)
        except BrokenPipeError:  # `hpc-mlp table | head`
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
    elif code != 2:  # wrong input is found by all processes alike, and said once
        output.say(f"hpc-mlp (process {rank}): {message}", err=True)
    sys.exit(code)


def run_options(command: F) -> F:
    """--variants, --seeds, --runs, --config, --set: what to run, and where."""
    for option in reversed(
        [
            click.option("--variants", default="all", show_default=True, metavar="a,b|all|FILE.toml",
                         help="Which variants; 'all' means baseline, dropout, batchnorm, dropout_batchnorm."),
            click.option("--seeds", default="0", show_default=True, metavar="0-4|0,3", help="Which seeds."),
            runs_option,
            click.option("--config", "config_files", multiple=True, metavar="FILE.toml",
                         type=click.Path(path_type=Path), help="A delta over the defaults; may be repeated."),
            click.option("--set", "sets", multiple=True, metavar="KEY=VALUE",
                         help="Set one key, e.g. train.epochs=20; commas or start:stop:step make a sweep."),
        ]
    ):  # fmt: skip
        command = option(command)
    return command


def log_format_option(command: F) -> F:
    option = click.option("--log-format", default="auto", show_default=True,
                          type=click.Choice(["auto", "text", "json"]),
                          help="auto: live on a terminal, else lines. json: JSON lines on stdout.")  # fmt: skip
    return option(command)


def runs_option(command: F) -> F:
    option = click.option("--runs", default="runs", show_default=True, metavar="DIR",
                          type=click.Path(path_type=Path), help="Where the run folders go.")  # fmt: skip
    return option(command)


def detect_option(command: F) -> F:
    option = click.option(
        "--detect",
        type=click.FloatRange(0, 100, min_open=True),
        default=1.0,
        show_default=True,
        metavar="POINTS",
        help="Say how many seeds would find a difference of so many points of test accuracy.",
    )
    return option(command)
