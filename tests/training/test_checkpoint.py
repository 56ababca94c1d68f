"""Checkpoints of several runs: published together, settled after a kill, never executing code."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_mlp.errors import RunError
from hpc_mlp.models.weights import load_weights
from hpc_mlp.runs.folder import BEST, RunFolder
from hpc_mlp.training.checkpoint import (
    Checkpoint,
    finish_interrupted_save,
    load_checkpoints,
    resumable_together,
    save_checkpoints,
    save_tensors,
)


def checkpoint(epoch: int, step: int, value: float = 0.0) -> Checkpoint:
    tensors = {"model/0.weight": torch.full((2, 3), value), "loss_sum": torch.zeros(1)}
    return Checkpoint((epoch, step), {"history": [{"epoch": epoch}], "value": value}, tensors)


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / name for name in "abc"]
    for path in paths:
        path.mkdir()
    return paths


def test_what_is_saved_is_loaded(folders: list[Path]) -> None:
    assert load_checkpoints(folders) is None
    save_checkpoints(folders, [checkpoint(1, 5, float(i)) for i in range(3)])
    loaded = load_checkpoints(folders)
    assert loaded is not None
    for i, one in enumerate(loaded):
        assert one.position == (1, 5) and one.state == {
            "history": [{"epoch": 1}],
            "value": float(i),
        }
        assert torch.equal(one.tensors["model/0.weight"], torch.full((2, 3), float(i)))
    assert all([p.name for p in folder.iterdir()] == ["last.ckpt"] for folder in folders)


def test_equal_checkpoints_are_equal_files(folders: list[Path]) -> None:
    save_checkpoints(folders[:1], [checkpoint(1, 5)])
    save_checkpoints(folders[1:2], [checkpoint(1, 5)])
    assert (folders[0] / "last.ckpt").read_bytes() == (folders[1] / "last.ckpt").read_bytes()


class Crash(BaseException):
    pass


@pytest.mark.parametrize("number", range(1, 7))
@pytest.mark.parametrize("second", range(1, 7))
def test_crashes_in_a_row_never_lose_the_common_position(
    folders: list[Path], monkeypatch: pytest.MonkeyPatch, number: int, second: int
) -> None:
    """Three runs: three writes, three renames. Cut off at any of them, twice, after resuming in
    between."""
    import os

    def crash_at(n: int, position: int) -> None:
        calls, replace = 0, os.replace

        def broken(*arguments: Any) -> None:
            nonlocal calls
            calls += 1
            if calls == n:
                raise Crash
            replace(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", broken)
            with pytest.raises(Crash):
                save_checkpoints(folders, [checkpoint(position, 0)] * 3)

    save_checkpoints(folders, [checkpoint(1, 0)] * 3)
    crash_at(number, 2)
    loaded = load_checkpoints(folders)
    assert loaded is not None
    first = 1 if number <= 3 else 2
    assert {one.position for one in loaded} == {(first, 0)}
    assert resumable_together(folders) == [[0, 1, 2]]
    finish_interrupted_save(folders, (first, 0))
    assert all([p.name for p in folder.iterdir()] == ["last.ckpt"] for folder in folders)
    crash_at(second, first + 1)
    loaded = load_checkpoints(folders)
    assert loaded is not None
    assert {one.position for one in loaded} == {(first if second <= 3 else first + 1, 0)}


def test_newest_position_that_all_have(folders: list[Path]) -> None:
    save_checkpoints(folders, [checkpoint(1, 0)] * 3)
    save_checkpoints(folders[:1], [checkpoint(2, 0)])
    (folders[0] / "last.ckpt").rename(folders[0] / "last.ckpt.new")
    save_checkpoints(folders[:1], [checkpoint(1, 0)])
    assert load_checkpoints(folders) is not None


@settings(max_examples=50, deadline=None)
@given(
    positions=st.lists(
        st.none() | st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=6
    )
)
def test_runs_go_on_together_exactly_where_they_can(
    tmp_path_factory: pytest.TempPathFactory, positions: list[tuple[int, int] | None]
) -> None:
    root = tmp_path_factory.mktemp("runs")
    folders = [root / str(i) for i in range(len(positions))]
    for folder, position in zip(folders, positions, strict=True):
        folder.mkdir()
        if position:
            save_checkpoints([folder], [checkpoint(*position)])
    groups = resumable_together(folders)
    assert sorted(i for group in groups for i in group) == list(range(len(positions)))
    assert len(groups) == len(set(positions))
    for group in groups:
        assert len({positions[i] for i in group}) == 1


def test_loading_executes_nothing(folders: list[Path], tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return (Path.touch, (tmp_path / "executed",))

    for name in ("last.ckpt", "best.safetensors"):
        (folders[0] / name).write_bytes(pickle.dumps(Evil()))
        torch.save(Evil(), folders[1] / name)
    assert load_checkpoints(folders[:1]) is None and load_checkpoints(folders[1:2]) is None
    for folder in folders[:2]:
        with pytest.raises(RunError, match=r"best\.safetensors"):
            load_weights(folder / BEST)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("size", [0, 4, 30, -1])
def test_a_damaged_checkpoint_counts_as_none(folders: list[Path], size: int) -> None:
    save_checkpoints(folders, [checkpoint(1, 5)] * 3)
    path = folders[1] / "last.ckpt"
    path.write_bytes(path.read_bytes()[:size])
    assert load_checkpoints(folders) is None
    assert resumable_together(folders) == [[0, 2], [1]]


def test_best_weights(folders: list[Path]) -> None:
    weights = {"0.weight": torch.randn(3, 2).t(), "1.num_batches_tracked": torch.tensor(7)}
    save_tensors(folders[0] / BEST, weights, {"epoch": 3})
    loaded = load_weights(folders[0] / BEST)
    assert loaded.keys() == weights.keys() and all(
        torch.equal(loaded[k], weights[k]) for k in weights
    )
    with pytest.raises(RunError, match=r"best\.safetensors"):
        load_weights(folders[1] / BEST)


def test_a_full_disk_is_an_error_of_ours_and_leaves_the_old_one(
    folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import hpc_mlp.training.checkpoint as module

    save_checkpoints(folders, [checkpoint(1, 0)] * 3)

    def full(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(RunError, match="No space left"):
        save_checkpoints(folders, [checkpoint(2, 0)] * 3)
    loaded = load_checkpoints(folders)
    assert loaded is not None and loaded[0].position == (1, 0)
    assert all([p.name for p in folder.iterdir()] == ["last.ckpt"] for folder in folders)


def test_what_a_kill_left_half_written_is_swept_away(tmp_path: Path) -> None:
    """Our own temporary names and those of safetensors (".tmp" and six characters); nothing
    else."""
    for name in (".last.ckpt.k3x", ".live.json.12", ".tmp4kgRGu", "last.ckpt", ".tmp", "notes.txt"):
        (tmp_path / name).touch()
    RunFolder(tmp_path).sweep()
    assert {path.name for path in tmp_path.iterdir()} == {"last.ckpt", ".tmp", "notes.txt"}
