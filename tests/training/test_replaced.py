"""Shards that somebody replaces, changes or cuts short while they are in use are noticed, whatever
size they have."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.process import command, environment, metrics, on_cpu
from support.shards import random_arrays, write_shards

from hpc_mlp.data.manifest import Manifest
from hpc_mlp.data.resident import load_resident
from hpc_mlp.data.shards import OpenShard
from hpc_mlp.data.streaming import StreamingSplit
from hpc_mlp.errors import HpcMlpError, RunError, UserError

CPU = torch.device("cpu")
NAME = "train-000001.tar"


@pytest.fixture
def dataset(tmp_path: Path) -> tuple[Path, Manifest, bytes]:
    """A dataset in three shards, and another one's second shard, of the same size."""
    images, labels = random_arrays(60)
    manifest = write_shards(
        tmp_path / "shards", {"train": (images, labels)}, shard_size=20, encoding="npy"
    )
    write_shards(
        tmp_path / "other", {"train": (images, (labels + 1) % 3)}, shard_size=20, encoding="npy"
    )
    other = (tmp_path / "other" / NAME).read_bytes()
    assert len(other) == (tmp_path / "shards" / NAME).stat().st_size
    return tmp_path / "shards", manifest, other


def replace(path: Path, other: bytes) -> None:
    """As a new conversion does."""
    path.with_name("new").write_bytes(other)
    os.replace(path.with_name("new"), path)


def replace_keeping_the_time(path: Path, other: bytes) -> None:
    """As a copy of a whole folder may."""
    before = path.stat()
    replace(path, other)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def write_over(path: Path, other: bytes) -> None:
    """As `cp` does."""
    path.write_bytes(other)
    # The clock of some file systems is coarse.
    os.utime(path, ns=(time.time_ns(), time.time_ns()))


WAYS = [replace, replace_keeping_the_time, write_over]
Way = Callable[[Path, bytes], None]


@pytest.mark.parametrize("way", WAYS)
def test_streaming_notices_in_the_next_pass(
    dataset: tuple[Path, Manifest, bytes], way: Way
) -> None:
    folder, manifest, other = dataset
    stream = StreamingSplit(folder, manifest, "train", device=CPU)
    for epoch in range(2):
        list(stream.epoch(seed=0, epoch=epoch, batch_size=8))
    way(folder / NAME, other)
    with pytest.raises(RunError, match=rf"{NAME} was changed while it was in use"):
        list(stream.epoch(seed=0, epoch=2, batch_size=8))


def test_streaming_goes_on_with_a_copy(dataset: tuple[Path, Manifest, bytes]) -> None:
    folder, manifest, _ = dataset
    stream = StreamingSplit(folder, manifest, "train", device=CPU)
    before = [batch.labels for batch in stream.in_order(8)]
    replace(folder / NAME, (folder / NAME).read_bytes())
    assert all(torch.equal(a, b.labels) for a, b in zip(before, stream.in_order(8), strict=True))


@pytest.mark.parametrize("cut", [False, True])
def test_a_shard_changed_under_the_reader(
    dataset: tuple[Path, Manifest, bytes], cut: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its opening and its last image: an error, of a shard cut short too, and never a
    signal."""
    folder, manifest, other = dataset
    plain, done = OpenShard.image, False

    def image(shard: OpenShard, row: int, manifest: Manifest) -> object:
        nonlocal done
        if not done and row == 10:
            done = True
            write_over(folder / "train-000000.tar", other[:2048] if cut else other)
        return plain(shard, row, manifest)

    monkeypatch.setattr(OpenShard, "image", image)
    with pytest.raises(RunError, match=r"train-000000\.tar was changed"):
        list(StreamingSplit(folder, manifest, "train", device=CPU).in_order(8))
    write_over(
        folder / "train-000000.tar", (folder.parent / "other" / "train-000002.tar").read_bytes()
    )
    with pytest.raises(UserError, match=r"train-000000\.tar is damaged"):
        load_resident(folder, manifest, "train", CPU, cache=False)


@pytest.mark.parametrize("way", WAYS)
def test_a_cache_is_not_used_for_other_shards(
    dataset: tuple[Path, Manifest, bytes], way: Way
) -> None:
    folder, manifest, other = dataset
    before = load_resident(folder, manifest, "train", CPU)
    own = (folder / NAME).read_bytes()
    way(folder / NAME, other)
    with pytest.raises(UserError, match=rf"{NAME} is damaged"):
        load_resident(folder, manifest, "train", CPU)
    way(folder / NAME, own)
    assert torch.equal(load_resident(folder, manifest, "train", CPU).labels, before.labels)


def test_something_else_in_a_shards_place(dataset: tuple[Path, Manifest, bytes]) -> None:
    folder, manifest, _ = dataset
    path = folder / NAME
    others: list[Callable[[], None]]
    others = [path.mkdir, lambda: os.mkfifo(path), lambda: path.symlink_to(path)]
    for make in others:
        path.unlink(missing_ok=True)
        make()
        for read in (
            lambda: list(StreamingSplit(folder, manifest, "train", device=CPU).in_order(8)),
            lambda: load_resident(folder, manifest, "train", CPU, cache=False),
        ):
            with pytest.raises(HpcMlpError, match=NAME):
                read()
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_training_on_shards_converted_anew_fails_in_the_next_epoch(
    digits: Path, tmp_path: Path
) -> None:
    shards, other, runs = tmp_path / "shards", tmp_path / "other", tmp_path / "runs"
    shutil.copytree(digits, shards, ignore=shutil.ignore_patterns(".cache"))
    manifest = Manifest.load(shards)
    with np.load(_npz(shards, manifest, tmp_path)) as arrays:
        splits = {
            name: (arrays[f"{name}-x"], (arrays[f"{name}-y"] + 1) % 10) for name in manifest.splits
        }
    write_shards(other, splits, classes=10, shard_size=10**6)
    training = subprocess.Popen(
        command(
            "train",
            shards,
            "--runs",
            runs,
            *on_cpu(
                "baseline",
                "train.epochs=100000",
                "train.patience=100000",
                "model.hidden=[8]",
                "data.mode=streaming",
            ),
            "--processes",
            1,
        ),
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    run = runs / "baseline-s0"
    while not (run / "metrics.jsonl").exists():
        assert training.poll() is None
        time.sleep(0.05)
    for path in other.glob("*.tar"):
        os.replace(path, shards / path.name)
    replaced = len(metrics(run))
    _, said = training.communicate(timeout=120)
    assert training.returncode == 1 and "was changed while it was in use" in said
    # One epoch may have been under way, one finished in between.
    assert len(metrics(run)) <= replaced + 2
    assert "was changed" in json.loads((run / "failed.json").read_text())["error"]


def _npz(shards: Path, manifest: Manifest, folder: Path) -> Path:
    arrays: dict[str, Any] = {}
    for name in manifest.splits:
        split = load_resident(shards, manifest, name, CPU, cache=False)
        arrays |= {
            f"{name}-x": split.images.permute(0, 2, 3, 1).numpy(),
            f"{name}-y": split.labels.numpy(),
        }
    np.savez(folder / "arrays.npz", **arrays)
    return folder / "arrays.npz"
