"""`last.ckpt` and `best.safetensors`: safetensors files, so that loading never executes code.

All runs of a bank must resume from the same step. Their checkpoints are therefore published in two
phases: each is first written in full as `last.ckpt.new`, then all are renamed. Killed at any
moment, every run holds a checkpoint of the newest position that all of them have reached."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from hpc_mlp.errors import RunError
from hpc_mlp.files.atomic import replacing
from hpc_mlp.runs.folder import BEST, LAST
from hpc_mlp.terminal.text import json_text

# Raises if this process may no longer write.
LeaseCheck = Callable[[], None]
# Finished epochs, finished steps of the next one.
Position = tuple[int, int]


@dataclass(frozen=True)
class Checkpoint:
    """`tensors`: "model/…", "first/…", "second/…", "average/…", "loss_sum", and "best/…" where the
    best weights are older ones; `state`: the member's JSON state."""

    position: Position
    state: dict[str, Any]
    tensors: dict[str, Tensor]


def save_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, Any],
    check_lease: LeaseCheck = lambda: None,
) -> None:
    """Written under a name of its own, then renamed, if `check_lease` does not raise: it is asked
    at the last moment."""
    try:
        with replacing(path) as temporary:
            contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
            # One metadata key: safetensors writes several in an order that changes from call to
            # call.
            save_file(contiguous, temporary, {"hpc_mlp": json_text(metadata)})
            check_lease()
    except (OSError, SafetensorError) as error:
        raise RunError(f"cannot write {path}: {error}") from error


def save_checkpoints(
    folders: Sequence[Path],
    checkpoints: Sequence[Checkpoint],
    check_lease: LeaseCheck = lambda: None,
) -> None:
    """Publish the checkpoints of all members of a bank, all or none."""
    for folder, checkpoint in zip(folders, checkpoints, strict=True):
        metadata = {"position": checkpoint.position, "state": checkpoint.state}
        save_tensors(_new(folder), checkpoint.tensors, metadata, check_lease)
    for folder in folders:
        check_lease()
        os.replace(_new(folder), folder / LAST)


def load_checkpoints(folders: Sequence[Path]) -> list[Checkpoint] | None:
    """The members' checkpoints at the newest position that all have; None if there is none."""
    found = [_positions(folder) for folder in folders]
    common = set.intersection(*(set(paths) for paths in found))
    if not common:
        return None
    position = max(common)
    checkpoints = []
    for paths in found:
        metadata = _metadata(paths[position])
        assert metadata is not None
        tensors = load_file(paths[position])
        checkpoints.append(Checkpoint(position, metadata["state"], tensors))
    return checkpoints


def finish_interrupted_save(folders: Sequence[Path], position: Position) -> None:
    """Finish what a kill interrupted: the checkpoint of `position` becomes `last.ckpt`, and no
    other remains. Without, the next save would overwrite a `last.ckpt.new` that is the only one of
    its position."""
    for folder in folders:
        new = _new(folder)
        if _position(new) == position:
            os.replace(new, folder / LAST)
        else:
            new.unlink(missing_ok=True)


def resumable_together(folders: Sequence[Path]) -> list[list[int]]:
    """Indices of `folders` in groups that share a position, from which each can go on."""
    groups: list[tuple[set[Position | None], list[int]]] = []
    for i, folder in enumerate(folders):
        positions: set[Position | None] = set(_positions(folder)) or {None}
        indices = [i]
        for group in [group for group in groups if group[0] & positions]:
            groups.remove(group)
            positions, indices = positions | group[0], group[1] + indices
        groups.append((positions, indices))
    return sorted(sorted(indices) for _, indices in groups)


def data_mode(folder: Path) -> str | None:
    """What `data.mode=auto` chose when this run began; None if it has no checkpoint."""
    for path in (folder / LAST, _new(folder)):
        if (metadata := _metadata(path)) is not None:
            mode: str | None = metadata["state"].get("data_mode")
            return mode
    return None


def _positions(folder: Path) -> dict[Position, Path]:
    paths = (folder / LAST, _new(folder))
    return {position: path for path in paths if (position := _position(path)) is not None}


def _new(folder: Path) -> Path:
    return folder / f"{LAST}.new"


def _position(path: Path) -> Position | None:
    metadata = _metadata(path)
    return None if metadata is None else (metadata["position"][0], metadata["position"][1])


def _metadata(path: Path) -> dict[str, Any] | None:
    """None where there is no file, or one cut short by a crash of the machine."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, Any] = json.loads(file.metadata()["hpc_mlp"])
            return metadata
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None


def best_epoch(folder: Path) -> int | None:
    """The epoch of the weights in best.safetensors; None where it cannot be told."""
    metadata = _metadata(folder / BEST)
    return None if metadata is None else metadata.get("epoch")
