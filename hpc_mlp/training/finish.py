"""The end of a run: its best weights on the test split, once, and `result.json`."""

from __future__ import annotations

import io
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from hpc_mlp.bank.evaluate import evaluate
from hpc_mlp.bank.own_metrics import measure
from hpc_mlp.files.atomic import write_bytes
from hpc_mlp.models.registry import build_module
from hpc_mlp.runs.folder import PREDICTIONS
from hpc_mlp.training.batches import BatchLoader
from hpc_mlp.training.best import BestWeights
from hpc_mlp.training.checkpoint import LeaseCheck
from hpc_mlp.training.members import Member


def write_result(
    member: Member,
    loader: BatchLoader,
    batches: Iterable[tuple[Tensor, Tensor]],
    best: BestWeights,
    check_lease: LeaseCheck,
    *,
    num_parameters: int,
    bank_size: int,
) -> float | None:
    """→ test accuracy; None of a search's trial, and where the run diverged before its first epoch
    ended. `batches`: the test split's images and labels, looked at where there are weights to look
    with. `check_lease` is asked before each file.

    best.safetensors is written right before result.json, and then the checkpoint has done its part:
    it is removed, unless `train.keep_checkpoint`, or the member is to go on."""
    manifest, test, spec, folder = loader.manifest, None, member.spec, member.folder
    if member.best_epoch and not spec.is_trial:
        shape = (manifest.channels, *manifest.image_size)
        module = build_module(spec.config.model, shape, len(manifest.classes), spec.seed)
        module.load_state_dict(best.of(member))
        metrics, probabilities, labels = evaluate(module.to(loader.device), batches, loader.device)
        test = metrics.as_json(manifest.classes)
        if member.metrics:
            given = torch.from_numpy(probabilities), torch.from_numpy(labels)
            test["metrics"] = measure(member.metrics, *given, spec.name)
        buffer = io.BytesIO()
        np.savez(buffer, probabilities=probabilities, labels=labels)
        check_lease()
        write_bytes(folder.path / PREDICTIONS, buffer.getvalue())
    best.save(member)
    check_lease()
    folder.write_result(member.result(test, num_parameters, str(loader.device), bank_size))
    if not (spec.config.train.keep_checkpoint or member.paused):
        folder.drop_checkpoint()
    return test["accuracy"] if test else None
