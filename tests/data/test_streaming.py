"""Streaming: every image exactly once, the same batches for any number of processes and workers."""

from __future__ import annotations

import functools
import gc
import itertools
import json
import shutil
import threading
import time
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.process import Cli, metrics, on_cpu
from support.shards import Arrays, random_arrays, write_shards

from hpc_mlp.config.sections import DataConfig
from hpc_mlp.data import resident
from hpc_mlp.data.manifest import Manifest, resident_bytes
from hpc_mlp.data.remote import load_manifest
from hpc_mlp.data.resident import choose_mode, load_resident
from hpc_mlp.data.shard_order import epoch_order
from hpc_mlp.data.shards import OpenShard
from hpc_mlp.data.streaming import Batch, StreamingSplit
from hpc_mlp.errors import RunError, UserError
from hpc_mlp.machine.processes import Processes

CPU = torch.device("cpu")
SIZES = {"train": 53, "val": 7, "test": 1}


def numbered(count: int) -> Arrays:
    """Images whose first pixel is their row."""
    images, labels = random_arrays(count, size=2)
    images[:, 0, 0, 0] = np.arange(count)
    return images, labels


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[Path, Manifest]]:
    """The same images in shards of 1, 5, 20 and 100."""
    made = {}
    for shard_size in (1, 5, 20, 100):
        folder = tmp_path_factory.mktemp("shards")
        splits = {name: numbered(count) for name, count in SIZES.items()}
        made[shard_size] = folder, write_shards(folder, splits, shard_size=shard_size)
    return made


def open_split(
    folder: tuple[Path, Manifest], split: str = "train", **options: Any
) -> StreamingSplit:
    return StreamingSplit(*folder, split, device=CPU, **options)


def rows(batch: Batch) -> list[int]:
    return batch.images[:, 0, 0, 0].tolist()


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_every_image_exactly_once(
    folders: dict[int, tuple[Path, Manifest]], data: st.DataObject
) -> None:
    """For any shards, split, workers, processes, batch size and buffer; and batches do not depend
    on workers or processes."""
    folder = folders[data.draw(st.sampled_from(sorted(folders)), "shard size")]
    split = data.draw(st.sampled_from(sorted(SIZES)), "split")
    batch_size = data.draw(st.integers(1, 60), "batch size")
    world = data.draw(st.integers(1, 5), "processes")
    workers = data.draw(st.integers(0, 4), "workers")
    buffer = data.draw(st.sampled_from([1, 2, 7, 30, 53, 1000]), "buffer")
    seed, epoch = data.draw(st.integers(0, 2**32)), data.draw(st.integers(0, 100))
    shuffled = data.draw(st.booleans(), "shuffled")

    def passes(world_size: int, workers: int, start: int = 0) -> list[list[Batch]]:
        stream = open_split(folder, split, workers=workers, shuffle_buffer=buffer)
        if not shuffled:
            return [
                list(stream.in_order(batch_size, Processes(rank, world_size)))[start:]
                for rank in range(world_size)
            ]
        return [
            list(stream.epoch(seed, epoch, batch_size, start, Processes(rank, world_size)))
            for rank in range(world_size)
        ]

    ranks = passes(world, workers)
    steps = -(-SIZES[split] // batch_size)
    assert [len(batches) for batches in ranks] == [steps] * world
    together = []
    for step, parts in enumerate(zip(*ranks, strict=True)):
        seen = [row for part in parts for row in rows(part)]
        assert all(part.step == step for part in parts)
        assert [part.first for part in parts] == [
            seen.index(r[0]) if (r := rows(part)) else part.first for part in parts
        ]
        expected = [len(part) for part in torch.tensor_split(torch.arange(len(seen)), world)]
        assert [len(part.labels) for part in parts] == expected
        together.append(seen)
    everything = list(itertools.chain(*together))
    assert sorted(everything) == list(range(SIZES[split]))
    assert shuffled or everything == list(range(SIZES[split]))
    images, labels = numbered(SIZES[split])
    for batches in ranks:
        for batch in batches:
            assert np.array_equal(batch.images.numpy(), images[rows(batch)].transpose(0, 3, 1, 2))
            assert np.array_equal(batch.labels.numpy(), labels[rows(batch)])
    assert [rows(batch) for batch in passes(1, 2)[0]] == together
    start = data.draw(st.integers(0, steps), "start")
    assert [rows(batch) for batch in passes(1, workers, start)[0]] == together[start:]


def test_parts_are_those_of_tensor_split() -> None:
    for size in range(20):
        for world in range(1, 7):
            pieces = torch.tensor_split(torch.arange(size), world)
            assert [list(range(*Processes(rank, world).part(size))) for rank in range(world)] == [
                p.tolist() for p in pieces
            ]


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    counts = [10, 0, 30, 20]
    orders = [
        tuple(epoch_order(counts, seed=seed, epoch=epoch, shuffle_buffer=buffer).tolist())
        for seed in (0, 1)
        for epoch in (0, 1, 2)
        for buffer in (8, 1000)
    ]
    assert len(set(orders)) == len(orders)
    assert all(sorted(order) == list(range(60)) for order in orders)
    again = epoch_order(counts, seed=1, epoch=2, shuffle_buffer=1000)
    assert tuple(again.tolist()) == orders[-1]


def test_a_large_buffer_is_a_full_shuffle_and_a_small_one_keeps_few_shards_open() -> None:
    counts = [50] * 40
    places = np.stack(
        [np.argsort(epoch_order(counts, seed=0, epoch=e, shuffle_buffer=2000)) for e in range(400)]
    )
    assert (
        np.abs(places.mean(axis=0) - 999.5).max() < 5 * 577 / 20
    )  # each image anywhere: uniform, within 5 sigma
    order = epoch_order(counts, seed=0, epoch=0, shuffle_buffer=100)
    for start in range(0, 2000, 50):
        assert len(np.unique(order[start : start + 50] // 50)) <= 6
    neighbours = np.abs(np.diff(order)) == 1
    assert neighbours.mean() < 0.05


def test_a_resumed_epoch_decodes_and_opens_only_what_is_left(
    folders: dict[int, tuple[Path, Manifest]], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []
    opened: list[str] = []
    plain_image, plain_open = OpenShard.image, StreamingSplit.open

    def image(shard: OpenShard, row: int, manifest: Manifest) -> object:
        decoded.append(row)
        return plain_image(shard, row, manifest)

    def opening(split: StreamingSplit, number: int, stop: threading.Event) -> OpenShard:
        opened.append(split.shards[number].name)
        return plain_open(split, number, stop)

    monkeypatch.setattr(OpenShard, "image", image)
    monkeypatch.setattr(StreamingSplit, "open", opening)
    stream = open_split(folders[5], shuffle_buffer=5)
    list(stream.epoch(seed=3, epoch=1, batch_size=4, start=11))
    assert len(decoded) == 53 - 44
    # Of eleven.
    assert len(opened) == len(set(opened)) <= 4


def test_leaving_an_epoch_early_leaves_no_thread_and_no_open_file(
    folders: dict[int, tuple[Path, Manifest]],
) -> None:
    def descriptors() -> int:
        # What other tests have left to be collected.
        gc.collect()
        return len(list(Path("/proc/self/fd").iterdir()))

    stream = open_split(folders[1], workers=3)
    before = descriptors()
    for _ in range(3):
        batches = stream.epoch(seed=0, epoch=0, batch_size=4)
        next(batches)
        assert any(thread.name.startswith("hpc-mlp") for thread in threading.enumerate())
        batches.close()
        assert not any(thread.name.startswith("hpc-mlp") for thread in threading.enumerate())
        list(stream.in_order(10))
    assert descriptors() == before
    assert stream.wait_seconds > 0


def test_streaming_agrees_with_resident(tmp_path: Path) -> None:
    manifest = write_shards(tmp_path, {"train": random_arrays(200)}, encoding="jpeg", shard_size=30)
    resident = load_resident(tmp_path, manifest, "train", CPU)
    stream = StreamingSplit(tmp_path, manifest, "train", device=CPU)
    ordered = list(stream.in_order(32))
    assert torch.equal(torch.cat([batch.images for batch in ordered]), resident.images)
    assert torch.equal(torch.cat([batch.labels for batch in ordered]), resident.labels)
    shuffled = list(stream.epoch(seed=0, epoch=0, batch_size=32))
    assert len(stream) == len(resident)
    assert torch.equal(
        torch.cat([batch.labels for batch in shuffled]).bincount(), resident.labels.bincount()
    )
    total = sum(int(batch.images.long().sum()) for batch in shuffled)
    assert total == int(resident.images.long().sum())


def test_a_damaged_or_missing_shard_is_refused(tmp_path: Path) -> None:
    manifest = write_shards(tmp_path, {"train": random_arrays(50)}, shard_size=10)
    path = tmp_path / "train-000003.tar"
    whole = bytearray(path.read_bytes())
    whole[600] ^= 1
    path.write_bytes(whole)
    stream = StreamingSplit(tmp_path, manifest, "train", device=CPU)
    with pytest.raises(UserError, match=r"train-000003\.tar is damaged"):
        list(stream.epoch(seed=0, epoch=0, batch_size=8))
    path.unlink()
    with pytest.raises(UserError, match="missing"):
        list(stream.epoch(seed=0, epoch=0, batch_size=8))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}", folder
    httpd.shutdown()


@pytest.mark.skipif(shutil.which("curl") is None, reason="webdataset opens http with curl")
def test_shards_over_http(server: tuple[str, Path]) -> None:
    url, folder = server
    local = write_shards(folder / "set", {"train": numbered(40)}, shard_size=9)
    manifest = load_manifest(f"{url}/set/")
    assert manifest == local
    here = StreamingSplit(folder / "set", local, "train", shuffle_buffer=10, device=CPU)
    there = StreamingSplit(f"{url}/set", manifest, "train", shuffle_buffer=10, device=CPU)
    for epoch in (0, 1):
        batches = list(there.epoch(seed=5, epoch=epoch, batch_size=6))
        assert [rows(b) for b in batches] == [
            rows(b) for b in here.epoch(seed=5, epoch=epoch, batch_size=6)
        ]
        assert sorted(row for batch in batches for row in rows(batch)) == list(range(40))
    assert len(load_resident(f"{url}/set", manifest, "train", CPU)) == 40

    path = folder / "set" / "train-000002.tar"
    whole = bytearray(path.read_bytes())
    whole[600] ^= 1
    path.write_bytes(whole)
    with pytest.raises(RunError, match=r"train-000002\.tar was changed"):
        list(there.in_order(6))
    afresh = StreamingSplit(f"{url}/set", manifest, "train", device=CPU)
    with pytest.raises(UserError, match=r"train-000002\.tar is damaged"):
        list(afresh.in_order(6))
    path.write_bytes(whole[:900])
    with pytest.raises(RunError, match=r"train-000002\.tar \(900 of 20,480 bytes"):
        list(there.in_order(6))
    path.unlink()
    with pytest.raises(RunError, match=r"train-000002\.tar \(.*404"):
        list(there.in_order(6))
    with pytest.raises(UserError, match="Is it a shards folder"):
        load_manifest(f"{url}/nothing-here")
    with pytest.raises(UserError, match="Is it a shards folder"):
        load_manifest("nosuch://host/path")


def test_shards_through_a_pipe(tmp_path: Path) -> None:
    write_shards(tmp_path, {"train": numbered(20)}, shard_size=7)
    for place in (f"pipe:cat {tmp_path}", f"pipe:cat {tmp_path}/{{}} | cat"):
        stream = StreamingSplit(place, load_manifest(place), "train", device=CPU)
        assert [row for batch in stream.in_order(4) for row in rows(batch)] == list(range(20))
    hostile = json.loads((tmp_path / "manifest.json").read_bytes())
    hostile["splits"]["train"]["shards"][0]["name"] = f"x; touch {tmp_path}/owned"
    (tmp_path / "manifest.json").write_text(json.dumps(hostile))
    with pytest.raises(
        UserError, match=r"manifest\.json cannot be used \(splits\.train\.shards\.0\.name"
    ):
        load_manifest(f"pipe:cat {tmp_path}")
    assert not (tmp_path / "owned").exists()


def test_the_mode_follows_the_memory_budget(
    folders: dict[int, tuple[Path, Manifest]], monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = folders[20][1]
    size = resident_bytes(manifest)
    assert size == (53 + 7 + 1) * 12
    assert resident.free_memory(CPU) > 1e6
    assert choose_mode(manifest, DataConfig(), CPU) == "resident"
    assert choose_mode(manifest, DataConfig(mode="streaming"), CPU) == "streaming"
    monkeypatch.setattr(resident, "free_memory", lambda device: 2 * size)
    assert choose_mode(manifest, DataConfig(), CPU) == "resident"
    assert choose_mode(manifest, DataConfig(), CPU, processes=2) == "streaming"
    assert choose_mode(manifest, DataConfig(memory_fraction=0.4), CPU) == "streaming"
    assert (
        choose_mode(manifest, DataConfig(mode="resident", memory_fraction=1.0), CPU) == "resident"
    )
    huge = manifest.model_copy(update={"image_size": (10_000, 10_000)})
    with pytest.raises(UserError, match=r"take 18\.30 GB as uint8.*data\.mode=streaming"):
        choose_mode(huge, DataConfig(mode="resident"), CPU)


def test_processes_of_a_machine_share_the_budget(
    digits: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One copy fits, two do not: what a process may do depends on how many were started beside
    it."""
    size = resident_bytes(Manifest.load(digits))
    # Half of it is the budget.
    monkeypatch.setattr(resident, "free_memory", lambda device: 3 * size)
    settings = on_cpu("baseline", "model.hidden=[8]", "train.epochs=1")
    waits = {}
    for count in (1, 2):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(count))
        ran = cli("train", digits, "--runs", tmp_path / str(count), *settings)
        assert ran.exit_code == 0, ran.output
        waits[count] = metrics(tmp_path / str(count) / "baseline-s0")[0]["data_wait_seconds"]
    assert waits[1] == 0 and 0 < waits[2] < metrics(tmp_path / "2" / "baseline-s0")[0]["seconds"]
    ran = cli("train", digits, "--runs", tmp_path / "3", *settings, "--set", "data.mode=resident")
    assert ran.exit_code == 2 and "in 2 processes" in ran.output


def test_data_is_read_ahead_while_the_consumer_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = write_shards(tmp_path, {"train": random_arrays(64)})
    plain = OpenShard.image

    def slow(shard: OpenShard, row: int, manifest: Manifest) -> object:
        time.sleep(0.002)
        return plain(shard, row, manifest)

    monkeypatch.setattr(OpenShard, "image", slow)
    waits = {}
    for workers in (0, 2):
        stream = StreamingSplit(tmp_path, manifest, "train", workers=workers, device=CPU)
        for _ in stream.epoch(seed=0, epoch=0, batch_size=8):
            # A step that takes longer than two workers need for its data.
            time.sleep(0.02)
        waits[workers] = stream.wait_seconds
    assert waits[2] < 0.5 * waits[0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gets_the_same_batches(folders: dict[int, tuple[Path, Manifest]]) -> None:
    passes = []
    for device in ("cpu", "cuda"):
        stream = StreamingSplit(*folders[5], "train", device=torch.device(device))
        batches = list(stream.epoch(seed=1, epoch=0, batch_size=6))
        assert all(
            batch.images.device.type == batch.labels.device.type == device for batch in batches
        )
        passes.append([rows(batch) for batch in batches])
    assert passes[0] == passes[1]
