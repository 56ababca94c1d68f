"""What functions of the user's own have spoilt: asked for before an epoch or a checkpoint is
kept."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hpc_mlp.data.own_augment import AugmentationError
from hpc_mlp.errors import OwnCodeError
from hpc_mlp.machine.processes import Processes
from hpc_mlp.training.loader import BatchLoader
from hpc_mlp.training.members import Member
from hpc_mlp.training.state import BankState


def check_finite(
    members: Sequence[Member], loader: BatchLoader, state: BankState, processes: Processes
) -> None:
    """OwnCodeError of the runs whose augmentation or loss gave what is not finite."""
    named = [(m.spec.seed, name) for m in members for name in m.spec.config.augment.custom]
    if named:
        fine = torch.tensor(False)
        flags = torch.stack([loader.broken.get(key, fine).cpu() for key in named]).float()
        processes.sum([flags])
        for key, flag in zip(named, flags.tolist(), strict=True):
            loader.broken.pop(key, None)
            if flag:
                seed, name = key
                error = AugmentationError(name, seed, "gave what is not finite.")
                raise with_runs(error, members)
    if broken := state.broken_losses():
        raise OwnCodeError(
            "train.loss gave what is not finite, where the logits were finite.", broken
        )


def with_runs(error: AugmentationError, members: Sequence[Member]) -> OwnCodeError:
    """Of those of the members that the augmentation's images went to."""
    runs = [
        member.spec.name
        for member in members
        if member.spec.seed == error.seed and error.name in member.spec.config.augment.custom
    ]
    return OwnCodeError(str(error), runs)
