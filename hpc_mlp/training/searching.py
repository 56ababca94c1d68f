"""A search within one call of training: rung after rung, then the winners' runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hpc_mlp.config.plan import RunSpec, TrainOptions
from hpc_mlp.errors import RunError, UserError
from hpc_mlp.machine.processes import Processes
from hpc_mlp.runs.brackets import (
    EXTENDED_SEARCH,
    check_begun,
    next_runs,
    reopen,
    stand,
    write_records,
)
from hpc_mlp.runs.folder import is_complete
from hpc_mlp.runs.lease import Lease
from hpc_mlp.terminal.console import Console
from hpc_mlp.terminal.text import count, one_of
from hpc_mlp.training.setup import TrainSetup


def has_search(setup: TrainSetup) -> bool:
    return any(spec.search for spec in setup.specs)


def begin_search(setup: TrainSetup, options: TrainOptions, world: Processes) -> list[RunSpec]:
    """All trials. With --overwrite they begin anew, as does what was trained with their winners.
    UserError where a folder holds another run."""
    trials = [spec for spec in setup.specs if spec.is_trial]
    if options.extend:
        raise UserError(EXTENDED_SEARCH)
    if not options.overwrite:
        check_begun(setup.specs, setup.runs, setup.manifest.digest)
        return trials
    world.wait()
    for spec in setup.specs if world.lead else ():
        setup.folder(spec).clear()
    world.wait()
    return trials


def run_search(
    setup: TrainSetup,
    world: Processes,
    console: Console | None,
    train: Callable[[Sequence[RunSpec]], int],
) -> int:
    """→ exit code. `train` trains runs, in all processes, up to their `until`. Between two calls
    each process reads from disk what is next; a run that failed ends the search here, and the same
    command tries it again."""
    while True:
        try:
            todo, note = next_runs(setup.specs, setup.runs, setup.manifest.digest)
        except RunError:
            if world.lead:
                write_records(stand(setup.specs, setup.runs), setup.runs)
            raise
        # Nobody writes before everybody has read.
        world.wait()
        anew = _anew_note(setup, todo) if world.lead else ""
        if world.lead:
            _settle(setup, todo)
            if console is not None and note:
                console.print(note, style="dim")
            if console is not None and anew:
                console.print(anew, style="dim")
        world.wait()
        if not todo:
            return 0
        if code := train(todo):
            return code


def _anew_note(setup: TrainSetup, todo: Sequence[RunSpec]) -> str:
    """What a trial costs that was halved and has lost its checkpoint."""
    folders = [setup.folder(spec) for spec in todo if spec.is_trial]
    halved = [one for one in folders if (result := one.result()) and result.status == "halved"]
    lost = [one for one in halved if not any(path.exists() for path in one.checkpoints())]
    if not lost:
        return ""
    return (
        f"{len(lost)} of {count(len(halved), 'halved trial')} "
        f"{one_of(len(lost), 'has', 'have')} no checkpoint any more (hpc-mlp clean --halved?) and "
        f"{one_of(len(lost), 'begins', 'begin')} anew, with the same result."
    )


def _settle(setup: TrainSetup, todo: Sequence[RunSpec]) -> None:
    """Write what has been decided."""
    write_records(stand(setup.specs, setup.runs), setup.runs)
    for spec in todo:
        path = setup.folder(spec).path
        if spec.is_trial and is_complete(path):
            with Lease(path):
                reopen(spec, setup.runs)
