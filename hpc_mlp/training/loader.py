"""What feeds a bank: the steps of an epoch, validation and test images, normalised on the device.

A step's images are a function of (seed, fold, epoch, step) alone: any number of processes, any
point of resumption and any company in the bank give the same."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from hpc_mlp.bank.bank import BatchStream
from hpc_mlp.bank.dropout import BatchPosition
from hpc_mlp.bank.evaluate import EVAL_BATCH
from hpc_mlp.bank.step import StepBatch
from hpc_mlp.data.augment import augment, is_active
from hpc_mlp.data.deal import Rows
from hpc_mlp.data.folds import Folds
from hpc_mlp.data.manifest import Manifest
from hpc_mlp.data.normalise import Normaliser, PixelMoments
from hpc_mlp.data.own_augment import Broken
from hpc_mlp.machine.device import branch, send
from hpc_mlp.machine.processes import Processes
from hpc_mlp.machine.randomness import mixup_shares

# The part of a fold's images that it is tested on.
HELD_OUT = "held_out"


class BatchLoader(ABC):
    """Feeds banks. `folds`: of the dataset, where the runs are of folds. `num_images`: of an epoch.
    `wait_seconds`: how long training has waited for data so far."""

    mode: str

    def __init__(self, manifest: Manifest, device: torch.device, folds: Folds | None) -> None:
        self.manifest, self.device, self.folds = manifest, device, folds
        whole = manifest.split("train").num_images
        self.num_images = whole if folds is None else folds.epoch_images
        # What augmentations of the user's own have given so far.
        self.broken: Broken = {}
        self._normalisers: dict[tuple[int | None, ...], Normaliser] = {}
        # Of one fold, so that a run's bits do not depend on how many are in its company.
        self._eval_batch = EVAL_BATCH if folds is None else max(64, EVAL_BATCH // len(folds))

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
    def _stored(
        self, split: str, rows: Rows | None, batch_size: int, processes: Processes
    ) -> Iterator[tuple[Tensor, Tensor, int]]:
        """This process's part of each batch of a split, or of `rows` of what the folds are made of:
        uint8 [b, C, H, W], int64 [b], and the place of the first of them."""

    @abstractmethod
    def _first_image(self) -> Tensor:
        """Of training, as the dataset was split: uint8 [C, H, W] on the device"""

    def in_order(
        self, split: str, processes: Processes, fold: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """All images of a split once, this process's part: float32 [b, C, H, W], int64 [b].
        `split`: of the dataset; of a fold also HELD_OUT."""
        rows = self._rows(split, fold)
        normalise = self.normaliser([fold])
        for images, labels, _ in self._stored(split, rows, EVAL_BATCH, processes):
            yield normalise(images), labels

    def validation(
        self, folds: Sequence[int | None], processes: Processes
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The validation images of these folds (None: those of the dataset) side by side, this
        process's part: float32 [F, b, C, H, W] and int64 [F, b]; −1 stands where a fold has fewer
        images than others."""
        parts = [self._rows("val", fold) for fold in folds]
        most = 0
        if self.folds is not None:
            most = max(len(fold.val) for fold in self.folds.folds)
        readers = [
            self._stored("val", _padded(rows, most), self._eval_batch, processes) for rows in parts
        ]
        normalise = self.normaliser(folds)
        for batches in zip(*readers, strict=True):
            first = batches[0][2]
            labels = [
                truth if rows is None else _known(truth, len(rows) - first)
                for rows, (_, truth, _) in zip(parts, batches, strict=True)
            ]
            yield (
                normalise(_side_by_side([images for images, _, _ in batches])),
                _side_by_side(labels),
            )

    def reference(self, streams: Sequence[BatchStream]) -> Tensor:
        """The first training image, normalised as in each stream: float32 [S, C, H, W]"""
        images = self._first_image().expand(len(streams), 1, -1, -1, -1)
        return self.normaliser([stream.fold for stream in streams])(images)[:, 0]

    def class_counts(self, fold: int | None) -> Sequence[int]:
        """Training images of each class."""
        if fold is None or self.folds is None:
            return self.manifest.split("train").class_counts
        return self.folds[fold].class_counts

    def normaliser(self, folds: Sequence[int | None]) -> Normaliser:
        """For batches of these folds side by side."""
        distinct = tuple(folds) if len(set(folds)) > 1 else (folds[0],)
        if distinct not in self._normalisers:
            moments = [self._moments(fold) for fold in distinct]
            self._normalisers[distinct] = Normaliser(moments, self.device)
        return self._normalisers[distinct]

    def _moments(self, fold: int | None) -> PixelMoments:
        if fold is None or self.folds is None:
            return PixelMoments(self.manifest.mean, self.manifest.std)
        return self.folds[fold].moments

    def _rows(self, split: str, fold: int | None) -> Rows | None:
        """None: all of the dataset's split."""
        if fold is None or self.folds is None or split in self.given:
            return None
        rows: Rows = getattr(self.folds[fold], split)
        return rows

    @property
    def given(self) -> list[str]:
        """Splits that the folds leave as they are."""
        splits = self.manifest.splits
        return [] if self.folds is None else [s for s in splits if s not in self.folds.splits]

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
            return self.normaliser([stream.fold for stream in streams])(images)
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
        normalise = self.normaliser([stream.fold for stream in streams])
        return normalise.augmented_(pixels.view(images.shape))


def _padded(rows: Rows | None, count: int) -> Rows | None:
    """`count` rows: the last one again where there are fewer."""
    if rows is None:
        return None
    return np.concatenate([rows, np.full(count - len(rows), rows[-1])])


def _side_by_side(tensors: list[Tensor]) -> Tensor:
    # One alone needs no copy.
    return tensors[0].unsqueeze(0) if len(tensors) == 1 else torch.stack(tensors)


def _known(labels: Tensor, count: int) -> Tensor:
    """−1 in place of all but the first `count` labels [b]."""
    return (
        labels
        if count >= len(labels)
        else labels.clone().index_fill_(
            0, torch.arange(max(count, 0), len(labels), device=labels.device), -1
        )
    )


def is_mixed(streams: Sequence[BatchStream]) -> bool:
    return any(stream.mixup for stream in streams)


def mixed(
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
