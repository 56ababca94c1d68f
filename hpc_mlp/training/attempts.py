"""Banks trained one after another: whose folders they are, and who goes on where some fail."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch

from hpc_mlp.config.plan import RunSpec
from hpc_mlp.errors import HpcMlpError, LeaseLostError, OwnCodeError, RunError
from hpc_mlp.machine import stop
from hpc_mlp.machine.command_line import command_line
from hpc_mlp.machine.processes import Processes
from hpc_mlp.runs.lease import Lease, hold_all
from hpc_mlp.terminal.output import say
from hpc_mlp.training import failure, trial
from hpc_mlp.training.banks import banks
from hpc_mlp.training.checkpoint import LeaseCheck
from hpc_mlp.training.loader import BatchLoader
from hpc_mlp.training.members import Member
from hpc_mlp.training.progress import ProgressListener
from hpc_mlp.training.setup import TrainSetup
from hpc_mlp.training.trainer import BankTrainer

# In which processes that share batches come upon the same failure.
_SAME_FAILURE_SECONDS = 20.0


def stopped(note: Callable[[str], None], *, begun: bool = False) -> int:
    """The exit code where the user or the system wants an end; how to go on is said. `begun`:
    what was to be overwritten is gone."""
    reason = stop.stop_reason() or "SIGTERM"
    command, same = command_line(), "the same command"
    if begun and "--overwrite" in command.split():
        command, same = command.replace(" --overwrite", ""), "without --overwrite it"
    note(f"stopped by {reason}; {same} goes on from here:\n  {command}")
    return stop.exit_code(reason)


def train_banks(
    setup: TrainSetup,
    todo: Sequence[RunSpec],
    loader_of: Mapping[str, BatchLoader],
    processes: Processes,
    device: torch.device,
    view: ProgressListener,
) -> int:
    """Train `todo`, one bank after another, each under its lease; → 0, or 1: some have failed, or
    belong to another now."""
    code = 0
    for specs in banks(setup, todo, loader_of, processes, device):
        members = [Member(spec, setup.folder(spec)) for spec in specs]
        try:
            with _leases(members, processes) as check_lease:
                done = _train_bank(members, loader_of[specs[0].name], processes, view, check_lease)
        # The folders are another's now: nothing may be written there.
        except LeaseLostError as error:
            view.ended(members, "lost", str(error))
            failure.tell(view, str(error))
            done = 1
        except stop.Stopped:
            view.ended(members, "stopped")
            return stopped(view.note, begun=True)
        code = max(code, done)
    return code


def _train_bank(
    members: Sequence[Member],
    loader: BatchLoader,
    processes: Processes,
    view: ProgressListener,
    check_lease: LeaseCheck,
) -> int:
    """→ 0, or 1: some have failed, which is recorded in their run folders. The others go on, from
    the bank's last checkpoint and so with the bits that they would have had without those."""
    code, waiting = 0, [list(members)]
    while waiting:
        group, cause = waiting.pop(0), None
        try:
            code = max(code, _train_group(group, loader, processes, view, check_lease))
        except LeaseLostError:
            raise
        except Exception as error:
            cause = failure.cause(error, processes)
            together = _everywhere(processes)
            # The lead writes the folders.
            if not processes.lead:
                known = isinstance(cause, HpcMlpError)
                text = failure.one_line(cause) if known else failure.full(cause)
                say(f"hpc-mlp (process {processes.rank}): {text}", err=True)
            group = [member for member in group if member.folder.result() is None]
            rest = failure.parts(group, cause) if together else []
            own = [
                m for m in group if isinstance(cause, OwnCodeError) and m.spec.name in cause.runs
            ]
            if processes.lead:
                # What failed may have failed because another process took over.
                check_lease()
                if own and together:
                    failure.report(own, cause, view)
                elif rest:
                    view.note(
                        f"{failure.one_line(cause)}: the bank goes on in {len(rest)} parts, to see "
                        "whose that is"
                    )
                else:
                    failure.report(group, cause, view)
            if not together:
                return 1
            waiting = rest + waiting
            code = code if rest and not own else 1
    return code


def _train_group(
    members: Sequence[Member],
    loader: BatchLoader,
    processes: Processes,
    view: ProgressListener,
    check_lease: LeaseCheck,
) -> int:
    """Those of them that are unfinished, each first tried alone; → 0, or 1: one has failed by
    itself, and recorded."""
    if processes.lead:
        for member in members:
            member.folder.sweep()
    waiting = [Member(m.spec, m.folder) for m in members if m.folder.result() is None]
    errors = [trial.failure(m.spec, loader.manifest, loader.device) for m in waiting]
    failed = torch.tensor([float(error is not None) for error in errors])
    # Of one that fails in one of the processes, none trains it.
    processes.sum([failed])
    for member, error, flag in zip(waiting, errors, failed.tolist(), strict=True):
        if flag and processes.lead:
            error = error or RunError("it cannot be trained in one of the processes.")
            check_lease()
            failure.report([member], error, view)
    healthy = [member for member, flag in zip(waiting, failed.tolist(), strict=True) if not flag]
    if healthy and not BankTrainer(healthy, loader, processes, view, check_lease).run():
        return 1
    return int(len(healthy) < len(waiting))


def _everywhere(processes: Processes) -> bool:
    """Whether all processes have failed at the same place, as they do where a model's code raises:
    then they can go on together. Else the others wait for this one, and only its end ends them."""
    if processes.alone:
        return True
    deadline = time.monotonic() + _SAME_FAILURE_SECONDS

    def check() -> None:
        stop.check()
        if time.monotonic() > deadline:
            raise RunError("the other processes have not failed.")

    try:
        return all(processes.meet(1, check))
    except RunError:
        return False


@contextmanager
def _leases(members: Sequence[Member], processes: Processes) -> Iterator[LeaseCheck]:
    """Hold the run folders, for one process at a time; → a check to call before writing."""
    with ExitStack() as stack:
        problem: BaseException | None = None
        leases: Sequence[Lease] = []
        try:
            if processes.lead:
                leases = stack.enter_context(
                    hold_all([Lease(member.folder.path) for member in members], check=stop.check)
                )
        except (RunError, stop.Stopped) as error:
            problem = error
        # A full disk, no permission: said here, as other processes may find none.
        except OSError as error:
            problem = RunError(f"{error.filename}: {error.strerror}.")
        if processes.any(problem is not None):
            stop.check()
            raise LeaseLostError(
                str(problem or "the lead process could not get hold of the run folders.")
            )

        def check_lease() -> None:
            for lease in leases:
                lease.check()

        yield check_lease
