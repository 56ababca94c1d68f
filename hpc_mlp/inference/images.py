"""The user's image files, folders and archives → batches of pixels as training saw them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hpc_mlp.conversion.archive import FileSource, Source
from hpc_mlp.conversion.entries import ARCHIVE_SUFFIXES, sort_out
from hpc_mlp.conversion.opening import open_source
from hpc_mlp.data.decode import ImageSpec, Pixels, training_pixels
from hpc_mlp.errors import RejectError, UserError
from hpc_mlp.machine.memory import num_cpus

MAX_BATCH_BYTES = 64 << 20


@dataclass(frozen=True)
class Decoded:
    """An image's pixels uint8 [H, W, C], or why it cannot be read."""

    name: str
    pixels: Pixels | None
    problem: str | None = None


@dataclass(frozen=True)
class _Entries:
    """Entries of one source. `rejects` (name, reason): ruled out by the listing alone."""

    source: Source
    prefix: str
    entries: Sequence[int] | npt.NDArray[np.int64]
    rejects: list[tuple[str, str]]


class Images:
    """All images at `paths`: image files, folders, ZIPs, tars. UserError where a path is none of
    these or holds no image. What counts as an image is as in a conversion."""

    def __init__(self, paths: Sequence[Path]) -> None:
        if not paths:
            raise UserError("no images are named. Give image files, a folder or a ZIP.")
        self._parts: list[_Entries] = []
        with tempfile.TemporaryDirectory(prefix="hpc-mlp-") as scratch, ExitStack() as opened:
            for path in paths:
                self._parts.append(_open(path, Path(scratch), opened))
            # None is refused: they stay open.
            opened.pop_all()

    def __len__(self) -> int:
        return self.num_entries + sum(len(part.rejects) for part in self._parts)

    @property
    def num_entries(self) -> int:
        """Of those that the listing does not rule out."""
        return sum(len(part.entries) for part in self._parts)

    def batches(
        self, spec: ImageSpec, encoding: str, batch_size: int, first: int = 0
    ) -> Iterator[list[Decoded]]:
        """From the image `first` on, decoded by threads, one batch ahead; memory does not grow with
        the number of images. Those that the listing rules out come last, as one batch."""
        size = bounded(batch_size, spec)

        def decode(entry: tuple[_Entries, int]) -> Decoded:
            part, index = entry
            name = part.prefix + part.source.names[index]
            try:
                return Decoded(
                    name, training_pixels(part.source.read(index, spec.max_bytes), spec, encoding)
                )
            except RejectError as error:
                return Decoded(name, None, str(error))

        with ThreadPoolExecutor(num_cpus(), "hpc-mlp-decode") as pool:
            waiting: list[Future[Decoded]] = []
            try:
                entries = islice(self._entries(), first, None)
                while chunk := list(islice(entries, size)):
                    ahead = [pool.submit(decode, entry) for entry in chunk]
                    if waiting:
                        yield [task.result() for task in waiting]
                    waiting = ahead
                if waiting:
                    yield [task.result() for task in waiting]
            finally:
                for task in waiting:
                    task.cancel()
        rejects = [
            Decoded(part.prefix + name, None, reason)
            for part in self._parts
            for name, reason in part.rejects
        ]
        if rejects := rejects[max(0, first - self.num_entries) :]:
            yield rejects

    def _entries(self) -> Iterator[tuple[_Entries, int]]:
        for part in self._parts:
            for index in part.entries:
                yield part, int(index)


def bounded(batch_size: int, spec: ImageSpec) -> int:
    """With which a batch of pixels takes no more than `MAX_BATCH_BYTES`."""
    return max(1, min(batch_size, MAX_BATCH_BYTES // (spec.height * spec.width * spec.channels)))


def _open(path: Path, scratch: Path, opened: ExitStack) -> _Entries:
    if path.is_file() and not _is_archive(path):
        return _Entries(FileSource([path]), "", [0], [])
    if not path.exists():
        raise UserError(f"{path} does not exist. Give image files, folders, ZIPs or tars.")
    source = opened.enter_context(closing(open_source([path], scratch)))
    found = sort_out(source)
    entries, rejects = found.images, found.rejects
    if not len(entries) and not rejects:
        raise UserError(f"{path} holds no images.")
    return _Entries(source, f"{path}/", entries, rejects)


def _is_archive(path: Path) -> bool:
    if path.suffix[1:].lower() in ARCHIVE_SUFFIXES:
        return True
    try:
        with path.open("rb") as file:
            return file.read(4) == b"PK\3\4"
    except OSError:
        # Reading it as an image says why.
        return False
