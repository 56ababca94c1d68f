"""Reading one shard: where its samples lie, and how one is decoded. No torch.

A shard is a standard WebDataset tar, `000042.png` followed by `000042.cls`. Its headers are walked
once; after that any sample is read by its offset, and one that is not wanted never read."""

from __future__ import annotations

import hashlib
import mmap
import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from hpc_mlp.data.decode import ImageSpec, Pixels, decode_image
from hpc_mlp.data.encode import ENCODINGS
from hpc_mlp.data.manifest import NAME, Manifest, Shard
from hpc_mlp.data.npy import decode_npy
from hpc_mlp.data.png import decode_plain
from hpc_mlp.data.remote import DatasetLocation, download, file_url, is_url
from hpc_mlp.errors import RunError, UserError, printable, unknown_name
from hpc_mlp.files import checked

_BLOCK = 512
_LABEL_BYTES = 32
_AGAIN = "Convert the images again: hpc-mlp convert ZIP OUT --overwrite"
_SUFFIXES = {"png", "jpg", "jpeg", "npy", "gif", "webp", "bmp", "tif", "tiff", "ppm", "jp2", "avif"}


@dataclass(frozen=True)
class ShardIndex:
    """A shard's samples in tar order: int64 [n] byte offsets and sizes of images, labels."""

    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    labels: NDArray[np.int64]


# Size, time of the last change in ns, inode: of a file with the same ones, the same bytes are read.
Stamp = tuple[int, int, int]


@dataclass(frozen=True)
class Known:
    """What an earlier opening found out about a shard."""

    stamp: Stamp
    index: ShardIndex


class OpenShard:
    """An open shard and its index. Reading is safe from any number of threads."""

    def __init__(self, file: IO[bytes], name: str, known: Known) -> None:
        self._file, self.name, self.known = file, name, known
        self._descriptor = file.fileno()
        self.index = known.index

    def image(self, row: int, manifest: Manifest) -> Pixels:
        """Decode the `row`-th sample: uint8 [H, W, C]."""
        return decode(self.encoded(row), manifest, f"image {row} of {self.name}")

    def encoded(self, row: int) -> bytes:
        """The image file of the `row`-th sample."""
        start, size = int(self.index.offsets[row]), int(self.index.sizes[row])
        try:
            data = os.pread(self._descriptor, size, start)
        except OSError as error:
            raise _unreadable(self.name, error) from None
        if len(data) < size:
            raise _changed(self.name)
        return data

    def keys(self) -> list[str]:
        """The samples' names, in tar order."""
        with _mapped(self._file, self.name) as data:
            names = [name.partition(".") for name, _, _ in _members(data, self.name)]
        return [key for key, _, suffix in names if suffix.lower() in _SUFFIXES]

    def check_unchanged(self) -> None:
        """RunError where somebody has written into the file since it was opened."""
        if _stamp(self._file) != self.known.stamp:
            raise _changed(self.name)

    def close(self) -> None:
        self._file.close()


def open_shard(
    location: DatasetLocation,
    shard: Shard,
    num_classes: int,
    *,
    verify: bool,
    known: Known | None = None,
    stop: threading.Event | None = None,
) -> OpenShard:
    """Open and index a shard; `verify` compares its sha256 with the manifest's first.

    A shard at a URL is downloaded to an unnamed temporary file. `known`: from an earlier opening; a
    file that is still the same is neither verified nor indexed again. `stop` ends a download early
    (RunError). Closing gives everything back. UserError where the shard is missing or not the
    manifest's, RunError where it was, and is no longer."""
    if is_url(location):
        name = file_url(str(location), shard.name)
        file = download(str(location), shard, stop)
    else:
        name = str(Path(location) / shard.name)
        file = _open(Path(location), shard)
    try:
        stamp = _stamp(file)
        if known is None or known.stamp != stamp:
            verify = verify or is_url(location)
            if stamp[0] != shard.bytes or (verify and _sha256(file, name) != shard.sha256):
                raise _changed(name) if known else _damaged(name)
            if _stamp(file) != stamp:
                raise _changed(name)
        if known is None:
            with _mapped(file, name) as data:
                known = Known(stamp, index_shard(data, shard, num_classes))
        return OpenShard(file, name, Known(stamp, known.index))
    except BaseException:
        file.close()
        raise


def _mapped(file: IO[bytes], name: str) -> mmap.mmap:
    """For a moment: a mapped file that is cut short kills whoever looks; one that is read does
    not."""
    try:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (ValueError, OSError) as error:
        raise _unusable(name, str(error)) from None


def check_sizes(location: DatasetLocation, shards: Iterable[Shard]) -> None:
    """UserError where a local shard is missing or has another size: before hours of work."""
    if is_url(location):
        return
    for shard in shards:
        path = Path(location) / shard.name
        try:
            size = path.stat().st_size
        except OSError:
            raise _missing(path) from None
        if size != shard.bytes:
            raise _damaged(path)


def check_shard(folder: Path, shard: Shard) -> None:
    """UserError unless the shard's bytes are those the manifest names."""
    path = folder / shard.name
    with _open(folder, shard) as file:
        if _stamp(file)[0] != shard.bytes or _sha256(file, path) != shard.sha256:
            raise _damaged(path)


def _open(folder: Path, shard: Shard) -> IO[bytes]:
    path = folder / shard.name
    try:
        return checked.open_file(path)
    except FileNotFoundError:
        raise _missing(path) from None
    except OSError as error:
        raise UserError(f"cannot read {printable(path)}: {error.strerror}.") from None


def _stamp(file: IO[bytes]) -> Stamp:
    found = os.fstat(file.fileno())
    return found.st_size, found.st_mtime_ns, found.st_ino


def _sha256(file: IO[bytes], name: object) -> str:
    try:
        with open(file.fileno(), "rb", buffering=0, closefd=False) as whole:
            whole.seek(0)
            return hashlib.file_digest(whole, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(name, error) from None


def _unreadable(name: object, error: OSError) -> RunError:
    return RunError(f"cannot read {printable(name)}: {error.strerror}.")


def _missing(path: object) -> UserError:
    return UserError(f"{printable(path)} is missing. {_AGAIN}")


def _damaged(path: object) -> UserError:
    return UserError(f"{printable(path)} is damaged: its bytes are not those in {NAME}. {_AGAIN}")


def _changed(path: object) -> RunError:
    return RunError(
        f"{printable(path)} was changed while it was in use: its bytes are no longer those in "
        f"{NAME}. Start again, on shards that nobody converts or copies meanwhile."
    )


def index_shard(data: bytes | mmap.mmap, shard: Shard, num_classes: int) -> ShardIndex:
    """Walk the headers of the tar in `data`. UserError where its samples are not as promised."""
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
            text = data[offset : offset + min(size, _LABEL_BYTES)]
            labels.append(_label(text, num_classes, f"{shard.name}: {name}"))
    if len(labels) != len(images):
        raise _unusable(shard.name, "an image has no label")
    if len(images) != shard.num_images:
        raise _unusable(
            shard.name, f"it holds {len(images)} images, the manifest says {shard.num_images}"
        )
    table = np.array(images, dtype=np.int64).reshape(-1, 2)
    return ShardIndex(table[:, 0].copy(), table[:, 1].copy(), np.array(labels, dtype=np.int64))


def _members(data: bytes | mmap.mmap, shard: str) -> list[tuple[str, int, int]]:
    """(name, offset, size) of every regular file. Ten times as fast as `tarfile`."""
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
        if not 0 <= size <= len(data) - position:
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
    if not 0 <= label < num_classes or len(text) == _LABEL_BYTES:
        raise UserError(
            f"{printable(where)} holds {text[:20]!r}: not a class index below {num_classes}."
        )
    return label


def _unusable(shard: str, reason: str) -> UserError:
    return UserError(f"{printable(shard)} cannot be used: {printable(reason)}. {_AGAIN}")


def decode(encoded: bytes, manifest: Manifest, where: str) -> Pixels:
    """One image as uint8 [H, W, C] of the manifest's size. UserError names `where` if it cannot."""
    height, width = manifest.image_size
    shape = (height, width, manifest.channels)
    try:
        match manifest.encoding:
            case "png" if (plain := decode_plain(encoded, *shape)) is not None:
                image = plain
            case "png" | "jpeg" | "original":
                image = decode_image(encoded, ImageSpec(*shape, max_pixels=manifest.max_pixels))
            case "npy":
                image = decode_npy(encoded, shape)
            case other:
                raise unknown_name("encoding of the shards", other, ENCODINGS)
    except UserError:
        raise
    # A decoder may raise anything on damaged bytes.
    except Exception as error:
        raise UserError(
            f"{printable(where)} cannot be decoded ({printable(error)}). {_AGAIN}"
        ) from None
    if image.shape != shape or image.dtype != np.uint8:
        raise UserError(
            f"{printable(where)} is {image.dtype} {image.shape}, the manifest says uint8 {shape}."
        )
    return image


def blocks(total: int, size: int) -> list[tuple[int, int]]:
    """Consecutive (start, stop) of at most `size` that cover range(total)."""
    return list(pairwise([*range(0, total, size), total])) if total else []
