"""The end of a run: its best weights on the test split, once, and `result.json`."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hpc_mlp.bank.evaluate import evaluate
from hpc_mlp.bank.own_metrics import measure
from hpc_mlp.files.atomic import write_bytes
from hpc_mlp.models.registry import build_module
from hpc_mlp.models.weights import load_weights
from hpc_mlp.runs.folder import BEST, PREDICTIONS
from hpc_mlp.training.batches import BatchLoader
from hpc_mlp.training.checkpoint import LeaseCheck, save_best
from hpc_mlp.training.members import Member


@dataclass(frozen=True)
class FinishedRun:
    """`best`: the weights of its best epoch, where they are newer than best.safetensors."""

    member: Member
    num_parameters: int
    bank_size: int
    best: dict[str, Tensor] | None


def write_result(
    run: FinishedRun,
    loader: BatchLoader,
    batches: Iterable[tuple[Tensor, Tensor]],
    check_lease: LeaseCheck,
) -> float | None:
    """→ test accuracy; None where the run diverged before its first epoch ended. `batches`: the
    test split's images and labels, looked at where there are weights to look with. `check_lease` is
    asked before each file.

    best.safetensors is written right before result.json, and then the checkpoint has done its part:
    it is removed, unless `train.keep_checkpoint`."""
    member, manifest, test = run.member, loader.manifest, None
    spec, folder = member.spec, member.folder
    if member.best_epoch:
        shape = (manifest.channels, *manifest.image_size)
        module = build_module(spec.config.model, shape, len(manifest.classes), spec.seed)
        module.load_state_dict(run.best or load_weights(folder.path / BEST))
        metrics, probabilities, labels = evaluate(module.to(loader.device), batches, loader.device)
        test = metrics.as_json(manifest.classes)
        if member.metrics:
            given = torch.from_numpy(probabilities), torch.from_numpy(labels)
            test["metrics"] = measure(member.metrics, *given, spec.name)
        buffer = io.BytesIO()
        np.savez(buffer, probabilities=probabilities, labels=labels)
        check_lease()
        write_bytes(folder.path / PREDICTIONS, buffer.getvalue())
    if run.best:
        save_best(
            folder.path, run.best, {"epoch": member.best_epoch, "name": spec.name}, check_lease
        )
    check_lease()
    folder.write_result(member.result(test, run.num_parameters, str(loader.device), run.bank_size))
    if not spec.config.train.keep_checkpoint:
        folder.drop_checkpoint()
    return test["accuracy"] if test else None
