"""Data larger than memory: batches read from the shards as they are needed, by threads, ahead of
time.

The order of an epoch is computed, not drawn from a stream: the number of images of every shard is
known, so that the whole order is a function of (seed, epoch, shuffle buffer) before a byte is read.
Global batch s is rows s·B … (s+1)·B of that order for any number of processes and workers; each
process decodes its part of every batch and nothing else. Hence all processes take the same number
of steps, every image comes exactly once an epoch, and a resumed epoch starts at its first missing
batch without touching what came before.

The order is that of `data.shard_order`. Only the shards of the current window (and the next shard)
are open. A shard at a URL is on disk only as long, and every process downloads it: for many
processes on a machine, copy the shards there first."""

from __future__ import annotations

import threading
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpc_mlp.data.manifest import Manifest
from hpc_mlp.data.remote import DatasetLocation
from hpc_mlp.data.shard_order import epoch_order
from hpc_mlp.data.shards import Known, OpenShard, blocks, check_sizes, open_shard
from hpc_mlp.errors import UserError
from hpc_mlp.machine.memory import free_machine_memory
from hpc_mlp.machine.processes import ALONE, Processes

Rows = NDArray[np.int64]

_IMAGES_PER_TASK = 64
# Per worker.
_IMAGES_AHEAD = 256
_SHARDS_AHEAD = 1
_CHECK_SECONDS = 0.2
# An image's in the order of an epoch, at its peak.
_ORDER_BYTES = 32


@dataclass(frozen=True)
class Batch:
    """This process's part of global batch `step`: uint8 [b, C, H, W] and int64 [b], on the device.

    The parts are those of `torch.tensor_split`, so b may be 0. `first` is the place of the part's
    first image in the global batch."""

    images: Tensor
    labels: Tensor
    step: int
    first: int


class StreamingSplit:
    """A split of a shards folder or URL, or several as one, as batches.

    Each shard's sha256 is compared with the manifest's when it is first opened, and again where its
    file is no longer the same (a shard at a URL: whenever it is downloaded). workers: threads that
    decode; with 0 nothing is read ahead. check: called now and then while data are waited for,
    which may take minutes; it may raise. wait_seconds: how long the consumer has waited for data so
    far, in all epochs."""

    def __init__(
        self,
        location: DatasetLocation,
        manifest: Manifest,
        split: str | Sequence[str],
        *,
        workers: int = 2,
        shuffle_buffer: int = 4096,
        device: torch.device,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.wait_seconds = 0.0
        self.workers, self.manifest, self.check = workers, manifest, check
        names = [split] if isinstance(split, str) else split
        self.shards = [shard for name in names for shard in manifest.split(name).shards]
        self.starts = np.concatenate(
            ([0], np.cumsum([shard.num_images for shard in self.shards], dtype=np.int64))
        )
        self._place, self._device, self._shuffle_buffer = location, device, shuffle_buffer
        # Of shards that were open before: 24 bytes an image.
        self._known: dict[int, Known] = {}
        check_sizes(location, self.shards)
        if len(self) * _ORDER_BYTES > free_machine_memory():
            raise UserError(f"the order of {len(self):,} images does not fit into memory.")

    def __len__(self) -> int:
        return int(self.starts[-1])

    def epoch(
        self,
        seed: int,
        epoch: int,
        batch_size: int,
        start: int = 0,
        processes: Processes = ALONE,
        *,
        rows: Rows | None = None,
        most: int | None = None,
    ) -> Generator[Batch]:
        """The batches from step `start` on, shuffled: of all images, or those of `rows`, of which
        the epoch has `most`. `batch_size` is that of all processes together; their number of
        batches is the same, and the last one may be smaller.

        UserError where a shard is missing or damaged, RunError where a URL cannot be read."""
        counts = np.diff(self.starts)
        if rows is not None:
            counts = np.bincount(self.shard_of(rows), minlength=len(self.shards))
        order = epoch_order(
            counts.tolist(), seed=seed, epoch=epoch, shuffle_buffer=self._shuffle_buffer
        )
        order = (order if rows is None else rows[order])[:most]
        return self._batches(order, batch_size, start, processes)

    def in_order(
        self, batch_size: int, processes: Processes = ALONE, rows: Rows | None = None
    ) -> Generator[Batch]:
        """All images, or those of `rows`, in this order: for validation and test."""
        rows = np.arange(len(self)) if rows is None else rows
        return self._batches(rows, batch_size, 0, processes)

    def shard_of(self, rows: Rows) -> Rows:
        """The shard of each row."""
        return np.searchsorted(self.starts, rows, side="right") - 1

    def open(self, number: int, stop: threading.Event) -> OpenShard:
        """Open a shard; it is verified and indexed once, as long as the file is the same."""
        shard = open_shard(
            self._place,
            self.shards[number],
            len(self.manifest.classes),
            verify=True,
            known=self._known.get(number),
            stop=stop,
        )
        self._known[number] = shard.known
        return shard

    def empty(self, size: int) -> tuple[Tensor, Tensor]:
        """Room for a part on the host, pinned where the device is CUDA."""
        pin = self._device.type == "cuda"
        shape = (size, self.manifest.channels, *self.manifest.image_size)
        return (
            torch.empty(shape, dtype=torch.uint8, pin_memory=pin),
            torch.empty(size, dtype=torch.int64, pin_memory=pin),
        )

    def _batches(
        self, order: Rows, batch_size: int, start: int, processes: Processes
    ) -> Generator[Batch]:
        parts = []
        for step, (begin, end) in enumerate(blocks(len(order), batch_size)[start:], start):
            first, stop = processes.part(end - begin)
            parts.append(_Part(step, first, order[begin + first : begin + stop]))
        reader = _Reader(self, parts)
        try:
            for part in parts:
                began = time.perf_counter()
                images, labels = reader.take()
                self.wait_seconds += time.perf_counter() - began
                yield Batch(
                    images.to(self._device, non_blocking=True),
                    labels.to(self._device, non_blocking=True),
                    part.step,
                    part.first,
                )
        finally:
            reader.close()


@dataclass(frozen=True)
class _Part:
    """Rows of one process in one global batch."""

    step: int
    first: int
    rows: Rows


@dataclass(frozen=True)
class _Pending:
    images: Tensor
    labels: Tensor
    tasks: list[Future[None]]


class _Reader:
    """Reads the parts of one pass in order, ahead of the consumer; opens and closes shards."""

    def __init__(self, split: StreamingSplit, parts: list[_Part]) -> None:
        self._split, self._parts = split, parts
        self._stop = threading.Event()
        self._decoders = ThreadPoolExecutor(max(1, split.workers), "hpc-mlp-decode")
        self._openers = ThreadPoolExecutor(_SHARDS_AHEAD, "hpc-mlp-open")
        self._open: dict[int, Future[OpenShard]] = {}
        self._pending: deque[_Pending] = deque()
        self._submitted = self._taken = self._images_ahead = 0

        rows = np.concatenate([np.empty(0, np.int64), *(part.rows for part in parts)])
        users = np.repeat(np.arange(len(parts)), [len(part.rows) for part in parts])
        shards, firsts = np.unique(split.shard_of(rows), return_index=True)
        sequence = np.argsort(firsts)
        self._first_use = users[firsts[sequence]].tolist()
        # Shards in the order in which they are needed.
        self._sequence = shards[sequence].tolist()
        last_use = np.zeros(len(split.shards), np.int64)
        # Of equal indices the last one stays.
        last_use[split.shard_of(rows)] = users
        self._closing: dict[int, list[int]] = {}
        for shard in self._sequence:
            self._closing.setdefault(int(last_use[shard]), []).append(shard)
        self._opened = 0

    def take(self) -> tuple[Tensor, Tensor]:
        """The next part's images and labels, waited for."""
        limit = self._split.workers * _IMAGES_AHEAD
        while self._submitted < len(self._parts) and (
            not self._pending or self._images_ahead < limit
        ):
            self._submit()
        pending = self._pending.popleft()
        self._images_ahead -= len(pending.labels)
        for task in pending.tasks:
            self._wait(task)
        for number in self._closing.get(self._taken, ()):
            with closing(self._open.pop(number).result()) as shard:
                shard.check_unchanged()
        self._taken += 1
        return pending.images, pending.labels

    def _wait(self, task: Future[None]) -> None:
        while not task.done():
            try:
                task.exception(_CHECK_SECONDS)
            except TimeoutError:
                self._split.check()
        task.result()

    def _submit(self) -> None:
        part = self._parts[self._submitted]
        self._open_until(self._submitted)
        images, labels = self._split.empty(len(part.rows))
        tasks = [
            self._decoders.submit(self._decode, part.rows[a:b], images[a:b], labels[a:b])
            for a, b in blocks(len(part.rows), _IMAGES_PER_TASK)
        ]
        self._pending.append(_Pending(images, labels, tasks))
        self._images_ahead += len(part.rows)
        self._submitted += 1

    def _open_until(self, part: int) -> None:
        """Start to open every shard that parts up to this one need, and the next after them."""
        needed = bisect_right(self._first_use, part)
        while self._opened < min(needed + _SHARDS_AHEAD, len(self._sequence)):
            shard = self._sequence[self._opened]
            self._open[shard] = self._openers.submit(self._split.open, shard, self._stop)
            self._opened += 1

    def _decode(self, rows: Rows, images: Tensor, labels: Tensor) -> None:
        pixels, classes = images.numpy(), labels.numpy()
        shards = self._split.shard_of(rows)
        opened = {number: self._open[number].result() for number in np.unique(shards).tolist()}
        for i, (row, number) in enumerate(
            zip((rows - self._split.starts[shards]).tolist(), shards.tolist(), strict=True)
        ):
            if self._stop.is_set():
                return
            shard = opened[number]
            pixels[i] = shard.image(row, self._split.manifest).transpose(2, 0, 1)
            classes[i] = shard.index.labels[row]

    def close(self) -> None:
        """Stop all threads, close all shards; also in the middle of a pass."""
        self._stop.set()
        for pool in (self._decoders, self._openers):
            pool.shutdown(cancel_futures=True)
        for future in self._open.values():
            if not future.cancelled() and future.exception() is None:
                future.result().close()
