"""The work of one conversion process: entries → encoded images in a spool, a record each."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpc_mlp.conversion import stats
from hpc_mlp.conversion.archive import Source, read_at
from hpc_mlp.data import encode
from hpc_mlp.data.decode import ImageSpec, Pixels, decode_image, image_suffix
from hpc_mlp.data.npy import encode_npy
from hpc_mlp.errors import RejectError

SUFFIXES = ("png", "jpg", "npy", "gif", "webp", "bmp", "tiff", "ppm", "jp2", "avif")

# Bytes collected for one write.
_BUFFER = 1 << 20


def record_type(channels: int) -> np.dtype[np.void]:
    """What the parent keeps of an image: about 170 bytes."""
    # Index into the source; where the image lies in which worker's spool.
    where = [("entry", np.uint32), ("spool", np.int32), ("length", np.uint32), ("offset", np.int64)]
    sums = [(name, np.int64, (channels,)) for name in ("sum", "square")]
    marks = [("digest", np.uint64, (2,)), ("print", np.uint8, (64,))]
    return np.dtype([*where, ("suffix", np.uint8), *sums, *marks])


@dataclass
class Chunk:
    """What became of a run of entries. `tones`: a row of `Measures.tones` for each record."""

    records: npt.NDArray[np.void]
    tones: npt.NDArray[np.uint8]
    # Entry, reason.
    rejects: list[tuple[int, str]]
    num_bytes: int


@dataclass
class ShardPlan:
    """One shard to write. `columns` say of each image in which spool it lies, at which offset, its
    length, the number of its suffix and its class."""

    name: str
    columns: list[npt.NDArray[Any]]
    first_key: int
    key_width: int

    def rows(self) -> Iterator[tuple[int, int, int, int, int, int]]:
        """The key, and the columns, of each image."""
        key = itertools.count(self.first_key)
        # As Python numbers a whole shard would take much memory.
        for start in range(0, len(self.columns[0]), 4096):
            part = [column[start : start + 4096].tolist() for column in self.columns]
            yield from ((next(key), *row) for row in zip(*part, strict=True))


class Worker:
    def __init__(
        self, source: Source, spec: ImageSpec, encoding: str, compress: bool, folder: Path
    ) -> None:
        self.source, self.spec, self.folder = source, spec, folder
        self.encoding, self.compress = encoding, compress
        self.number = -1
        self._spools: dict[int, int] = {}

    def _open_spool(self) -> None:
        self.number = os.getpid()
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        self._spools = {self.number: os.open(self._spool_path(self.number), flags, 0o600)}
        # Bytes handed in, bytes in the file.
        self._end = self._written = 0
        self._waiting: list[bytes] = []

    def _spool_path(self, number: int) -> Path:
        return self.folder / f"spool-{number}"

    def convert(self, entries: npt.NDArray[np.int64]) -> Chunk:
        """Decode, resize, count, encode and spool these entries."""
        if self.number != os.getpid():
            self._open_spool()
        spec = self.spec
        images = np.empty((len(entries), spec.height, spec.width, spec.channels), np.uint8)
        # Entry, suffix, length, offset.
        taken: list[tuple[int, int, int, int]] = []
        rejects: list[tuple[int, str]] = []
        num_bytes = 0
        for entry in entries.tolist():
            try:
                data = self.source.read(entry, spec.max_bytes)
                num_bytes += len(data)
                blob, suffix = self._one(data, images[len(taken)])
            except RejectError as error:
                rejects.append((entry, str(error)))
                continue
            taken.append((entry, SUFFIXES.index(suffix), len(blob), self._end))
            self._spool_out(blob)
        self._flush()
        records = np.zeros(len(taken), record_type(spec.channels))
        tones = np.empty((0, stats.tones_width(spec.channels)), np.uint8)
        if taken:
            images = images[: len(taken)]
            for name, column in zip(
                ("entry", "suffix", "length", "offset"), zip(*taken, strict=True), strict=True
            ):
                records[name] = column
            records["spool"] = self.number
            measures = stats.measure(images)
            records["sum"], records["square"] = measures.sums, measures.squares
            records["print"] = measures.prints
            tones = measures.tones
            digests = b"".join([hashlib.sha256(image.data).digest()[:16] for image in images])
            records["digest"] = np.frombuffer(digests, np.uint64).reshape(len(taken), 2)
        return Chunk(records, tones, rejects, num_bytes)

    def _spool_out(self, blob: bytes) -> None:
        self._waiting.append(blob)
        self._end += len(blob)
        if self._end - self._written > _BUFFER:
            self._flush()

    def _flush(self) -> None:
        write_all(self._spools[self.number], b"".join(self._waiting))
        self._waiting.clear()
        self._written = self._end

    def _one(self, data: bytes, out: Pixels) -> tuple[bytes, str]:
        """The stored form of an image and its suffix; its pixels go to `out`."""
        out[:] = decode_image(data, self.spec)
        if self.encoding == "png":
            return encode.encode_png(out, self.compress), "png"
        if self.encoding == "npy":
            return encode_npy(out), "npy"
        if self.encoding == "original":
            return data, image_suffix(data)
        blob = encode.encode_jpeg(out)
        # Statistics and fingerprints are of the pixels as stored.
        out[:] = decode_image(blob, self.spec)
        return blob, "jpg"

    def write_shard(self, plan: ShardPlan) -> tuple[int, str]:
        """Copy the images of `plan` into a tar; its length in bytes and its sha256."""
        digest, pending = hashlib.sha256(), list[bytes]()
        total = waiting = 0
        # In a thread, since shards may be fewer than processors and hashing needs no interpreter
        # lock.
        hasher = ThreadPoolExecutor(1)
        with hasher, (self.folder / plan.name).open("xb", buffering=0) as file:

            def flush() -> None:
                block = b"".join(pending)
                hashed = hasher.submit(digest.update, block)
                write_all(file.fileno(), block)
                hashed.result()
                pending.clear()

            for key, spool, offset, length, suffix, label in plan.rows():
                stem = f"{key:0{plan.key_width}d}"
                data = read_at(self._spool(spool), length, offset)
                image = encode.tar_member(f"{stem}.{SUFFIXES[suffix]}", data)
                named = encode.tar_member(f"{stem}.cls", str(label).encode())
                pending += (image, named)
                total += len(image) + len(named)
                waiting += len(image) + len(named)
                if waiting > _BUFFER:
                    flush()
                    waiting = 0
            pending.append(encode.tar_end(total))
            total += len(pending[-1])
            flush()
        return total, digest.hexdigest()

    def _spool(self, number: int) -> int:
        if number not in self._spools:
            self._spools[number] = os.open(self._spool_path(number), os.O_RDONLY)
        return self._spools[number]

    def close(self) -> None:
        for fd in self._spools.values():
            os.close(fd)
        self._spools.clear()
        self.number = -1


def write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
