"""The two ways to feed a bank: from data that lie decoded on the device, or from shards that are
read as they are needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing

import torch
from torch import Tensor

from hpc_mlp.bank.bank import BatchStream
from hpc_mlp.bank.dropout import BatchPosition
from hpc_mlp.bank.step import StepBatch
from hpc_mlp.config.sections import DataConfig
from hpc_mlp.data.deal import Rows
from hpc_mlp.data.folds import Folds
from hpc_mlp.data.manifest import Manifest
from hpc_mlp.data.remote import DatasetLocation
from hpc_mlp.data.resident import choose_mode, joined, load_resident
from hpc_mlp.data.streaming import StreamingSplit
from hpc_mlp.errors import UserError
from hpc_mlp.machine import stop
from hpc_mlp.machine.processes import ALONE, Processes
from hpc_mlp.machine.randomness import epoch_order
from hpc_mlp.training.loader import BatchLoader, is_mixed, mixed

# Processes that split each batch stop after the same step. Where one waits for data so long after
# it was asked to stop, they will not come to it.
STOP_PATIENCE = 10.0


def make_loader(
    location: DatasetLocation,
    manifest: Manifest,
    config: DataConfig,
    device: torch.device,
    processes: Processes = ALONE,
    sharing: int = 1,
    folds: Folds | None = None,
) -> BatchLoader:
    """Resident data where they fit the budget, else streaming (`data.mode`).

    `processes` that split batches all take the same way, since the order of the images depends on
    it. `sharing` processes, this one among them, hold a copy each in the same memory."""
    mode = choose_mode(manifest, config, device, processes=sharing)
    if not processes.any(mode == "streaming"):
        return ResidentBatchLoader(location, manifest, device, folds)
    patience = 0.0 if processes.alone else STOP_PATIENCE
    return StreamingBatchLoader(location, manifest, config, device, patience, folds)


def num_steps(num_images: int, batch_size: int) -> int:
    return -(-num_images // batch_size)


def _by_step(table: Tensor, batch_size: int) -> list[Tensor]:
    """[S, N] → [S, b] for each step: those of full batches lie together in memory."""
    cut = table.shape[1] - table.shape[1] % batch_size
    steps = table[:, :cut].view(len(table), -1, batch_size).transpose(0, 1).contiguous()
    return [*steps, table[:, cut:]]


class ResidentBatchLoader(BatchLoader):
    """Feeds banks from data that lie decoded on the device."""

    mode = "resident"

    def __init__(
        self,
        location: DatasetLocation,
        manifest: Manifest,
        device: torch.device,
        folds: Folds | None = None,
    ) -> None:
        super().__init__(manifest, device, folds)
        together = () if folds is None else folds.splits
        self.splits = {
            name: load_resident(location, manifest, name, device)
            for name in manifest.splits
            if name not in together
        }
        if together:
            host = torch.device("cpu")
            parts = [load_resident(location, manifest, name, host) for name in together]
        # What training images are taken from.
        self.source = joined(parts, device) if together else self.splits["train"]

    def epoch(
        self,
        streams: Sequence[BatchStream],
        epoch: int,
        start: int,
        batch_size: int,
        processes: Processes,
    ) -> Iterator[StepBatch]:
        # [S, N]
        orders = torch.stack(
            [torch.from_numpy(self._order(stream, epoch)) for stream in streams]
        ).to(self.device)
        truths = _by_step(self.source.labels[orders], batch_size)
        rows_of = _by_step(orders, batch_size)
        for step in range(start, num_steps(self.num_images, batch_size)):
            rows, truth = rows_of[step], truths[step]
            size, (first, stop) = rows.shape[1], processes.part(rows.shape[1])
            at = BatchPosition(epoch, step, first, stop, size)
            images = self._gather(streams, rows[:, first:stop], at, slice(first, stop))
            batch = StepBatch(at, images, truth[:, first:stop], full=size == batch_size)
            if is_mixed(streams):
                # Partner of image i: the i-th from the end.
                mirrored = torch.arange(size - 1 - first, size - 1 - stop, -1)
                others = self._gather(streams, rows.flip(1)[:, first:stop], at, mirrored)
                batch = mixed(batch, streams, others, truth.flip(1)[:, first:stop])
            yield batch

    def _order(self, stream: BatchStream, epoch: int) -> Rows:
        """Rows of `source`, int64 [num_images]"""
        if stream.fold is None or self.folds is None:
            return epoch_order(stream.seed, epoch, self.num_images)
        rows = self.folds[stream.fold].train
        return rows[epoch_order(stream.seed, epoch, len(rows))[: self.num_images]]

    def _gather(
        self,
        streams: Sequence[BatchStream],
        rows: Tensor,
        at: BatchPosition,
        positions: slice | Tensor,
    ) -> Tensor:
        """Images [S, b, C, H, W] of `rows` [S, b], at `positions` of each stream's global batch."""
        images = self.source.images.index_select(0, rows.flatten())
        images = images.view(*rows.shape, *images.shape[1:])
        return self._pixels(streams, images, at, positions)

    def _stored(
        self, split: str, rows: Rows | None, batch_size: int, processes: Processes
    ) -> Iterator[tuple[Tensor, Tensor, int]]:
        data = self.source if rows is not None else self.splits[split]
        chosen = None if rows is None else torch.from_numpy(rows).to(self.device)
        start, stop = processes.part(len(data) if rows is None else len(rows))
        for first in range(start, stop, batch_size):
            part = slice(first, min(first + batch_size, stop))
            if chosen is None:
                yield data.images[part], data.labels[part], first
            else:
                yield *data.gather(chosen[part]), first

    def _first_image(self) -> Tensor:
        return self.source.images[0]


class StreamingBatchLoader(BatchLoader):
    """Feeds banks from shards that are read as they are needed, once for every seed in the bank.

    `patience`: asked to stop, it waits for data so many seconds longer before it raises Stopped."""

    mode = "streaming"

    def __init__(
        self,
        location: DatasetLocation,
        manifest: Manifest,
        config: DataConfig,
        device: torch.device,
        patience: float = 0.0,
        folds: Folds | None = None,
    ) -> None:
        super().__init__(manifest, device, folds)
        together = () if folds is None else folds.splits

        def reader(names: Sequence[str]) -> StreamingSplit:
            return StreamingSplit(
                location,
                manifest,
                names,
                workers=config.workers,
                shuffle_buffer=config.shuffle_buffer,
                device=device,
                check=lambda: stop.check(patience),
            )

        self.splits = {name: reader([name]) for name in manifest.splits if name not in together}
        # What training images are taken from.
        self.source = reader(together) if together else self.splits["train"]
        self._reference: Tensor | None = None

    @property
    def wait_seconds(self) -> float:
        return sum(split.wait_seconds for split in {*self.splits.values(), self.source})

    def epoch(
        self,
        streams: Sequence[BatchStream],
        epoch: int,
        start: int,
        batch_size: int,
        processes: Processes,
    ) -> Iterator[StepBatch]:
        if is_mixed(streams) and not processes.alone:
            raise UserError(
                "train.mixup with streamed, split batches: use data.mode=resident or --parallel "
                "members."
            )
        # Streams that differ in augmentation alone read the same images.
        keys = list(dict.fromkeys((stream.seed, stream.fold) for stream in streams))
        readers = [
            self.source.epoch(
                seed,
                epoch,
                batch_size,
                start,
                processes,
                rows=self._rows("train", fold),
                most=self.num_images,
            )
            for seed, fold in keys
        ]
        for parts in zip(*readers, strict=True):
            step, first, stop = parts[0].step, parts[0].first, parts[0].first + len(parts[0].labels)
            size = min(batch_size, self.num_images - step * batch_size)
            at = BatchPosition(epoch, step, first, stop, size)
            own = [parts[keys.index((stream.seed, stream.fold))] for stream in streams]
            given = torch.stack([part.images for part in own])
            images = self._pixels(streams, given, at, slice(first, stop))
            labels = torch.stack([part.labels for part in own])
            batch = StepBatch(at, images, labels, full=size == batch_size)
            mixing = is_mixed(streams)
            yield mixed(batch, streams, images.flip(1), labels.flip(1)) if mixing else batch

    def _stored(
        self, split: str, rows: Rows | None, batch_size: int, processes: Processes
    ) -> Iterator[tuple[Tensor, Tensor, int]]:
        data = self.splits[split] if rows is None else self.source
        for batch in data.in_order(batch_size, processes, rows):
            yield batch.images, batch.labels, batch.step * batch_size + batch.first

    def _first_image(self) -> Tensor:
        if self._reference is None:
            with closing(self.source.in_order(1)) as batches:
                self._reference = next(batches).images[0]
        return self._reference
