"""The end of a run: its best weights on the validation images, for the temperature, and on the test
split, once; `result.json`."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hpc_mlp.bank.evaluate import evaluate
from hpc_mlp.bank.own_metrics import measure
from hpc_mlp.config.plan import RunSpec
from hpc_mlp.files.atomic import write_bytes
from hpc_mlp.machine.processes import ALONE
from hpc_mlp.models.registry import build_module
from hpc_mlp.runs.calibration import calibrated, ece_of, fit_temperature
from hpc_mlp.runs.folder import HELD_OUT_PREDICTIONS, PREDICTIONS, Json
from hpc_mlp.training.best import BestWeights
from hpc_mlp.training.checkpoint import LeaseCheck
from hpc_mlp.training.loader import HELD_OUT, BatchLoader
from hpc_mlp.training.members import Member

Batches = Iterator[tuple[Tensor, Tensor]]


def write_result(
    member: Member,
    loader: BatchLoader,
    watched: Callable[[Batches], Batches],
    best: BestWeights,
    check_lease: LeaseCheck,
    *,
    num_parameters: int,
    bank_size: int,
) -> float | None:
    """→ test accuracy; None of a search's trial, and where the run diverged before its first epoch
    ended. `watched` goes through the images, and may raise. `check_lease` is asked before each
    file.

    A run of a fold is tested on what its fold holds out; where the archive brought a test split, on
    that, and what is held out is measured beside it. best.safetensors is written right before
    result.json, and then the checkpoint has done its part: it is removed, unless
    `train.keep_checkpoint`, or the member is to go on."""
    spec, folder = member.spec, member.folder
    measured: dict[str, Json] = {}
    temperature: float | None = None
    if member.best_epoch and not spec.is_trial:
        module = _best_module(member, loader, best)
        batches = watched(loader.in_order("val", ALONE, spec.fold))
        known = evaluate(module, batches, loader.device)
        temperature = fit_temperature(known.logits, known.labels)
        for key, split, name in _tests(spec, loader):
            batches = watched(loader.in_order(split, ALONE, spec.fold))
            measured[key], arrays = _measured(member, loader, module, batches, temperature)
            if split == HELD_OUT and loader.folds is not None and spec.fold is not None:
                arrays["rows"] = loader.folds[spec.fold].held_out
            check_lease()
            write_bytes(folder.path / name, _npz(arrays))
    best.save(member)
    check_lease()
    device = str(loader.device)
    folder.write_result(member.result(measured, num_parameters, device, bank_size, temperature))
    if not (spec.config.train.keep_checkpoint or member.paused):
        folder.drop_checkpoint()
    return measured["test"]["accuracy"] if measured else None


def _npz(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def _tests(spec: RunSpec, loader: BatchLoader) -> list[tuple[str, str, str]]:
    """Key in result.json, images, file of predictions."""
    if spec.fold is None:
        return [("test", "test", PREDICTIONS)]
    if "test" not in loader.given:
        return [("test", HELD_OUT, PREDICTIONS)]
    return [("test", "test", PREDICTIONS), (HELD_OUT, HELD_OUT, HELD_OUT_PREDICTIONS)]


def _best_module(member: Member, loader: BatchLoader, best: BestWeights) -> nn.Module:
    manifest, spec = loader.manifest, member.spec
    shape = (manifest.channels, *manifest.image_size)
    module = build_module(spec.config.model, shape, len(manifest.classes), spec.seed)
    module.load_state_dict(best.of(member))
    return module.to(loader.device)


def _measured(
    member: Member,
    loader: BatchLoader,
    module: nn.Module,
    batches: Batches,
    temperature: float | None,
) -> tuple[Json, dict[str, NDArray[Any]]]:
    """Metrics as result.json has them, and what the file of predictions holds."""
    metrics, logits, probabilities, labels = evaluate(module, batches, loader.device)
    found = metrics.as_json(loader.manifest.classes)
    found["ece"] = ece_of(probabilities, labels)
    if temperature is not None:
        found |= calibrated(logits, labels, temperature)
    if member.metrics:
        given = torch.from_numpy(probabilities), torch.from_numpy(labels)
        found["metrics"] = measure(member.metrics, *given, member.spec.name)
    return found, {"probabilities": probabilities, "labels": labels}
