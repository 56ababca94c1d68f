"""Shards folders written from arrays, in the manifest's format: for tests of what reads them."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hpc_mlp.data.manifest import Manifest
from hpc_mlp.files.digest import file_sha256

# Images [N, H, W, C], labels [N].
Arrays = tuple[NDArray[np.uint8], NDArray[np.int64]]


def random_arrays(
    num_images: int, size: int = 8, channels: int = 3, classes: int = 3, seed: int = 0
) -> Arrays:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (num_images, size, size, channels), dtype=np.uint8)
    return images, rng.integers(0, classes, num_images)


def encode(image: NDArray[np.uint8], encoding: str) -> bytes:
    file = io.BytesIO()
    if encoding == "npy":
        np.save(file, image)
    else:
        pixels = image if image.shape[2] == 3 else image[:, :, 0]
        Image.fromarray(pixels).save(
            file, encoding.upper(), **({"quality": 95} if encoding == "jpeg" else {})
        )
    return file.getvalue()


def write_shards(
    folder: Path,
    splits: dict[str, Arrays],
    *,
    encoding: str = "png",
    shard_size: int = 100,
    classes: int = 3,
) -> Manifest:
    """Every split in shards of `shard_size` images, the others empty; statistics are those of the
    training split."""
    folder.mkdir(parents=True, exist_ok=True)
    nothing = splits["train"][0][:0], splits["train"][1][:0]
    splits = splits | {name: nothing for name in ("val", "test") if name not in splits}
    records: dict[str, Any] = {}
    key = 0
    for name, (images, labels) in splits.items():
        shards = []
        for number, first in enumerate(range(0, len(images), shard_size)):
            path = folder / f"{name}-{number:06d}.tar"
            part = images[first : first + shard_size]
            with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
                for image, label in zip(part, labels[first : first + shard_size], strict=True):
                    members = {encoding: encode(image, encoding), "cls": str(int(label)).encode()}
                    for suffix, content in members.items():
                        info = tarfile.TarInfo(f"{key:06d}.{suffix}")
                        info.size = len(content)
                        tar.addfile(info, io.BytesIO(content))
                    key += 1
            shards.append(
                {
                    "name": path.name,
                    "num_images": len(part),
                    "bytes": path.stat().st_size,
                    "sha256": file_sha256(path),
                }
            )
        counts = np.bincount(labels, minlength=classes).tolist()
        records[name] = {"num_images": len(images), "class_counts": counts, "shards": shards}
    train = splits["train"][0]
    pixels = train.reshape(-1, train.shape[-1]) / 255.0
    tree = {
        "format": 1,
        "classes": [f"class{i}" for i in range(classes)],
        "image_size": train.shape[1:3],
        "channels": train.shape[3],
        "encoding": encoding,
        "splits": records,
        "mean": pixels.mean(axis=0).tolist(),
        "std": pixels.std(axis=0).tolist(),
        "source": {},
        "layout": "class folders",
        "settings": {},
    }
    tree["digest"] = hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(tree))
    return Manifest.load(folder)


def batch_size_with_rest_one(folder: Path) -> int:
    """A batch size that leaves one training image for the last batch."""
    images = Manifest.load(folder).split("train").num_images
    return next(size for size in range(40, images) if images % size == 1)
