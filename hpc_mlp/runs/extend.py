"""Runs that are to have more epochs than they were planned with (`--extend`): the same bits as if
they had been planned so from the start."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from hpc_mlp.config.plan import RunSpec
from hpc_mlp.errors import UserError, printable
from hpc_mlp.machine.command_line import command_line
from hpc_mlp.runs.folder import CONFIG, LAST, RESULT, RunFolder
from hpc_mlp.runs.identity import is_begun
from hpc_mlp.runs.lease import Lease
from hpc_mlp.terminal.text import count, duration

# Schedules in which every step's learning rate depends on the number of epochs.
_LENGTH_COUNTS = ("cosine", "onecycle")

How = Literal["on", "anew", "ended"]


@dataclass(frozen=True)
class Extension:
    """Of one run: from `before` epochs to those of `spec`. `how`: it goes on from its checkpoint,
    starts anew for the reason `why`, or has ended for a reason that more epochs do not change.
    `seconds`: what training it anew took, for as many epochs."""

    spec: RunSpec
    path: Path
    before: int
    how: How
    why: str = ""
    seconds: float | None = None


def extensions(specs: Iterable[RunSpec], runs: Path, digest: str) -> list[Extension]:
    """Of those runs in `runs` that have fewer epochs than `specs` want; the others are as without
    --extend. UserError where a run differs in more than that, or has more epochs."""
    found = []
    for spec in specs:
        path = runs / spec.name
        config = RunFolder(path).config()
        before = None if config is None else config.value("train.epochs")
        if not isinstance(before, int) or before == spec.config.train.epochs:
            continue
        train = spec.config.train.model_copy(update={"epochs": before})
        old = replace(spec, config=spec.config.model_copy(update={"train": train}))
        is_begun(path, old, digest)
        if before > spec.config.train.epochs:
            raise UserError(
                f"--extend: {printable(path)} has {before} epochs already, and "
                f"train.epochs={spec.config.train.epochs} asks for fewer. Give more, or train anew "
                "with --overwrite."
            )
        found.append(_extension(spec, path, before))
    return found


def _extension(spec: RunSpec, path: Path, before: int) -> Extension:
    result = RunFolder(path).result()
    ended = result.stopped if result else None
    if ended not in (None, "epochs"):
        return Extension(spec, path, before, "ended", ended or "")
    schedule = spec.config.schedule.name
    if schedule in _LENGTH_COUNTS:
        why = f"schedule.name={schedule} counts on the number of epochs"
    elif not (path / LAST).is_file():
        why = "no checkpoint was kept (train.keep_checkpoint=true keeps one)"
    else:
        return Extension(spec, path, before, "on")
    seconds = None
    if result and result.seconds and result.epochs_run:
        seconds = result.seconds / result.epochs_run * spec.config.train.epochs
    return Extension(spec, path, before, "anew", why, seconds)


def told(extended: Sequence[Extension]) -> list[str]:
    """What --extend does and costs, in lines."""
    lines = []
    groups: dict[tuple[object, ...], list[Extension]] = {}
    for one in extended:
        key = (one.how, one.why, one.before, one.spec.config.train.epochs)
        groups.setdefault(key, []).append(one)
    for same in groups.values():
        first, runs = same[0], count(len(same), "run")
        epochs = first.spec.config.train.epochs
        if first.how == "ended":
            lines.append(
                f"{runs} had ended before epoch {first.before} ({_ENDED[first.why]}): more epochs "
                "change nothing."
            )
        elif first.how == "on":
            lines.append(f"{runs} to go on from the checkpoint, {first.before} epochs to {epochs}.")
        else:
            known = [one.seconds for one in same if one.seconds is not None]
            cost = f", about {duration(sum(known))} if each trains alone" if known else ""
            lines.append(
                f"{runs} to start anew, as {first.why}: {epochs} epochs and not "
                f"{epochs - first.before}{cost}."
            )
    return [f"--extend: {line}" for line in lines]


_ENDED = {"early": "early stopping", "max_seconds": "train.max_seconds", "diverged": "diverged"}


def extend(extended: Iterable[Extension]) -> None:
    """Make the run folders ready: those that go on or start anew are unfinished afterwards. A kill
    in the middle loses nothing that the same command does not do again. RunError where another
    process trains one of them."""
    for one in extended:
        folder = RunFolder(one.path)
        with Lease(one.path):
            if one.how == "anew":
                folder.clear()
                continue
            if one.how == "on":
                # First: a result without its epochs would pass for complete.
                (one.path / RESULT).unlink(missing_ok=True)
            # Whole, as `extensions` has read it.
            config = json.loads((one.path / CONFIG).read_bytes())
            config["config"]["train"]["epochs"] = one.spec.config.train.epochs
            folder.write_config(config | {"command": command_line()})
