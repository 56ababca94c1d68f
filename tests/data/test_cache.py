"""The cache of decoded splits: used when it is right, never when it is not, and never in the
way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
import torch
from support.shards import Arrays, random_arrays, write_shards

from hpc_mlp.data import resident
from hpc_mlp.data.manifest import Manifest
from hpc_mlp.data.resident import ResidentSplit, load_resident
from hpc_mlp.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture
def dataset(tmp_path: Path) -> tuple[Path, Manifest, Arrays]:
    arrays = random_arrays(40)
    manifest = write_shards(tmp_path / "shards", {"train": arrays}, shard_size=15)
    return tmp_path / "shards", manifest, arrays


def assert_right(split: ResidentSplit, arrays: Arrays) -> None:
    assert np.array_equal(split.images.numpy(), arrays[0].transpose(0, 3, 1, 2))
    assert np.array_equal(split.labels.numpy(), arrays[1])


def count_decodes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    plain = resident._decode_split

    def counting(*args: Any) -> Arrays:
        calls.append(1)
        return plain(*args)

    monkeypatch.setattr(resident, "_decode_split", counting)
    return calls


def test_the_second_load_does_not_decode(
    dataset: tuple[Path, Manifest, Arrays], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, manifest, arrays = dataset
    calls = count_decodes(monkeypatch)
    for _ in range(3):
        split = load_resident(folder, manifest, "train", CPU)
        assert_right(split, arrays)
    assert len(calls) == 1
    # Whoever changes a loaded tensor changes nobody else's.
    split.images.zero_()
    assert_right(load_resident(folder, manifest, "train", CPU), arrays)
    assert sorted(path.suffix for path in (folder / ".cache").iterdir()) == [
        ".json",
        ".lock",
        ".npy",
    ]


@pytest.mark.parametrize("victim", [".npy", ".json"])
def test_a_damaged_cache_is_not_used_and_is_made_anew(
    dataset: tuple[Path, Manifest, Arrays], victim: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, manifest, arrays = dataset
    load_resident(folder, manifest, "train", CPU)
    (path,) = (folder / ".cache").glob("*" + victim)
    whole = path.read_bytes()
    calls = count_decodes(monkeypatch)
    damages = [
        b"",
        whole[: len(whole) // 2],
        whole[:-1],
        whole + b"x" if victim == ".json" else whole[1:],
    ]
    for position in (*np.random.default_rng(1).integers(0, len(whole), 8), len(whole) - 1):
        changed = bytearray(whole)
        changed[position] ^= 0x11
        damages.append(bytes(changed))
    for damage in damages:
        path.write_bytes(damage)
        assert_right(load_resident(folder, manifest, "train", CPU), arrays)
    # Some changes are to times or spaces.
    assert len(calls) >= len(damages) - (8 if victim == ".json" else 1)
    before = len(calls)
    assert_right(load_resident(folder, manifest, "train", CPU), arrays)
    assert len(calls) == before


def test_a_hostile_cache_is_not_used(
    dataset: tuple[Path, Manifest, Arrays], tmp_path: Path
) -> None:
    """Valid JSON of another shape, labels that no class has, arrays that are none: never used,
    never run."""
    folder, manifest, arrays = dataset
    load_resident(folder, manifest, "train", CPU)
    (note,), (array,) = (folder / ".cache").glob("*.json"), (folder / ".cache").glob("*.npy")
    whole, pixels = json.loads(note.read_bytes()), array.read_bytes()
    others: list[Any] = [
        None,
        [],
        {},
        "x",
        1.5,
        10**30,
        -1,
        [10**30],
        [-1] * 40,
        [3] * 40,
        [[0]] * 40,
        True,
    ]
    notes: list[Any] = [{**whole, key: other} for key in whole for other in others]
    notes += [{k: v for k, v in whole.items() if k != key} for key in whole] + others
    for tree in notes:
        note.write_text(json.dumps(tree))
        assert_right(load_resident(folder, manifest, "train", CPU), arrays)
    labels = np.roll(np.array(whole["labels"]), 1)
    if not np.array_equal(labels, whole["labels"]):
        note.write_text(json.dumps({**whole, "labels": labels.tolist()}))
        assert_right(load_resident(folder, manifest, "train", CPU), arrays)

    class Runs:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path}/ran",)

    code = np.array([Runs()], dtype=object)
    writers: list[Callable[[IO[bytes]], None]]
    writers = [lambda file: np.save(file, code), lambda file: np.savez(file, a=np.zeros(3))]
    for write in writers:
        with array.open("wb") as file:
            write(file)
        assert_right(load_resident(folder, manifest, "train", CPU), arrays)
    for shape in (b"(4000000000000, 3, 8, 8)", b"(-1, 3, 8, 8)", b"(40, 3, 8, 8"):
        array.write_bytes(pixels.replace(b"(40, 3, 8, 8)", shape))
        assert_right(load_resident(folder, manifest, "train", CPU), arrays)
    assert not (tmp_path / "ran").exists()


def test_a_shard_damaged_after_the_cache_was_made_is_refused(
    dataset: tuple[Path, Manifest, Arrays],
) -> None:
    folder, manifest, arrays = dataset
    load_resident(folder, manifest, "train", CPU)
    path = folder / "train-000001.tar"
    whole = bytearray(path.read_bytes())
    whole[700] ^= 1
    path.write_bytes(whole)
    for _ in range(2):
        with pytest.raises(UserError, match="damaged"):
            load_resident(folder, manifest, "train", CPU)
    whole[700] ^= 1
    path.write_bytes(whole)
    assert_right(load_resident(folder, manifest, "train", CPU), arrays)
    path.unlink()
    with pytest.raises(UserError, match="missing"):
        load_resident(folder, manifest, "train", CPU)


def test_copied_or_touched_shards_are_verified_once_again(
    dataset: tuple[Path, Manifest, Arrays], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, manifest, arrays = dataset
    load_resident(folder, manifest, "train", CPU)
    for path in folder.glob("*.tar"):
        os.utime(path, (1, 1))
    calls = count_decodes(monkeypatch)
    assert_right(load_resident(folder, manifest, "train", CPU), arrays)
    (note,) = (folder / ".cache").glob("*.json")
    assert {shard[2] for shard in json.loads(note.read_bytes())["shards"]} == {1_000_000_000}
    assert not calls


def test_a_cache_that_cannot_be_written_is_done_without(
    dataset: tuple[Path, Manifest, Arrays], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder, manifest, arrays = dataset
    (folder / ".cache").write_text("a file where the cache folder should be")
    for _ in range(2):
        assert_right(load_resident(folder, manifest, "train", CPU), arrays)
    monkeypatch.setenv("HPC_MLP_CACHE", str(tmp_path / "elsewhere"))
    calls = count_decodes(monkeypatch)
    for _ in range(2):
        assert_right(load_resident(folder, manifest, "train", CPU), arrays)
    assert len(calls) == 1 and list((tmp_path / "elsewhere").glob("*.npy"))
    load_resident(folder, manifest, "train", CPU, cache=False)
    assert len(calls) == 2


LOAD = """
import sys, pathlib, torch
from hpc_mlp.data import resident
from hpc_mlp.data.manifest import Manifest
plain = resident._decode_split
def decoding(*args):
    print("decoded", flush=True)
    return plain(*args)
resident._decode_split = decoding
folder = pathlib.Path(sys.argv[1])
split = resident.load_resident(folder, Manifest.load(folder), "train", torch.device("cpu"))
print(int(split.images.long().sum()), flush=True)
"""


@pytest.mark.slow
def test_of_many_processes_started_at_once_one_decodes(
    dataset: tuple[Path, Manifest, Arrays],
) -> None:
    folder, _, arrays = dataset
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", LOAD, str(folder)], stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    printed = [job.communicate()[0].split() for job in jobs]
    assert all(words[-1] == str(arrays[0].sum(dtype=np.int64)) for words in printed)
    assert sum("decoded" in words for words in printed) == 1


def test_a_process_killed_while_it_decodes_stops_nobody(
    dataset: tuple[Path, Manifest, Arrays],
) -> None:
    folder, manifest, arrays = dataset
    stuck = LOAD.replace("return plain(*args)", "import time; time.sleep(1000)")
    job = subprocess.Popen(
        [sys.executable, "-c", stuck, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert job.stdout is not None and job.stdout.readline() == "decoded\n"
    leftover = folder / ".cache" / f".{manifest.digest}-train.npy.0123"
    leftover.write_bytes(b"half")
    job.kill()
    job.communicate()
    start = time.monotonic()
    assert_right(load_resident(folder, manifest, "train", CPU), arrays)
    assert time.monotonic() - start < 10 and not leftover.exists()


def test_a_stuck_holder_is_not_waited_for_for_ever(
    dataset: tuple[Path, Manifest, Arrays], monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    from hpc_mlp.data import cache

    folder, manifest, arrays = dataset
    (folder / ".cache").mkdir()
    plain = cache._lock
    monkeypatch.setattr(cache, "_lock", lambda path, patience: plain(path, 0.2))
    with (folder / ".cache" / f"{manifest.digest}-train.lock").open("a") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        assert_right(load_resident(folder, manifest, "train", CPU), arrays)
