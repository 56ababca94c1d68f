"""Training data as the steps of an epoch: gathered or streamed, augmented, mixed and normalised on
the device.

A step's images are a function of (seed, epoch, step) alone: any number of processes, any point of
resumption and any company in the bank give the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

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
from hpc_mlp.data.resident import ResidentSplit, choose_mode, load_resident, normaliser
from hpc_mlp.data.streaming import StreamingSplit
from hpc_mlp.errors import UserError
from hpc_mlp.machine import stop
from hpc_mlp.machine.device import branch, send
from hpc_mlp.machine.processes import Processes
from hpc_mlp.machine.randomness import epoch_order, mixup_shares

# Processes that split each batch stop after the same step. Where one waits for data so long after
# it was asked to stop, they will not come to it.
STOP_PATIENCE = 10.0


class BatchLoader(Protocol):
    """Feeds banks. `wait_seconds`: how long training has waited for data so far."""

    manifest: Manifest
    device: torch.device
    mode: str

    @property
    def num_images(self) -> int: ...

    @property
    def wait_seconds(self) -> float: ...

    @property
    def broken(self) -> Broken:
        """What augmentations of the user's own have given so far."""

    def epoch(
        self,
        streams: Sequence[BatchStream],
        epoch: int,
        start_step: int,
        batch_size: int,
        processes: Processes,
    ) -> Iterator[StepBatch]:
        """Steps `start_step`, … of an epoch (both from 0)."""

    def in_order(self, split: str, processes: Processes) -> Iterator[tuple[Tensor, Tensor]]:
        """All images of a split once, this process's part: float32 [b, C, H, W], int64 [b]."""

    def reference(self) -> Tensor:
        """The first training image, normalised: float32 [C, H, W]"""


def make_loader(
    location: DatasetLocation,
    manifest: Manifest,
    config: DataConfig,
    device: torch.device,
    processes: Processes | None = None,
    sharing: int = 1,
) -> BatchLoader:
    """Resident data where they fit the budget, else streaming (`data.mode`).

    `processes` that split batches all take the same way, since the order of the images depends on
    it. `sharing` processes, this one among them, hold a copy each in the same memory."""
    mode = choose_mode(manifest, config, device, processes=sharing)
    if not (processes or Processes()).any(mode == "streaming"):
        return ResidentBatchLoader(location, manifest, device)
    alone = processes is None or processes.alone
    return StreamingBatchLoader(
        location, manifest, config, device, patience=0.0 if alone else STOP_PATIENCE
    )


def num_steps(num_images: int, batch_size: int) -> int:
    return -(-num_images // batch_size)


class _Pixels:
    """From uint8 to what the models see."""

    def __init__(self, manifest: Manifest, device: torch.device) -> None:
        self.manifest, self.device = manifest, device
        self.normalise = normaliser(manifest, device)
        self.broken: Broken = {}
        # Augmented images are floats in [0, 1] already.
        std = torch.tensor(manifest.std, dtype=torch.float64)
        self.scale = (1 / torch.where(std > 1e-7, std, 1.0)).float().to(device).view(-1, 1, 1)
        self.offset = torch.tensor(manifest.mean, device=device).view(-1, 1, 1)

    def of(
        self,
        streams: Sequence[BatchStream],
        images: Tensor,
        epoch: int,
        step: int,
        positions: slice | Tensor,
    ) -> Tensor:
        """uint8 [S, b, C, H, W] at these positions of each stream's global batch → float32,
        augmented and normalised"""
        if not any(is_active(stream.augment) for stream in streams):
            return self.normalise(images)
        # All streams at once are few launches on a GPU; a CPU's cache holds the images of one.
        together = (
            branch(self.device) == "cuda" and len({stream.augment for stream in streams}) == 1
        )
        if len(streams) > 1 and not together:
            parts = zip(streams, images.unsqueeze(1), strict=True)
            return torch.cat(
                [self.of([stream], part, epoch, step, positions) for stream, part in parts]
            )
        seeds, given = [stream.seed for stream in streams], images.flatten(0, 1)
        pixels = augment(
            given,
            streams[0].augment,
            seeds=seeds,
            epoch=epoch,
            step=step,
            positions=positions,
            broken=self.broken,
        )
        return pixels.sub_(self.offset).mul_(self.scale).view(images.shape)


def _mixup_shares(stream: BatchStream, position: BatchPosition, device: torch.device) -> Tensor:
    """λ of mixup for this process's part, [b]; 1 without mixup."""
    if not stream.mixup:
        return torch.ones(position.stop - position.start, device=device)
    shares = mixup_shares(
        stream.seed, position.epoch, position.step, position.batch_size, stream.mixup
    )
    return send(torch.from_numpy(shares[position.start : position.stop]), device)


def _mix(images: Tensor, others: Tensor, shares: Tensor) -> Tensor:
    """[S, b, C, H, W] each, shares [S, b]"""
    return torch.lerp(others, images, shares[:, :, None, None, None])


def _by_step(table: Tensor, batch_size: int) -> list[Tensor]:
    """[S, N] → [S, b] for each step: those of full batches lie together in memory."""
    cut = table.shape[1] - table.shape[1] % batch_size
    steps = table[:, :cut].view(len(table), -1, batch_size).transpose(0, 1).contiguous()
    return [*steps, table[:, cut:]]


class ResidentBatchLoader:
    """Feeds banks from data that lie decoded on the device."""

    mode = "resident"
    wait_seconds = 0.0

    def __init__(self, location: DatasetLocation, manifest: Manifest, device: torch.device) -> None:
        self.location, self.manifest, self.device = location, manifest, device
        self.pixels = _Pixels(manifest, device)
        self.splits = {
            name: load_resident(location, manifest, name, device) for name in manifest.splits
        }

    @property
    def num_images(self) -> int:
        return len(self.splits["train"])

    @property
    def broken(self) -> Broken:
        return self.pixels.broken

    def epoch(
        self,
        streams: Sequence[BatchStream],
        epoch: int,
        start_step: int,
        batch_size: int,
        processes: Processes,
    ) -> Iterator[StepBatch]:
        train = self.splits["train"]
        orders = torch.stack(
            [torch.from_numpy(epoch_order(stream.seed, epoch, len(train))) for stream in streams]
        )
        orders = orders.to(self.device)  # [S, N]
        truths = _by_step(train.labels[orders], batch_size)
        rows_of = _by_step(orders, batch_size)
        for step in range(start_step, num_steps(len(train), batch_size)):
            rows, truth = rows_of[step], truths[step]
            start, stop = processes.part(rows.shape[1])
            position = BatchPosition(epoch, step, start, stop, rows.shape[1])
            images = self._gather(train, streams, rows[:, start:stop], position, slice(start, stop))
            partners = share = None
            # Partner of image i: the i-th from the end.
            if any(stream.mixup for stream in streams):
                mirrored = torch.arange(
                    position.batch_size - 1 - start, position.batch_size - 1 - stop, -1
                )
                others = self._gather(
                    train, streams, rows.flip(1)[:, start:stop], position, mirrored
                )
                partners = truth.flip(1)[:, start:stop]
                share = torch.stack(
                    [_mixup_shares(stream, position, self.device) for stream in streams]
                )
                images = _mix(images, others, share)
            full = position.batch_size == batch_size
            yield StepBatch(position, images, truth[:, start:stop], partners, share, full=full)

    def _gather(
        self,
        train: ResidentSplit,
        streams: Sequence[BatchStream],
        rows: Tensor,
        position: BatchPosition,
        positions: slice | Tensor,
    ) -> Tensor:
        """Images [S, b, C, H, W] of `rows` [S, b], at `positions` of each stream's global batch."""
        images = train.images.index_select(0, rows.flatten())
        images = images.view(*rows.shape, *images.shape[1:])
        return self.pixels.of(streams, images, position.epoch, position.step, positions)

    def in_order(self, split: str, processes: Processes) -> Iterator[tuple[Tensor, Tensor]]:
        data = self.splits[split]
        start, stop = processes.part(len(data))
        for first in range(start, stop, EVAL_BATCH):
            rows = slice(first, min(first + EVAL_BATCH, stop))
            yield self.pixels.normalise(data.images[rows]), data.labels[rows]

    def reference(self) -> Tensor:
        return self.pixels.normalise(self.splits["train"].images[:1])[0]


class StreamingBatchLoader:
    """Feeds banks from shards that are read as they are needed, once for every seed in the bank."""

    mode = "streaming"

    def __init__(
        self,
        location: DatasetLocation,
        manifest: Manifest,
        config: DataConfig,
        device: torch.device,
        patience: float = 0.0,
    ) -> None:
        """`patience`: asked to stop, it waits for data so many seconds longer before it raises
        Stopped."""
        self.manifest, self.device = manifest, device
        self.pixels = _Pixels(manifest, device)
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
    def num_images(self) -> int:
        return len(self.splits["train"])

    @property
    def broken(self) -> Broken:
        return self.pixels.broken

    @property
    def wait_seconds(self) -> float:
        return sum(split.wait_seconds for split in self.splits.values())

    def epoch(
        self,
        streams: Sequence[BatchStream],
        epoch: int,
        start_step: int,
        batch_size: int,
        processes: Processes,
    ) -> Iterator[StepBatch]:
        mixed = any(stream.mixup for stream in streams)
        if mixed and not processes.alone:
            raise UserError(
                "train.mixup with streamed, split batches: use data.mode=resident or --parallel "
                "members."
            )
        seeds = list(dict.fromkeys(stream.seed for stream in streams))
        readers = [
            self.splits["train"].epoch(
                seed=seed,
                epoch=epoch,
                batch_size=batch_size,
                start_step=start_step,
                rank=processes.rank,
                world_size=processes.world_size,
            )
            for seed in seeds
        ]
        for parts in zip(*readers, strict=True):
            step, first, size = parts[0].step, parts[0].first, len(parts[0].labels)
            total = min(batch_size, self.num_images - step * batch_size)
            position = BatchPosition(epoch, step, first, first + size, total)
            mine = [parts[seeds.index(stream.seed)] for stream in streams]
            given = torch.stack([part.images for part in mine])
            images = self.pixels.of(streams, given, epoch, step, slice(first, first + size))
            labels = torch.stack([part.labels for part in mine])
            partners = share = None
            if mixed:
                partners = labels.flip(1)
                share = torch.stack(
                    [_mixup_shares(stream, position, self.device) for stream in streams]
                )
                images = _mix(images, images.flip(1), share)
            yield StepBatch(position, images, labels, partners, share, full=total == batch_size)

    def in_order(self, split: str, processes: Processes) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self.splits[split].in_order(EVAL_BATCH, processes.rank, processes.world_size):
            yield self.pixels.normalise(batch.images), batch.labels

    def reference(self) -> Tensor:
        batches = self.splits["train"].in_order(1)
        try:
            return self.pixels.normalise(next(batches).images)[0]
        finally:
            batches.close()
