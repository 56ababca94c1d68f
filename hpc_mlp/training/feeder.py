"""Training data, resident on the device, as the steps of an epoch.

A step's images are a function of (seed, epoch, step) alone: any number of processes, any point of resumption and
any company in the bank give the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hpc_mlp.data.manifest import Manifest
from hpc_mlp.data.source import ResidentSplit, load_resident, normaliser
from hpc_mlp.models.bank import Feed
from hpc_mlp.models.dropout import StepPlace
from hpc_mlp.randomness import epoch_order
from hpc_mlp.training.processes import Processes

EVAL_BATCH = 512


@dataclass(frozen=True)
class StepBatch:
    """This process's part of a global batch: images float32 [S, b, C, H, W], labels int64 [S, b]."""

    place: StepPlace
    images: Tensor
    labels: Tensor
    partners: Tensor | None = None  # mixup: labels of the images mixed in
    share: Tensor | None = None  # mixup: share [S, b] of the first
    full: bool = True  # as large as every batch but the last


class ResidentFeeder:
    """Feeds banks from data that lie decoded on the device."""

    def __init__(self, folder: Path, manifest: Manifest, device: torch.device) -> None:
        self.folder, self.manifest, self.device = folder, manifest, device
        self.train = load_resident(folder, manifest, "train", device)
        self.normalise: Callable[[Tensor], Tensor] = normaliser(manifest, device)
        self._others: dict[str, ResidentSplit] = {}

    @property
    def num_images(self) -> int:
        return len(self.train)

    def epoch(
        self, feeds: Sequence[Feed], epoch: int, start_step: int, batch_size: int, processes: Processes
    ) -> Iterator[StepBatch]:
        """Steps `start_step`, … of an epoch (from 0)."""
        orders = torch.stack([torch.from_numpy(epoch_order(f.seed, epoch, self.num_images)) for f in feeds])
        orders = orders.to(self.device)  # [S, N]
        for step in range(start_step, num_steps(self.num_images, batch_size)):
            first = step * batch_size
            size = min(batch_size, self.num_images - first)
            start, stop = processes.part(size)
            rows = orders[:, first + start : first + stop]
            images, labels = self.train.gather(rows.flatten())
            place = StepPlace(epoch, step, start, stop, size)
            images = self.normalise(images).view(len(feeds), -1, *images.shape[1:])
            yield StepBatch(place, images, labels.view(rows.shape), full=size == batch_size)

    def in_order(self, split: str, processes: Processes) -> Iterator[tuple[Tensor, Tensor]]:
        """All images of a split once, this process's part: float32 [b, C, H, W], int64 [b]."""
        if split not in self._others:
            self._others[split] = load_resident(self.folder, self.manifest, split, self.device)
        data = self._others[split]
        start, stop = processes.part(len(data))
        for first in range(start, stop, EVAL_BATCH):
            rows = slice(first, min(first + EVAL_BATCH, stop))
            yield self.normalise(data.images[rows]), data.labels[rows]


def num_steps(num_images: int, batch_size: int) -> int:
    return -(-num_images // batch_size)
