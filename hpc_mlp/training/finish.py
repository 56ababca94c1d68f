"""The end of a run: its best weights on the test split, once, and `result.json`."""

from __future__ import annotations

import io
from collections.abc import Iterable

import numpy as np
from torch import Tensor

from hpc_mlp.models.registry import build_module
from hpc_mlp.runs import PREDICTIONS, write_bytes
from hpc_mlp.training.checkpoint import Guard, load_best
from hpc_mlp.training.evaluate import evaluate
from hpc_mlp.training.feeder import Feeder
from hpc_mlp.training.members import Member


def write_result(
    member: Member,
    feeder: Feeder,
    batches: Iterable[tuple[Tensor, Tensor]],
    num_parameters: int,
    bank_size: int,
    guard: Guard,
) -> float | None:
    """→ test accuracy; None where the run diverged before its first epoch ended. `batches`: the test split's images
    and labels, looked at where there are weights to look with. `guard` is asked before each file."""
    manifest, spec, test = feeder.manifest, member.spec, None
    if member.best_epoch:
        shape = (manifest.channels, *manifest.image_size)
        module = build_module(spec.config.model, shape, len(manifest.classes), spec.seed)
        module.load_state_dict(load_best(member.folder.path))
        metrics, probabilities, labels = evaluate(module.to(feeder.device), batches, feeder.device)
        test = metrics.as_json(manifest.classes)
        buffer = io.BytesIO()
        np.savez(buffer, probabilities=probabilities, labels=labels)
        guard()
        write_bytes(member.folder.path / PREDICTIONS, buffer.getvalue())
    result = member.result(test, num_parameters, str(feeder.device), bank_size)
    guard()
    member.folder.write_result(result)
    return test["accuracy"] if test else None
