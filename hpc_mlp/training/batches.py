"""Training data as the steps of an epoch: gathered or streamed, augmented, mixed and normalised on
the device.

A step's images are a function of (seed, epoch, step) alone: any number of processes, any point of
resumption and any company in the bank give the same."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from hpc_mlp.bank.bank import BatchStream
from hpc_mlp.bank.dropout import BatchPosition
from hpc_mlp.bank.evaluate import EVAL_BATCH
from hpc_mlp.bank.step import StepBatch
from hpc_mlp.config.sections import DataConfig
from hpc_mlp.data.augment import augment, is_active
from hpc_mlp.data.manifest import Manifest
from hpc_mlp.data.own_augment import Broken
from hpc_mlp.data.remote import DatasetLocation
from hpc_mlp.data.resident import choose_mode, load_resident, normaliser
from hpc_mlp.data.streaming import StreamingSplit
from hpc_mlp.errors import UserError
from hpc_mlp.machine import stop
from hpc_mlp.machine.device import branch, send
from hpc_mlp.machine.processes import ALONE, Processes
from hpc_mlp.machine.randomness import epoch_order, mixup_shares

# Processes that split each batch stop after the same step. Where one waits for data so long after
# it was asked to stop, they will not come to it.
STOP_PATIENCE = 10.0


class BatchLoader(ABC):
    """Feeds banks. `wait_seconds`: how long training has waited for data so far."""

    mode: str

    def __init__(self, manifest: Manifest, device: torch.device) -> None:
        self.manifest, self.device = manifest, device
        self.num_images = manifest.split("train").num_images
        self.normalise = normaliser(manifest, device)
        # What augmentations of the user's own have given so far.
        self.broken: Broken = {}
        # Augmented images are floats in [0, 1] already.
        std = torch.tensor(manifest.std, dtype=torch.float64)
        self._scale = (1 / torch.where(std > 1e-7, std, 1.0)).float().to(device).view(-1, 1, 1)
        self._offset = torch.tensor(manifest.mean, device=device).view(-1, 1, 1)

    @property
    def wait_seconds(self) -> float:
        return 0.0

    @abstractmethod
    def epoch(
        self,
        streams: Sequence[BatchStream],
        epoch: int,
        start: int,
        batch_size: int,
        processes: Processes,
    ) -> Iterator[StepBatch]:
        """Steps `start`, … of an epoch (both from 0)."""

    @abstractmethod
    def in_order(self, split: str, processes: Processes) -> Iterator[tuple[Tensor, Tensor]]:
        """All images of a split once, this process's part: float32 [b, C, H, W], int64 [b]."""

    @abstractmethod
    def reference(self) -> Tensor:
        """The first training image, normalised: float32 [C, H, W]"""

    def _pixels(
        self,
        streams: Sequence[BatchStream],
        images: Tensor,
        at: BatchPosition,
        positions: slice | Tensor,
    ) -> Tensor:
        """uint8 [S, b, C, H, W] at these positions of each stream's global batch → float32,
        augmented and normalised"""
        if not any(is_active(stream.augment) for stream in streams):
            return self.normalise(images)
        # All streams at once are few launches on a GPU; a CPU's cache holds the images of one.
        same = len({stream.augment for stream in streams}) == 1
        if len(streams) > 1 and not (same and branch(self.device) == "cuda"):
            parts = zip(streams, images.unsqueeze(1), strict=True)
            return torch.cat(
                [self._pixels([stream], part, at, positions) for stream, part in parts]
            )
        seeds, given = [stream.seed for stream in streams], images.flatten(0, 1)
        pixels = augment(
            given,
            streams[0].augment,
            seeds=seeds,
            epoch=at.epoch,
            step=at.step,
            positions=positions,
            broken=self.broken,
        )
        return pixels.sub_(self._offset).mul_(self._scale).view(images.shape)


def make_loader(
    location: DatasetLocation,
    manifest: Manifest,
    config: DataConfig,
    device: torch.device,
    processes: Processes = ALONE,
    sharing: int = 1,
) -> BatchLoader:
    """Resident data where they fit the budget, else streaming (`data.mode`).

    `processes` that split batches all take the same way, since the order of the images depends on
    it. `sharing` processes, this one among them, hold a copy each in the same memory."""
    mode = choose_mode(manifest, config, device, processes=sharing)
    if not processes.any(mode == "streaming"):
        return ResidentBatchLoader(location, manifest, device)
    patience = 0.0 if processes.alone else STOP_PATIENCE
    return StreamingBatchLoader(location, manifest, config, device, patience)


def num_steps(num_images: int, batch_size: int) -> int:
    return -(-num_images // batch_size)


def _is_mixed(streams: Sequence[BatchStream]) -> bool:
    return any(stream.mixup for stream in streams)


def _mixed(
    batch: StepBatch, streams: Sequence[BatchStream], others: Tensor, partners: Tensor
) -> StepBatch:
    """With the images `others` [S, b, C, H, W] of the labels `partners` [S, b] mixed in."""
    shares = [_mixup_shares(stream, batch.position, batch.images.device) for stream in streams]
    share = torch.stack(shares)
    images = torch.lerp(others, batch.images, share[:, :, None, None, None])
    return replace(batch, images=images, partners=partners, share=share)


def _mixup_shares(stream: BatchStream, at: BatchPosition, device: torch.device) -> Tensor:
    """λ of mixup for this process's part, [b]; 1 without mixup."""
    if not stream.mixup:
        return torch.ones(at.stop - at.start, device=device)
    shares = mixup_shares(stream.seed, at.epoch, at.step, at.batch_size, stream.mixup)
    return send(torch.from_numpy(shares[at.start : at.stop]), device)


def _by_step(table: Tensor, batch_size: int) -> list[Tensor]:
    """[S, N] → [S, b] for each step: those of full batches lie together in memory."""
    cut = table.shape[1] - table.shape[1] % batch_size
    steps = table[:, :cut].view(len(table), -1, batch_size).transpose(0, 1).contiguous()
    return [*steps, table[:, cut:]]


class ResidentBatchLoader(BatchLoader):
    """Feeds banks from data that lie decoded on the device."""

    mode = "resident"

    def __init__(self, location: DatasetLocation, manifest: Manifest, device: torch.device) -> None:
        super().__init__(manifest, device)
        self.splits = {
            name: load_resident(location, manifest, name, device) for name in manifest.splits
        }

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
            [torch.from_numpy(epoch_order(s.seed, epoch, self.num_images)) for s in streams]
        ).to(self.device)
        truths = _by_step(self.splits["train"].labels[orders], batch_size)
        rows_of = _by_step(orders, batch_size)
        for step in range(start, num_steps(self.num_images, batch_size)):
            rows, truth = rows_of[step], truths[step]
            size, (first, stop) = rows.shape[1], processes.part(rows.shape[1])
            at = BatchPosition(epoch, step, first, stop, size)
            images = self._gather(streams, rows[:, first:stop], at, slice(first, stop))
            batch = StepBatch(at, images, truth[:, first:stop], full=size == batch_size)
            if _is_mixed(streams):
                # Partner of image i: the i-th from the end.
                mirrored = torch.arange(size - 1 - first, size - 1 - stop, -1)
                others = self._gather(streams, rows.flip(1)[:, first:stop], at, mirrored)
                batch = _mixed(batch, streams, others, truth.flip(1)[:, first:stop])
            yield batch

    def _gather(
        self,
        streams: Sequence[BatchStream],
        rows: Tensor,
        at: BatchPosition,
        positions: slice | Tensor,
    ) -> Tensor:
        """Images [S, b, C, H, W] of `rows` [S, b], at `positions` of each stream's global batch."""
        images = self.splits["train"].images.index_select(0, rows.flatten())
        images = images.view(*rows.shape, *images.shape[1:])
        return self._pixels(streams, images, at, positions)

    def in_order(self, split: str, processes: Processes) -> Iterator[tuple[Tensor, Tensor]]:
        data = self.splits[split]
        start, stop = processes.part(len(data))
        for first in range(start, stop, EVAL_BATCH):
            rows = slice(first, min(first + EVAL_BATCH, stop))
            yield self.normalise(data.images[rows]), data.labels[rows]

    def reference(self) -> Tensor:
        return self.normalise(self.splits["train"].images[:1])[0]


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
    ) -> None:
        super().__init__(manifest, device)
        self.splits = {
            name: StreamingSplit(
                location,
                manifest,
                name,
                workers=config.workers,
                shuffle_buffer=config.shuffle_buffer,
                device=device,
                check=lambda: stop.check(patience),
            )
            for name in manifest.splits
        }

    @property
    def wait_seconds(self) -> float:
        return sum(split.wait_seconds for split in self.splits.values())

    def epoch(
        self,
        streams: Sequence[BatchStream],
        epoch: int,
        start: int,
        batch_size: int,
        processes: Processes,
    ) -> Iterator[StepBatch]:
        mixed = _is_mixed(streams)
        if mixed and not processes.alone:
            raise UserError(
                "train.mixup with streamed, split batches: use data.mode=resident or --parallel "
                "members."
            )
        train, seeds = self.splits["train"], list(dict.fromkeys(s.seed for s in streams))
        readers = [train.epoch(seed, epoch, batch_size, start, processes) for seed in seeds]
        for parts in zip(*readers, strict=True):
            step, first, stop = parts[0].step, parts[0].first, parts[0].first + len(parts[0].labels)
            size = min(batch_size, self.num_images - step * batch_size)
            at = BatchPosition(epoch, step, first, stop, size)
            own = [parts[seeds.index(stream.seed)] for stream in streams]
            given = torch.stack([part.images for part in own])
            images = self._pixels(streams, given, at, slice(first, stop))
            labels = torch.stack([part.labels for part in own])
            batch = StepBatch(at, images, labels, full=size == batch_size)
            yield _mixed(batch, streams, images.flip(1), labels.flip(1)) if mixed else batch

    def in_order(self, split: str, processes: Processes) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self.splits[split].in_order(EVAL_BATCH, processes):
            yield self.normalise(batch.images), batch.labels

    def reference(self) -> Tensor:
        batches = self.splits["train"].in_order(1)
        try:
            return self.normalise(next(batches).images)[0]
        finally:
            batches.close()
