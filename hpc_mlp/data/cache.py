"""Decoded splits on disk: the first job on a shards folder decodes, the others map what it wrote.

In OUT/.cache:

    <digest>-<split>.npy   uint8 [N, C, H, W], memory-mapped: one copy for all jobs of a machine
    <digest>-<split>.json  labels, checksums of the array, the shards that it came from (sha256,
                           size, time, inode)
    <digest>-<split>.lock  held (flock) while one process decodes; dropped by the kernel
    <digest>-sums-<splits> the same three, of what folds need of each image: int64 [N, 1 + 2 C]

What is verified when the cache is hot:
- every byte of the array and the labels, against the checksums, at every load (0.03 s for 60 MB),
  and the classes' counts against the manifest: a damaged or half-written array is never used, it
  is decoded anew;
- every shard by size, modification time and inode; where they changed, by its full sha256. A
  shard that was damaged or replaced after the cache was made is thus still refused, without
  reading intact shards again.

Whoever can write into the cache decides what is trained on, as whoever can write the shards and
their manifest does.

Nothing here can fail a run: where the folder cannot be written, or less than twice the array's size
is free, or the file system knows no locks, or another process holds the lock for too long, the
split is decoded as if there were no cache. `HPC_MLP_CACHE=DIR` puts the cache elsewhere, for
instance when the shards are on a read-only or slow file system."""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from hpc_mlp.data.manifest import Manifest
from hpc_mlp.data.remote import DatasetLocation, is_url
from hpc_mlp.data.shards import blocks, check_shard
from hpc_mlp.errors import RunError
from hpc_mlp.files import checked
from hpc_mlp.files.atomic import lock, replacing
from hpc_mlp.machine.memory import num_cpus

_FOLDER = ".cache"
# Bytes per checksum; they are computed in parallel.
_HASHED_AT_ONCE = 1 << 24

# Images [N, C, H, W], labels [N].
Arrays = tuple[NDArray[np.uint8], NDArray[np.int64]]
# A table [N, columns], labels [N].
Tables = tuple[NDArray[np.int64], NDArray[np.int64]]
# Of each shard: sha256 in the manifest, then size, modification time in ns and inode of its file.
Stats = tuple[tuple[str | int, ...], ...]


class _Note(checked.Record):
    """The .json beside an array."""

    format: Literal[1]
    labels: tuple[Annotated[int, Field(ge=0, lt=1 << 31)], ...]
    shards: Stats
    checksums: tuple[str, ...]


def cached(folder: Path, manifest: Manifest, split: str, decode: Callable[[], Arrays]) -> Arrays:
    """The split from the cache, or from `decode()`, which verifies the shards and fills it."""
    shape = (manifest.channels, *manifest.image_size)
    return _cached(_Entry(folder, manifest, [split], split, shape, np.dtype("u1")), decode)


def cached_sums(
    location: DatasetLocation,
    manifest: Manifest,
    splits: Sequence[str],
    columns: int,
    measure: Callable[[], Tables],
) -> Tables:
    """A table of the images of all these splits from the cache, or from `measure()`, which verifies
    the shards and fills it. Of a URL only where `HPC_MLP_CACHE` names a place."""
    folder = None if is_url(location) else Path(location)
    if folder is None and not os.environ.get("HPC_MLP_CACHE"):
        return measure()
    name = f"sums-{'-'.join(splits)}"
    return _cached(_Entry(folder, manifest, splits, name, (columns,), np.dtype("<i8")), measure)


def _cached(entry: _Entry, make: Callable[[], tuple[Any, Any]]) -> tuple[Any, Any]:
    found = entry.read()
    if found is not None:
        return found
    try:
        entry.folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return make()
    with _lock(entry.path(".lock"), entry.patience) as held:
        # Another process may have written it while we waited.
        found = entry.read()
        if found is not None:
            return found
        stats = entry.stats()
        arrays = make()
        entry.write(*arrays, stats, clean=held)
    return arrays


def files(shards: Path) -> list[Path]:
    """The cache's files of the shards folder `shards`; those that `HPC_MLP_CACHE` put elsewhere may
    be of other datasets, and are not among them."""
    found = sorted((shards / _FOLDER).glob("*-*"))
    return [path for path in found if path.suffix in (".npy", ".json")]


@contextlib.contextmanager
def _lock(path: Path, patience: float) -> Iterator[bool]:
    """Hold the lock. Yields False without: no locks here, or none had in `patience` seconds."""
    try:
        file = path.open("a")
    except OSError:
        yield False
        return
    with file:
        yield lock(file, patience)


class _Entry:
    """The files of one array, `shape` for each image of some splits of one dataset. `folder`: of
    the shards; None: they lie at a URL."""

    def __init__(
        self,
        folder: Path | None,
        manifest: Manifest,
        splits: Sequence[str],
        name: str,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
    ) -> None:
        place = os.environ.get("HPC_MLP_CACHE")
        self.folder = Path(place).expanduser() if place else (folder or Path()) / _FOLDER
        self._shards_folder = folder
        self._manifest, self._splits, self._dtype = manifest, splits, dtype
        records = [manifest.split(split) for split in splits]
        self._shards = [shard for record in records for shard in record.shards]
        # A manifest may come from anywhere.
        self._stem = re.sub(r"[^\w-]", "_", f"{manifest.digest}-{name}")
        self._shape = (sum(record.num_images for record in records), *shape)
        header = io.BytesIO()
        about = {"descr": dtype.str, "fortran_order": False, "shape": self._shape}
        np.lib.format.write_array_header_1_0(header, about)
        self._header = header.getvalue()
        # Whoever decodes slower than 20 MB of pixels a second is taken for stuck.
        self.patience = 60.0 + self._shape[0] * manifest.num_features / 20e6

    def path(self, suffix: str) -> Path:
        return self.folder / f"{self._stem}{suffix}"

    def read(self) -> tuple[NDArray[Any], NDArray[np.int64]] | None:
        """Array and labels, or None where there are none or they are not what was written.

        UserError where a shard changed since and is no longer what the manifest names."""
        try:
            note = checked.read(self.path(".json"), _Note, "")
            array = self._map()
        except (RunError, OSError):
            return None
        if note is None or array is None:
            return None
        labels = np.array(note.labels, dtype=np.int64)
        intact = (
            [shard[0] for shard in note.shards] == [shard.sha256 for shard in self._shards]
            and self._are_counted(labels)
            and list(note.checksums) == _checksums(array, labels)
        )
        if not intact:
            return None
        now = self.stats()
        if now != note.shards:
            for shard, old, new in zip(self._shards, note.shards, now, strict=True):
                if old != new and self._shards_folder is not None:
                    check_shard(self._shards_folder, shard)
            with contextlib.suppress(OSError):
                self._write_note(note.model_copy(update={"shards": now}))
        return array, labels

    def _are_counted(self, labels: NDArray[np.int64]) -> bool:
        ends = np.cumsum([self._manifest.split(name).num_images for name in self._splits])
        return len(labels) == ends[-1] and all(
            are_counted(part, self._manifest, name)
            for name, part in zip(self._splits, np.split(labels, ends[:-1]), strict=True)
        )

    def _map(self) -> NDArray[Any] | None:
        """The array; None where the file, by its header and size, is another."""
        path, size = self.path(".npy"), math.prod(self._shape) * self._dtype.itemsize
        with checked.open_file(path) as file:
            whole = file.read(len(self._header)) == self._header
            whole &= os.fstat(file.fileno()).st_size == len(self._header) + size
            if not whole:
                return None
            return np.memmap(file, self._dtype, "c", len(self._header), self._shape)

    def write(
        self, array: NDArray[Any], labels: NDArray[np.int64], stats: Stats, *, clean: bool
    ) -> None:
        """Array first, note last: a note is only there with its array. What it cannot write, it
        leaves out.

        `stats` are the shards' from before they were decoded. `clean` (only while the lock is held)
        removes what killed processes left."""
        with contextlib.suppress(OSError):
            if clean:
                for leftover in self.folder.glob(f".{self._stem}.*"):
                    leftover.unlink(missing_ok=True)
            if shutil.disk_usage(self.folder).free < 2 * array.nbytes:
                return
            with replacing(self.path(".npy")) as temporary, temporary.open("xb") as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
            sums = tuple(_checksums(array, labels))
            self._write_note(
                _Note(format=1, shards=stats, labels=tuple(labels.tolist()), checksums=sums)
            )

    def _write_note(self, note: _Note) -> None:
        with replacing(self.path(".json")) as temporary:
            temporary.write_text(note.model_dump_json())

    def stats(self) -> Stats:
        """Of the shards as they are now; a missing one has size −1."""
        stats: list[tuple[str | int, ...]] = []
        for shard in self._shards:
            try:
                if self._shards_folder is None:
                    raise FileNotFoundError
                found = (self._shards_folder / shard.name).stat()
            except FileNotFoundError:
                stats.append((shard.sha256, -1, -1, -1))
            else:
                stats.append((shard.sha256, found.st_size, found.st_mtime_ns, found.st_ino))
        return tuple(stats)


def are_counted(labels: NDArray[np.int64], manifest: Manifest, split: str) -> bool:
    """Whether the labels [N] of a whole split are as many of each class as the manifest says."""
    counts = manifest.split(split).class_counts
    if len(labels) and labels.max() >= len(counts):
        return False
    return bool(np.array_equal(np.bincount(labels, minlength=len(counts)), counts))


def _checksums(array: NDArray[Any], labels: NDArray[np.int64]) -> list[str]:
    """sha256 of the labels, then of the array in pieces; hashing releases the interpreter lock."""
    flat = array.reshape(-1).view(np.uint8)

    def one(block: tuple[int, int]) -> str:
        return hashlib.sha256(flat[block[0] : block[1]].data).hexdigest()

    with ThreadPoolExecutor(max_workers=num_cpus()) as pool:
        return [
            hashlib.sha256(labels.data).hexdigest(),
            *pool.map(one, blocks(flat.size, _HASHED_AT_ONCE)),
        ]
