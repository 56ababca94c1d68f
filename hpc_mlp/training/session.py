"""From a list of runs to finished run folders: who trains what, one bank after another."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.state import AcceleratorState

from hpc_mlp.config.plan import RunSpec, TrainOptions, splits_batches
from hpc_mlp.config.plugins import trust
from hpc_mlp.config.registry import load_plugins
from hpc_mlp.data.folds import make_folds
from hpc_mlp.data.remote import DatasetLocation, load_manifest
from hpc_mlp.errors import HpcMlpError, LeaseLostError, OwnCodeError, RunError
from hpc_mlp.live.display import open_display
from hpc_mlp.machine import ranks, stop
from hpc_mlp.machine.command_line import command_line
from hpc_mlp.machine.device import branch
from hpc_mlp.machine.memory import keep_freed_memory
from hpc_mlp.machine.processes import ALONE, Processes, backend, processes_sharing
from hpc_mlp.runs.extend import extend, extensions, told
from hpc_mlp.runs.identity import complete_note
from hpc_mlp.runs.lease import Lease, hold_all
from hpc_mlp.terminal.console import Console
from hpc_mlp.terminal.output import say
from hpc_mlp.training import failure, trial
from hpc_mlp.training.banks import banks, data_sections, runs_of_rank
from hpc_mlp.training.batches import make_loader
from hpc_mlp.training.checkpoint import LeaseCheck
from hpc_mlp.training.loader import BatchLoader
from hpc_mlp.training.members import Member
from hpc_mlp.training.progress import ProgressListener, watch
from hpc_mlp.training.searching import begin_search, has_search, run_search
from hpc_mlp.training.setup import TrainSetup, check, prepare, to_train
from hpc_mlp.training.trainer import BankTrainer

# In which processes that share batches come upon the same failure.
_SAME_FAILURE_SECONDS = 20.0


def train_specs(
    shards: DatasetLocation,
    specs: Sequence[RunSpec],
    runs: Path,
    options: TrainOptions = TrainOptions(),
) -> int:
    """Train every run that is not complete; → exit code 0, 1 (a run failed) or 128 + signal
    (stopped on request).

    Under several processes (Accelerate's environment) the runs are dealt out over them, or each
    batch is split. UserError, before anything is written, where the input is wrong."""
    stop.clear()
    plugins = [plugin for spec in specs for plugin in spec.plugins]
    load_plugins(plugins)
    trust(plugins)
    keep_freed_memory()
    # Else a resumed CNN would not give the same bits.
    torch.backends.cudnn.deterministic = True
    with stop.stop_on_signals():
        try:
            return _train_specs(shards, specs, runs, options)
        except stop.Stopped:
            if ranks.rank():
                return _stopped(lambda text: None)
            with open_display(Console(stderr=True), list, options.log_format) as display:
                return _stopped(display.note)


def _train_specs(
    shards: DatasetLocation, specs: Sequence[RunSpec], runs: Path, options: TrainOptions
) -> int:
    # Nothing is written before the end of this.
    with stop.interruptible():
        manifest = load_manifest(shards)
        setup = TrainSetup(shards, manifest, list(specs), runs)
        check(setup)
        # Several processes without a GPU: Accelerate wants to be told, or each would train alone.
        cpu = options.cpu or (ranks.world_size() > 1 and not torch.cuda.is_available())
        # Of the rendezvous and of a step. Where processes may be hours apart, they meet by
        # `Processes.meet`.
        patience = InitProcessGroupKwargs(backend=backend(cpu), timeout=timedelta(minutes=10))
        # Accelerate keeps its state for the whole process: a second training in it, as notebooks
        # have, would go to the device of the first one without a word.
        AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = Accelerator(cpu=cpu, kwargs_handlers=[patience])
        device = accelerator.device
        world = Processes(accelerator.process_index, accelerator.num_processes)
        extended = extensions(setup.specs, setup.runs, manifest.digest) if options.extend else []
        searched = has_search(setup)
        if searched:
            todo = begin_search(setup, options, world)
        else:
            todo = list(setup.specs) if options.overwrite else to_train(setup, extended)
        for spec in todo:
            trial.check_memory(spec, manifest, device)
        console = Console(stderr=True) if world.lead else None
        if console is not None and not searched and len(todo) < len(setup.specs):
            done = len(setup.specs) - len(todo)
            console.print(complete_note(done, len(setup.specs)), style="dim")
        for line in told(extended) if console is not None else []:
            say(line, err=True)
        gpu = branch(device) != "cpu"
        split = splits_batches(options.parallel, todo, world.world_size, gpu=gpu)
        # Of a search any process may come to train any run.
        own_runs = setup.specs if searched else runs_of_rank(todo, ALONE if split else world)
        group, per_device = world if split else ALONE, processes_sharing(device)
        data = {spec.name: spec.config.data for spec in own_runs}
        if not options.overwrite:
            data = data_sections(setup, own_runs)
        sections = dict.fromkeys(spec.config.data for spec in todo)
        folds = {c.folds: make_folds(shards, manifest, c) for c in sections if c.folds > 1}
        setup = replace(setup, folds=folds)
        loaders = {
            c: make_loader(shards, manifest, c, device, group, per_device, folds.get(c.folds))
            for c in dict.fromkeys(data.values())
        }
        loader_of = {name: loaders[config] for name, config in data.items()}
        # Nobody has written anything until everybody has read everything.
        world.wait()
    if world.lead:
        extend(extended)

    def train_round(todo: Sequence[RunSpec], overwrite: bool = False) -> int:
        if world.lead:
            prepare(setup, todo, device, overwrite)
        world.wait()
        own_runs = runs_of_rank(todo, ALONE if split else world)
        # Where each batch is split, the lead tells for all.
        watched = bool(own_runs) and group.lead
        with (
            watch(console, options.log_format, todo, own_runs, setup.runs, device)
            if watched
            else nullcontext(ProgressListener()) as view
        ):
            code = _train(setup, own_runs, loader_of, group, device, view)
            # The others may train on for hours, and are watched meanwhile.
            return code if split else max(world.meet(code))

    if searched:
        code = run_search(setup, world, console, train_round)
    else:
        code = train_round(todo, options.overwrite)
    # Told by the first process: this one has done its part.
    if code == 1 and not split and not world.lead:
        code = 0
    accelerator.end_training()
    return code


def _stopped(note: Callable[[str], None]) -> int:
    reason = stop.stop_reason() or "SIGTERM"
    note(f"stopped by {reason}; the same command goes on from here:\n  {command_line()}")
    return stop.exit_code(reason)


def _train(
    setup: TrainSetup,
    todo: Sequence[RunSpec],
    loader_of: Mapping[str, BatchLoader],
    processes: Processes,
    device: torch.device,
    view: ProgressListener,
) -> int:
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
            return _stopped(view.note)
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
