"""Resident data: a split decoded once into a uint8 tensor on the device, used from there."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from hpc_mlp.config.sections import DataConfig
from hpc_mlp.data.cache import Arrays, are_counted, cached
from hpc_mlp.data.decode import Pixels
from hpc_mlp.data.manifest import NAME, Manifest, resident_bytes
from hpc_mlp.data.remote import DatasetLocation, is_url
from hpc_mlp.data.shards import OpenShard, blocks, check_sizes, open_shard
from hpc_mlp.errors import UserError, printable
from hpc_mlp.machine.memory import free_machine_memory, num_cpus

# Images decoded per task.
_CHUNK = 256


@dataclass(frozen=True)
class ResidentSplit:
    """A whole split on one device. Row order is shard order, then tar order.

    images: uint8 [N, C, H, W]; labels: int64 [N]."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def gather(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 [b, C, H, W] and int64 [b] of the given rows (int64 [b], on the same device)."""
        return self.images.index_select(0, rows), self.labels.index_select(0, rows)


def load_resident(
    location: DatasetLocation,
    manifest: Manifest,
    split: str,
    device: torch.device,
    *,
    cache: bool = True,
) -> ResidentSplit:
    """A split of a folder or URL on `device`, from the cache beside the shards or decoded (see
    `data.cache`).

    UserError where a shard is missing, damaged or not as the manifest says. On a CPU the images may
    be a private mapping of the cache file, whose memory all jobs on a machine share."""
    decode = partial(_decode_split, location, manifest, split)
    use_cache = cache and not is_url(location)
    arrays = cached(Path(location), manifest, split, decode) if use_cache else decode()
    images, labels = (torch.from_numpy(array) for array in arrays)
    return ResidentSplit(images.to(device), labels.to(device))


def joined(splits: Sequence[ResidentSplit], device: torch.device) -> ResidentSplit:
    """One after the other, in memory of its own on `device`. Where they lie elsewhere, they take
    none of it beside that."""
    sizes, shape = [len(split) for split in splits], splits[0].images.shape[1:]
    images = torch.empty((sum(sizes), *shape), dtype=torch.uint8, device=device)
    for part, split in zip(images.split(sizes), splits, strict=True):
        part.copy_(split.images)
    return ResidentSplit(images, torch.cat([split.labels for split in splits]).to(device))


def _decode_split(location: DatasetLocation, manifest: Manifest, split: str) -> Arrays:
    record = manifest.split(split)
    check_sizes(location, record.shards)
    # Every row is written below, or an error ends it: the shards' counts add up to the split's
    # (`Manifest`), and a shard has as many images as it says (`index_shard`).
    images = np.empty((record.num_images, manifest.channels, *manifest.image_size), dtype=np.uint8)
    labels = np.empty(record.num_images, dtype=np.int64)
    first = 0
    with ThreadPoolExecutor(max_workers=num_cpus()) as pool:
        for shard in record.shards:
            rows = slice(first, first + shard.num_images)
            with closing(open_shard(location, shard, len(manifest.classes), verify=True)) as opened:
                labels[rows] = opened.index.labels
                _decode_all(pool, opened, manifest, images[rows])
                opened.check_unchanged()
            first += shard.num_images
    if not are_counted(labels, manifest, split):
        raise UserError(
            f"the {printable(split)} shards do not hold the classes that {NAME} counts. Convert "
            "the images again."
        )
    return images, labels


def _decode_all(
    pool: ThreadPoolExecutor, shard: OpenShard, manifest: Manifest, images: Pixels
) -> None:
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


def choose_mode(
    manifest: Manifest, config: DataConfig, device: torch.device, *, processes: int = 1
) -> Literal["resident", "streaming"]:
    """Resident if all splits fit into `data.memory_fraction` of the memory that is free on the
    device.

    `processes` of this machine hold a copy each. UserError where `data.mode=resident` does not fit.
    """
    if config.mode == "streaming":
        return "streaming"
    needed = resident_bytes(manifest) * processes
    free = free_memory(device)
    if needed <= free * config.memory_fraction:
        return "resident"
    if config.mode == "auto":
        return "streaming"
    copies = f" in {processes} processes" if processes > 1 else ""
    raise UserError(
        f"data.mode=resident: the images take {needed / 1e9:.2f} GB as uint8{copies}, and the "
        f"budget is {free * config.memory_fraction / 1e9:.2f} GB "
        f"(data.memory_fraction={config.memory_fraction:g} of {free / 1e9:.2f} GB free on "
        f"{device}). Use data.mode=streaming or auto (a run that began with its images in memory "
        "goes on only so: --overwrite starts it anew), raise data.memory_fraction, or convert with "
        "a smaller --size."
    )


def free_memory(device: torch.device) -> int:
    """Bytes still to be had: of the GPU, with what torch keeps unused, or of this machine."""
    if device.type != "cuda":
        return free_machine_memory()
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + unused
