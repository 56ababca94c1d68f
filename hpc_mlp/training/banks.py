"""Which process trains which runs, on which data, in which banks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from hpc_mlp.bank.bank import bank_order, is_capturable
from hpc_mlp.config.plan import RunSpec
from hpc_mlp.config.sections import DataConfig
from hpc_mlp.data.resident import free_memory
from hpc_mlp.machine.device import branch
from hpc_mlp.machine.processes import Processes
from hpc_mlp.training import trial
from hpc_mlp.training.checkpoint import data_mode, resumable_together
from hpc_mlp.training.loader import BatchLoader
from hpc_mlp.training.setup import TrainSetup


def runs_of_rank(specs: Sequence[RunSpec], processes: Processes) -> list[RunSpec]:
    """This process's part of the runs, by seed and fold: runs of equal ones share their batches."""
    first, last = processes.part(len(specs))
    return sorted(specs, key=lambda spec: (spec.seed, spec.fold or 0))[first:last]


def data_sections(setup: TrainSetup, specs: Sequence[RunSpec]) -> dict[str, DataConfig]:
    """Run's name → its data section. A run that has begun keeps the mode that `data.mode=auto`
    chose then: its order of the images depends on it, and there may be more or less memory now. New
    runs beside it join it, so that no images are loaded twice."""
    auto = [spec for spec in specs if spec.config.data.mode == "auto"]
    begun = {
        spec.name: mode for spec in auto if (mode := data_mode(setup.folder(spec).path)) is not None
    }
    joined = {spec.config.data: begun[spec.name] for spec in auto if spec.name in begun}
    sections = {spec.name: spec.config.data for spec in specs}
    for spec in auto:
        config = spec.config.data
        if (mode := begun.get(spec.name, joined.get(config))) is not None:
            # All of the memory: the images were let in before, and no other order will do.
            sections[spec.name] = config.model_copy(update={"mode": mode, "memory_fraction": 1.0})
    return sections


def banks(
    setup: TrainSetup,
    specs: Sequence[RunSpec],
    loader_of: Mapping[str, BatchLoader],
    processes: Processes,
    device: torch.device,
) -> list[list[RunSpec]]:
    """Runs that can share batches and precision, and go on from the same step, together: on a GPU
    as many as its memory holds, and those whose steps are captured apart from the others.
    `loader_of`: by run's name"""
    gpu = branch(device) == "cuda"
    groups: dict[object, list[RunSpec]] = {}
    for spec in specs:
        train = spec.config.train
        captured = gpu and processes.alone and is_capturable(spec)
        # One's own loss may break a capture off.
        alike = train.batch_size, train.precision, train.checkpoint_every, captured and train.loss
        groups.setdefault((id(loader_of[spec.name]), *alike), []).append(spec)
    ordered = [bank_order(group) for group in groups.values()]
    together = [
        [group[i] for i in part]
        for group in ordered
        for part in resumable_together([setup.folder(spec).path for spec in group])
    ]
    if not gpu:
        return together
    # Processes that share batches form the same banks.
    room = min(processes.meet(free_memory(device)))
    return [part for group in together for part in trial.fitting(group, setup.manifest, room)]
