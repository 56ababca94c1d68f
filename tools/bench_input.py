#!/usr/bin/env python3
"""The input side of training in one run: resident load, delivery, and streaming beside webdataset's
loader.

    python tools/bench_input.py SHARDS [--workers 2] [--repeats 5] [--json FILE]

Both streaming loaders read the same training shards with the same number of workers, shuffle, and
deliver uint8 batches of 32; they take turns, and the ratio is the median of the repeats' ratios.
One torch thread."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

BATCH = 32


def seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def consume(batches: Iterable[Any], expected: int) -> None:
    count = sum(len(labels) for _, labels in batches)
    assert count == expected, f"{count} images instead of {expected}"


def webdataset_loader(shards: Path, manifest: Any, workers: int) -> Any:
    """As its documentation has it: shuffled shards and samples, decoded and batched in worker
    processes."""
    import numpy as np
    import torch
    import webdataset as wds

    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
    urls = [str(shards / shard.name) for shard in manifest.splits["train"].shards]
    samples = wds.WebDataset(urls, shardshuffle=len(urls), empty_check=False, seed=0).shuffle(4096)
    # uint8 [H, W] or [H, W, 3] through Pillow
    kind = "l8" if manifest.channels == 1 else "rgb8"
    samples = samples.decode() if manifest.encoding == "npy" else samples.decode(kind)

    def to_tensor(pixels: Any) -> torch.Tensor:
        return torch.from_numpy(np.atleast_3d(pixels)).permute(2, 0, 1)

    samples = (
        samples.to_tuple("png;jpg;npy", "cls")
        .map_tuple(to_tensor, int)
        .batched(BATCH, partial=True)
    )
    return wds.WebLoader(samples, batch_size=None, num_workers=workers)


def measure(shards: Path, workers: int, repeats: int) -> dict[str, Any]:
    import torch

    from hpc_mlp.data.manifest import Manifest
    from hpc_mlp.data.normalise import normaliser
    from hpc_mlp.data.resident import load_resident
    from hpc_mlp.data.streaming import StreamingSplit

    torch.set_num_threads(1)
    cpu = torch.device("cpu")
    manifest = Manifest.load(shards)
    total = sum(split.num_images for split in manifest.splits.values())
    number = manifest.splits["train"].num_images

    def load() -> None:
        for split in manifest.splits:
            load_resident(shards, manifest, split, cpu)

    with tempfile.TemporaryDirectory() as cache:
        os.environ["HPC_MLP_CACHE"] = cache
        decoding = seconds(load)
        cached = statistics.median(seconds(load) for _ in range(repeats))
        train, normalise = load_resident(shards, manifest, "train", cpu), normaliser(manifest, cpu)

        def deliver() -> None:
            for rows in torch.randperm(number).split(BATCH):
                normalise(train.gather(rows)[0])

        delivery = number / statistics.median(seconds(deliver) for _ in range(repeats))

    stream = StreamingSplit(shards, manifest, "train", workers=workers, device=cpu)
    loader = webdataset_loader(shards, manifest, workers)
    ours, theirs = [], []
    for epoch in range(repeats):
        batches = stream.epoch(seed=0, epoch=epoch, batch_size=BATCH)
        pairs = ((batch.images, batch.labels) for batch in batches)
        ours.append(number / seconds(partial(consume, pairs, number)))
        theirs.append(number / seconds(lambda: consume(loader, number)))
    return {
        "images": total,
        "encoding": manifest.encoding,
        "shape": [manifest.channels, *manifest.image_size],
        "workers": workers,
        "repeats": repeats,
        "resident: decode and write the cache, s": decoding,
        "resident: load from the cache, s": cached,
        "resident: normalised batches of 32, img/s": delivery,
        "streaming, img/s": statistics.median(ours),
        "webdataset, img/s": statistics.median(theirs),
        "streaming / webdataset": statistics.median(
            a / b for a, b in zip(ours, theirs, strict=True)
        ),
        "hardware": f"{os.cpu_count()} CPUs, {platform.machine()}",
        "python": platform.python_version(),
        "versions": {
            name: importlib.metadata.version(name) for name in ("torch", "webdataset", "pillow")
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("shards", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    figures = measure(options.shards, options.workers, options.repeats)
    for name, figure in figures.items():
        print(
            f"{name:45} {figure:,.3g}"
            if isinstance(figure, float) and figure < 100
            else f"{name:45} {figure:,.0f}"
            if isinstance(figure, float)
            else f"{name:45} {figure}"
        )
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
