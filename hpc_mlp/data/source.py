"""Resident data: a split decoded once into one uint8 tensor on the device, gathered and normalised there."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hpc_mlp.data.cache import Arrays, cached
from hpc_mlp.data.manifest import Manifest
from hpc_mlp.data.shards import OpenShard, Pixels, blocks, open_shard

_CHUNK = 256  # images decoded per task


@dataclass(frozen=True)
class ResidentSplit:
    """A whole split on one device. Row order is shard order, then tar order.

    images: uint8 [N, C, H, W]; labels: int64 [N].
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def gather(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 [b, C, H, W] and int64 [b] of the given rows (int64 [b], on the same device)."""
        return self.images.index_select(0, rows), self.labels.index_select(0, rows)


def load_resident(
    folder: Path,
    manifest: Manifest,
    split: str,
    device: torch.device,
    *,
    verify: bool = True,
    cache: bool = True,
) -> ResidentSplit:
    """A split on `device`, from the cache beside the shards or decoded (see `data.cache`).

    UserError where a shard is missing, damaged or not as the manifest says. `verify=False` skips the sha256
    of the shards; counts and labels are checked all the same. On a CPU the images may be a private mapping
    of the cache file, whose memory all jobs on a machine share.
    """
    if cache:
        arrays = cached(
            folder, manifest, split, lambda: _decode_split(folder, manifest, split, verify), verify
        )
    else:
        arrays = _decode_split(folder, manifest, split, verify)
    images, labels = (torch.from_numpy(array) for array in arrays)
    return ResidentSplit(images.to(device), labels.to(device))


def _decode_split(folder: Path, manifest: Manifest, split: str, verify: bool) -> Arrays:
    record = manifest.split(split)
    images = np.empty((record.num_images, manifest.channels, *manifest.image_size), dtype=np.uint8)
    labels = np.empty(record.num_images, dtype=np.int64)
    first = 0
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for shard in record.shards:
            rows = slice(first, first + shard.num_images)
            opened = open_shard(folder, shard, len(manifest.classes), verify=verify)
            try:
                labels[rows] = opened.index.labels
                _decode_all(pool, opened, manifest, images[rows])
            finally:
                opened.close()
            first += shard.num_images
    return images, labels


def _decode_all(pool: ThreadPoolExecutor, shard: OpenShard, manifest: Manifest, images: Pixels) -> None:
    """Fill `images` [n, C, H, W] with the shard's samples, in parallel."""

    def decode_rows(start: int, stop: int) -> None:
        for row in range(start, stop):
            images[row] = shard.image(row, manifest).transpose(2, 0, 1)

    tasks = [pool.submit(decode_rows, *block) for block in blocks(len(images), _CHUNK)]
    try:
        for task in tasks:
            task.result()
    finally:
        wait([task for task in tasks if not task.cancel()])


def resident_bytes(manifest: Manifest) -> int:
    """Size of all splits as uint8 pixels, in bytes."""
    return manifest.num_features * sum(split.num_images for split in manifest.splits.values())


def normaliser(manifest: Manifest, device: torch.device) -> Callable[[Tensor], Tensor]:
    """A function uint8 [..., C, H, W] → float32 (x/255 − mean)/std on `device`: one scale, one offset.

    A channel whose std is 0 is only centred.
    """
    std = torch.tensor(manifest.std, dtype=torch.float64)
    inverse = 1.0 / torch.where(std > 1e-7, std, 1.0)
    mean = torch.tensor(manifest.mean, dtype=torch.float64)
    scale = (inverse / 255.0).float().to(device).view(-1, 1, 1)
    offset = (-mean * inverse).float().to(device).view(-1, 1, 1)

    def multiply_add(images: Tensor) -> Tensor:
        return torch.addcmul(offset, images, scale)  # one kernel: the cast happens inside

    def multiply_then_add(images: Tensor) -> Tensor:
        return images.float().mul_(scale).add_(offset)  # on a CPU three times as fast as a broadcast addcmul

    return multiply_add if device.type == "cuda" else multiply_then_add
