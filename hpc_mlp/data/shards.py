"""Reading one shard: where its samples lie, and how one is decoded. No torch.

A shard is a standard WebDataset tar, `000042.png` followed by `000042.cls`. Its headers are walked once;
after that any sample is read by its offset, so that one that is not wanted is never read or decoded.
"""

from __future__ import annotations

import io
import mmap
import threading
import zlib
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from hpc_mlp.data.decode import MAX_PIXELS, ImageSpec, Pixels, decode_image
from hpc_mlp.data.encode import ENCODINGS
from hpc_mlp.data.manifest import Manifest, Shard, check_shard
from hpc_mlp.data.remote import Place, download, is_url
from hpc_mlp.errors import UserError, unknown_name

_BLOCK = 512
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_PNG_COLOUR = {1: 0, 3: 2}  # channels → colour type
_SUFFIXES = {"png", "jpg", "jpeg", "npy", "gif", "webp", "bmp", "tif", "tiff", "ppm", "jp2", "avif"}


@dataclass(frozen=True)
class ShardIndex:
    """Samples of a shard in tar order: int64 [n] byte offsets and sizes of the images, and labels."""

    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


class OpenShard:
    """A mapped shard and its index. Reading is safe from any number of threads."""

    def __init__(
        self, file: IO[bytes], name: str, shard: Shard, num_classes: int, index: ShardIndex | None
    ) -> None:
        self._name = name
        try:
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:
            raise _unusable(name, "it is empty") from None
        try:
            self.index = index_shard(self._data, shard, num_classes) if index is None else index
        except BaseException:
            self._data.close()
            raise

    def image(self, row: int, manifest: Manifest) -> Pixels:
        """Decode the `row`-th sample: uint8 [H, W, C]."""
        offset = int(self.index.offsets[row])
        encoded = self._data[offset : offset + int(self.index.sizes[row])]
        return decode(encoded, manifest, f"image {row} of {self._name}")

    def close(self) -> None:
        self._data.close()


def open_shard(
    place: Place,
    shard: Shard,
    num_classes: int,
    *,
    verify: bool,
    index: ShardIndex | None = None,
    stop: threading.Event | None = None,
) -> OpenShard:
    """Map and index a shard; `verify` compares its sha256 with the manifest's first.

    A shard at a URL is downloaded to an unnamed temporary file, and always verified. `index` is the shard's
    index where it is known already; `stop` ends a download early (RunError). Closing gives everything back.
    """
    if is_url(place):
        with download(str(place), shard, stop) as file:
            return OpenShard(file, shard.name, shard, num_classes, index)
    path = Path(place) / shard.name
    if verify or not path.is_file() or path.stat().st_size != shard.bytes:
        check_shard(Path(place), shard)
    try:
        with path.open("rb") as file:
            return OpenShard(file, str(path), shard, num_classes, index)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}.") from None


def index_shard(data: bytes | mmap.mmap, shard: Shard, num_classes: int) -> ShardIndex:
    """Walk the headers of the tar in `data`. UserError where samples, count or labels are not as promised."""
    images: list[tuple[int, int]] = []
    labels: list[int] = []
    keys: list[str] = []
    for name, offset, size in _members(data, shard.name):
        key, _, suffix = name.partition(".")
        if suffix.lower() in _SUFFIXES:
            keys.append(key)
            images.append((offset, size))
        elif suffix == "cls":
            if not keys or keys[-1] != key or len(labels) != len(keys) - 1:
                raise _unusable(shard.name, f"{name} does not follow its image")
            labels.append(_label(data[offset : offset + size], num_classes, f"{shard.name}: {name}"))
    if len(labels) != len(images):
        raise _unusable(shard.name, "an image has no label")
    if len(images) != shard.num_images:
        raise _unusable(shard.name, f"it holds {len(images)} images, the manifest says {shard.num_images}")
    table = np.array(images, dtype=np.int64).reshape(-1, 2)
    return ShardIndex(table[:, 0].copy(), table[:, 1].copy(), np.array(labels, dtype=np.int64))


def _members(data: bytes | mmap.mmap, shard: str) -> list[tuple[str, int, int]]:
    """(name, offset, size) of every regular file. Ten times as fast as `tarfile`, which matters at start."""
    members: list[tuple[str, int, int]] = []
    position = 0
    while position + _BLOCK <= len(data):
        header = data[position : position + _BLOCK]
        if not header[0]:
            break
        try:
            size = int(header[124:136].rstrip(b"\0 ") or b"0", 8)
            name = header[: header.index(b"\0", 0, 101) if b"\0" in header[:100] else 100].decode()
        except ValueError:
            raise _unusable(shard, f"the tar header at byte {position} cannot be read") from None
        position += _BLOCK
        if position + size > len(data):
            raise _unusable(shard, f"{name} is cut off")
        if header[156] in b"0\0":
            members.append((name, position, size))
        position += -(-size // _BLOCK) * _BLOCK
    return members


def _label(text: bytes, num_classes: int, where: str) -> int:
    try:
        label = int(text)
    except ValueError:
        label = -1
    if not 0 <= label < num_classes:
        raise UserError(f"{where} holds {text[:20]!r}: not a class index below {num_classes}.")
    return label


def _unusable(shard: str, reason: str) -> UserError:
    return UserError(f"{shard} cannot be used: {reason}. Convert the ZIP again.")


def decode(encoded: bytes, manifest: Manifest, where: str) -> Pixels:
    """One image as uint8 [H, W, C] of the manifest's size. UserError names `where` if that cannot be had."""
    height, width = manifest.image_size
    shape = (height, width, manifest.channels)
    try:
        match manifest.encoding:
            case "png" if (plain := _decode_plain_png(encoded, *shape)) is not None:
                image = plain
            case "png" | "jpeg" | "original":
                largest = int(manifest.settings.get("max_pixels", MAX_PIXELS))
                image = decode_image(encoded, ImageSpec(*shape, max_pixels=largest))
            case "npy":
                image = np.load(io.BytesIO(encoded), allow_pickle=False)
            case other:
                raise unknown_name("encoding of the shards", other, ENCODINGS)
    except UserError:
        raise
    except Exception as error:  # a decoder may raise anything on damaged bytes
        raise UserError(f"{where} cannot be decoded ({error}). Convert the ZIP again.") from None
    if image.shape != shape or image.dtype != np.uint8:
        raise UserError(f"{where} is {image.dtype} {image.shape}, the manifest says uint8 {shape}.")
    return image


def _decode_plain_png(data: bytes, height: int, width: int, channels: int) -> Pixels | None:
    """An 8-bit PNG whose rows all use one filter, None, Sub or Up: inflate, and at most a running sum.

    Twice as fast as Pillow on small images, and most of it without the interpreter lock. None where the file
    is any other PNG. The chunk CRCs are not looked at: inflate's own checksum covers the pixels.
    """
    shape = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big")
    if data[:8] != _PNG_MAGIC or data[12:29] != shape + bytes((8, _PNG_COLOUR[channels], 0, 0, 0)):
        return None
    parts = []
    position = 33
    while (kind := data[position + 4 : position + 8]) != b"IEND":
        end = position + 8 + int.from_bytes(data[position : position + 4], "big")
        if kind == b"IDAT":
            parts.append(data[position + 8 : end])
        elif kind == b"tRNS" or len(kind) < 4:
            return None
        position = end + 4
    rows = np.frombuffer(zlib.decompress(b"".join(parts)), dtype=np.uint8).reshape(
        height, 1 + width * channels
    )
    kinds = bytes(rows[:, 0])
    pixels = rows[:, 1:].reshape(height, width, channels)
    if kinds == b"\0" * height:
        return pixels
    if kinds[1:] == b"\2" * (height - 1) and kinds[0] in (0, 2):
        return np.add.accumulate(pixels, axis=0, dtype=np.uint8)
    if kinds == b"\1" * height:
        return np.add.accumulate(pixels, axis=1, dtype=np.uint8)
    return None


def blocks(total: int, size: int) -> list[tuple[int, int]]:
    """Consecutive (start, stop) of at most `size` that cover range(total)."""
    return list(pairwise([*range(0, total, size), total])) if total else []
