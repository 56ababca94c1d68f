"""From a list of runs to finished run folders: who trains what, in which process."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.state import AcceleratorState

from hpc_mlp.config.plan import RunSpec, TrainOptions, splits_batches
from hpc_mlp.config.plugins import trust
from hpc_mlp.config.registry import load_plugins
from hpc_mlp.data.folds import Folds, fold_notes, make_folds
from hpc_mlp.data.remote import DatasetLocation, load_manifest
from hpc_mlp.errors import RunError
from hpc_mlp.live.display import open_display
from hpc_mlp.machine import ranks, stop
from hpc_mlp.machine.device import branch
from hpc_mlp.machine.memory import keep_freed_memory
from hpc_mlp.machine.processes import ALONE, Processes, backend, processes_sharing
from hpc_mlp.runs.extend import extend, extensions, told
from hpc_mlp.runs.identity import complete_note
from hpc_mlp.terminal.console import Console
from hpc_mlp.terminal.output import say
from hpc_mlp.training import trial
from hpc_mlp.training.attempts import stopped, train_banks
from hpc_mlp.training.banks import data_sections, runs_of_rank
from hpc_mlp.training.batches import make_loader
from hpc_mlp.training.progress import ProgressListener, watch
from hpc_mlp.training.searching import begin_search, has_search, run_search
from hpc_mlp.training.setup import TrainSetup, check, check_folds, prepare, to_train


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
                return stopped(lambda text: None)
            with open_display(Console(stderr=True), list, options.log_format) as display:
                return stopped(display.note)


def _train_specs(
    shards: DatasetLocation, specs: Sequence[RunSpec], runs: Path, options: TrainOptions
) -> int:
    # Nothing is written before the end of this.
    with stop.interruptible():
        manifest = load_manifest(shards)
        setup = TrainSetup(shards, manifest, list(specs), runs)
        check(setup)
        accelerator = _accelerator(options.cpu)
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
        setup = replace(setup, folds=_folds(setup, todo, console))
        if not options.overwrite:
            check_folds(setup)
            data = data_sections(setup, own_runs)
        loaders = {
            c: make_loader(shards, manifest, c, device, group, per_device, setup.folds.get(c.folds))
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
            code = train_banks(setup, own_runs, loader_of, group, device, view)
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


def _accelerator(cpu: bool) -> Accelerator:
    # Several processes without a GPU: Accelerate wants to be told, or each would train alone.
    cpu = cpu or (ranks.world_size() > 1 and not torch.cuda.is_available())
    # Of the rendezvous and of a step. Where processes may be hours apart, they meet by
    # `Processes.meet`.
    patience = InitProcessGroupKwargs(backend=backend(cpu), timeout=timedelta(minutes=10))
    # Accelerate keeps its state for the whole process: a second training in it, as notebooks have,
    # would go to the device of the first one without a word.
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        return Accelerator(cpu=cpu, kwargs_handlers=[patience])
    except torch.distributed.DistError as error:
        # Without its list of addresses in torch's own code.
        reason = str(error).partition("\n")[0]
        raise RunError(
            f"process {ranks.rank()} of {ranks.world_size()} did not meet the others at "
            f"{ranks.meeting_place()}: {reason}"
        ) from error


def _folds(setup: TrainSetup, todo: Sequence[RunSpec], console: Console | None) -> dict[int, Folds]:
    """By their number; what a person should know of them is said once."""
    shards, manifest = setup.shards, setup.manifest
    sections = dict.fromkeys(spec.config.data for spec in todo)
    folds = {c.folds: make_folds(shards, manifest, c) for c in sections if c.folds > 1}
    notes = dict.fromkeys(
        line for some in folds.values() for line in fold_notes(shards, manifest, some)
    )
    for line in notes if console is not None else ():
        say(line, err=True)
    return folds
