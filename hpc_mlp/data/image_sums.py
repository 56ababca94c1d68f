"""What folds need to know of each image, from one pass over all of them, kept in the cache."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpc_mlp.config.sections import DataConfig
from hpc_mlp.data.cache import Tables, cached_sums
from hpc_mlp.data.deal import Rows
from hpc_mlp.data.manifest import Manifest
from hpc_mlp.data.remote import DatasetLocation
from hpc_mlp.data.resident import choose_mode, load_resident
from hpc_mlp.data.streaming import StreamingSplit

CPU = torch.device("cpu")
_AT_ONCE = 256


@dataclass(frozen=True)
class ImageSums:
    """Of every image: its class [N], the sums of its values and of their squares by channel
    [N, C], and the number of the first image of equal pixels [N]; all int64."""

    labels: Rows
    sums: NDArray[np.int64]
    squares: NDArray[np.int64]
    equal: Rows


def image_sums(
    location: DatasetLocation, manifest: Manifest, splits: Sequence[str], config: DataConfig
) -> ImageSums:
    """Of all images of these splits, one after the other; from the cache, where it has them (see
    `data.cache`). UserError where a shard is missing or damaged."""
    channels = manifest.channels
    table, labels = cached_sums(
        location,
        manifest,
        splits,
        1 + 2 * channels,
        lambda: _measure(_images(location, manifest, splits, config), channels),
    )
    return ImageSums(labels, table[:, 1 : 1 + channels], table[:, 1 + channels :], table[:, 0])


def _images(
    location: DatasetLocation, manifest: Manifest, splits: Sequence[str], config: DataConfig
) -> Iterator[tuple[Tensor, Tensor]]:
    """All of these splits once: uint8 [b, C, H, W] and int64 [b] in the host's memory."""
    if config.mode == "resident":
        # In the device's memory; the host's may be smaller.
        config = config.model_copy(update={"mode": "auto"})
    streaming = choose_mode(manifest, config, CPU) == "streaming"
    for name in splits:
        if streaming:
            split = StreamingSplit(location, manifest, [name], workers=config.workers, device=CPU)
            with closing(split.in_order(_AT_ONCE)) as batches:
                for batch in batches:
                    yield batch.images, batch.labels
        else:
            data = load_resident(location, manifest, name, CPU)
            yield from zip(data.images.split(_AT_ONCE), data.labels.split(_AT_ONCE), strict=True)


def _measure(batches: Iterable[tuple[Tensor, Tensor]], channels: int) -> Tables:
    """`equal`, sums and squares beside each other [N, 1 + 2 C]; labels [N]."""
    labels, tables = [np.empty(0, np.int64)], [np.empty((0, 1 + 2 * channels), np.int64)]
    seen: dict[bytes, int] = {}
    row = 0
    for images, classes in batches:
        # Exact: no sum of squares of an image's channel reaches 2^53.
        values = images.flatten(2).numpy().astype(np.float64)
        equal = []
        for image in images.flatten(1).numpy():
            digest = blake2b(image.tobytes(), digest_size=16).digest()
            equal.append(seen.setdefault(digest, row))
            row += 1
        squares = np.einsum("bcx,bcx->bc", values, values)
        columns = [np.array(equal, np.float64)[:, None], values.sum(2), squares]
        labels.append(classes.numpy())
        tables.append(np.concatenate(columns, axis=1).astype(np.int64))
    return np.concatenate(tables), np.concatenate(labels)
