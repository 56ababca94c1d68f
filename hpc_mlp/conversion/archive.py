"""Where images come from: a ZIP, a tar, a folder, or several of them, behind one small interface.

A source lists its entries once (names and numbers only, compact: a million entries take about 100
MB) and reads an entry's bytes by its index, from any process. Nothing is ever unpacked under the
names it brings."""

from __future__ import annotations

import bisect
import hashlib
import os
import stat
import weakref
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from hpc_mlp.errors import RejectError, UserError, printable
from hpc_mlp.files.digest import file_sha256

# An entry larger than this is not an image that we would decode.
MAX_ENTRY_BYTES = 1 << 30


class Names(Sequence[str]):
    """Many names in one block of bytes: a list of `str` would take five times the memory."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._text = bytearray()
        self._ends = array("Q")
        for name in names:
            self.append(name)

    def append(self, name: str) -> None:
        self._text += name.encode("utf-8", "surrogateescape")
        self._ends.append(len(self._text))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:  # type: ignore[override]  # no slices
        if not 0 <= index < len(self._ends):
            raise IndexError(index)
        start = self._ends[index - 1] if index else 0
        return self._text[start : self._ends[index]].decode("utf-8", "replace")

    def __iter__(self) -> Iterator[str]:
        start = 0
        for end in self._ends:
            yield self._text[start:end].decode("utf-8", "replace")
            start = end


class Source(Protocol):
    """`problems` holds what the listing alone already rules out: index → reason."""

    label: str
    names: Names
    problems: dict[int, str]

    def read(self, index: int, limit: int = MAX_ENTRY_BYTES) -> bytes:
        """The bytes of entry `index`. RejectError where they cannot be had whole and unharmed, or
        are more than `limit`: then no more than that is held in memory."""

    def sha256(self) -> str:
        """Of everything the source holds; another content gives another sum."""

    def close(self) -> None:
        """Give back what it holds open, which else happens with its last reference."""


class FolderSource:
    """Files below a folder, in the order of their names. Links to files and folders are followed:
    the user's own folder is trusted to point where it likes."""

    def __init__(self, root: Path) -> None:
        self.label, self.root = root.resolve().name, root
        self.problems: dict[int, str] = {}
        self.names = Names(sorted(self._walk()))

    def _walk(self) -> Iterator[str]:
        seen: set[tuple[int, int]] = set()
        for folder, folders, files in os.walk(self.root, followlinks=True):
            status = os.stat(folder)
            # A link that leads back up.
            if (status.st_dev, status.st_ino) in seen:
                folders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            for name in files:
                yield Path(folder, name).relative_to(self.root).as_posix()

    def read(self, index: int, limit: int = MAX_ENTRY_BYTES) -> bytes:
        path = self.root / self.names[index]
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                raise RejectError("not a regular file")
            check_size(status.st_size, limit)
            return path.read_bytes()
        except OSError as error:
            raise RejectError(f"cannot be read: {error.strerror or error}") from None

    def sha256(self) -> str:
        total = hashlib.sha256()
        for index, name in enumerate(self.names):
            try:
                data = self.read(index)
            except RejectError as error:
                data = str(error).encode()
            total.update(f"{name}\0{len(data)}\0".encode("utf-8", "surrogateescape") + data)
        return total.hexdigest()

    def close(self) -> None:
        pass


class FileSource(FolderSource):
    """Single files, wherever they are: `paths` below `root`."""

    def __init__(
        self, paths: Sequence[Path], root: Path = Path(), label: str = "image files"
    ) -> None:
        self.label, self.root = label, root
        self.problems = {}
        self.names = Names(str(path) for path in paths)


class SeveralSources:
    """One after the other, as if they were one. `label`: by default that of each."""

    def __init__(self, sources: Sequence[Source], label: str | None = None) -> None:
        self.sources = sources
        self.label = label or " + ".join(source.label for source in sources)
        self.names, self.problems, self._starts = Names(), {}, [0]
        for source in sources:
            start = len(self.names)
            for name in source.names:
                self.names.append(name)
            self.problems.update(
                {start + index: reason for index, reason in source.problems.items()}
            )
            self._starts.append(len(self.names))

    def parts(self) -> list[range]:
        return [range(a, b) for a, b in zip(self._starts[:-1], self._starts[1:], strict=True)]

    def _place(self, index: int) -> tuple[Source, int]:
        which = bisect.bisect_right(self._starts, index) - 1
        return self.sources[which], index - self._starts[which]

    def read(self, index: int, limit: int = MAX_ENTRY_BYTES) -> bytes:
        source, inner = self._place(index)
        return source.read(inner, limit)

    def sha256(self) -> str:
        sums = "".join(source.sha256() for source in self.sources)
        return hashlib.sha256(sums.encode()).hexdigest()

    def close(self) -> None:
        for source in self.sources:
            source.close()


def full_names(source: Source, entries: npt.NDArray[np.uint32]) -> Iterator[str]:
    """The names of `entries`; where they are of several archives, each after its archive's."""
    inner, starts = [source], np.zeros(1, np.int64)
    if isinstance(source, SeveralSources):
        inner = list(source.sources)
        starts = np.array([part.start for part in source.parts()])
    # Of empty ones that begin where the next does, the last is meant.
    which = np.searchsorted(starts, entries, side="right") - 1
    several = len(np.unique(which)) > 1
    # As lists of Python numbers, those of a million images would take much memory.
    for entry, number in zip(entries, which, strict=True):
        name = source.names[int(entry)]
        yield f"{inner[number].label}/{name}" if several else name


class FileWithEntries:
    """What ZIP and tar have in common: one file, held open, whose entries lie at an offset each."""

    def __init__(self, path: Path) -> None:
        self.path, self.label = path, path.name
        self.names = Names()
        self.problems: dict[int, str] = {}
        # In bytes.
        self._offset, self._stored = array("Q"), array("Q")

    def _hold(self, path: Path) -> None:
        """Open the file that entries are read from. It is closed by `close`, or with the last
        reference to this."""
        self._fd = open_file(path)
        self._closed = weakref.finalize(self, os.close, self._fd)

    def close(self) -> None:
        self._closed()

    def _reject_repeated_names(self) -> None:
        for index in repeated_names(self.names):
            self.problems.setdefault(index, "its name is an earlier entry's name")

    def read(self, index: int, limit: int = MAX_ENTRY_BYTES) -> bytes:
        if index in self.problems:
            raise RejectError(self.problems[index])
        return self._bytes_of(index, limit)

    def _bytes_of(self, index: int, limit: int) -> bytes:
        raise NotImplementedError

    def sha256(self) -> str:
        return file_sha256(self.path)


def check_size(size: int, limit: int) -> None:
    """RejectError where `size` bytes are more than `limit`."""
    if size > limit:
        raise RejectError(f"larger than {limit >> 20} MiB")


def read_at(fd: int, length: int, offset: int) -> bytes:
    """`length` bytes at `offset`; fewer only at the end of the file."""
    data = os.pread(fd, length, offset)
    while len(data) < length and (more := os.pread(fd, length - len(data), offset + len(data))):
        data += more
    return data


def open_file(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    except OSError as error:
        raise UserError(f"{printable(path)} cannot be opened: {error.strerror}.") from None


def repeated_names(names: Names) -> list[int]:
    """Indices of the names that an earlier entry has, without a set of a million strings."""
    hashes = np.fromiter((hash(name) for name in names), np.int64, len(names))
    order = np.argsort(hashes, kind="stable")
    same = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
    candidates = sorted({int(order[i + step]) for i in same.tolist() for step in (0, 1)})
    first: dict[str, int] = {}
    return [index for index in candidates if first.setdefault(names[index], index) != index]
