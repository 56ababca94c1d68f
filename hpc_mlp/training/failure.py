"""What becomes of a failure: whose it is, and where it is written down."""

from __future__ import annotations

import traceback
from collections.abc import Sequence

import torch

from hpc_mlp.bank.bank import stack_key
from hpc_mlp.bank.parts import slices_of_equal
from hpc_mlp.errors import HpcMlpError, OwnCodeError, RunError
from hpc_mlp.machine import ranks, stop
from hpc_mlp.machine.processes import Processes
from hpc_mlp.terminal.output import say
from hpc_mlp.training.members import Member
from hpc_mlp.training.progress import ProgressListener


def parts(members: Sequence[Member], error: Exception) -> list[list[Member]]:
    """The parts that a bank goes on in after `error`, since each may be well without the others; []
    where it would not help. Models that do not stack are a part each. Where memory ran out,
    halves. Where it is code of some of them, only the others go on."""
    if isinstance(error, OwnCodeError):
        others = [member for member in members if member.spec.name not in error.runs]
        return [others] if 0 < len(others) < len(members) else []
    # Not a model's: a full disk, a lost process.
    if isinstance(error, HpcMlpError | OSError):
        return []
    keys = (stack_key(member.spec) for member in members)
    stacks = [list(members[part]) for _, part in slices_of_equal(keys)]
    if len(stacks) > 1:
        return stacks
    half = len(members) // 2
    return [list(members[:half]), list(members[half:])] if half and _out_of_memory(error) else []


def _out_of_memory(error: Exception) -> bool:
    # For the CPU, torch raises a RuntimeError: "[enforce fail at alloc_cpu.cpp:…] …
    # DefaultCPUAllocator: can't …"
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(
        error
    )


def report(members: Sequence[Member], error: Exception, view: ProgressListener) -> None:
    """Write the failure down in the folders of `members` without a result, and tell of it."""
    where = _record(members, error)
    view.ended(members, "failed", one_line(error))
    names = f"{members[0].spec.name} " if len(members) == 1 else ""
    tell(view, f"{names}failed: {one_line(error)}; {where}")


def tell(view: ProgressListener, text: str) -> None:
    """Of a process that shows nothing, too."""
    view.note(text)
    if rank := ranks.rank():
        say(f"hpc-mlp (process {rank}): {text}", err=True)


def cause(error: Exception, processes: Processes) -> Exception:
    """Of several processes, what failed in one may have failed because another has left or died;
    within code of the user's own, memory may have run out."""
    within = error.__cause__
    if isinstance(error, OwnCodeError) and isinstance(within, Exception) and _out_of_memory(within):
        error = within
    if processes.alone:
        return error
    try:
        stop.check()
        processes.check()
    except RunError as lost:
        return lost
    return error


def _record(members: Sequence[Member], error: Exception) -> str:
    """→ where the traceback is"""
    try:
        for member in members:
            if member.folder.result() is None:
                member.folder.write_failed(one_line(error), full(error))
    # It may be the disk that has failed.
    except (OSError, RunError) as problem:
        told = "" if isinstance(error, OSError | HpcMlpError) else full(error)
        return f"failed.json could not be written: {one_line(problem)}\n{told}".rstrip()
    return f"the traceback is in {members[0].folder.path}/failed.json"


def full(error: Exception) -> str:
    return "".join(traceback.format_exception(error))


def one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, HpcMlpError) else f"{type(error).__name__}: {text}"
