"""A tar, read by offset; a compressed one is decompressed once to a temporary file."""

from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hpc_mlp.conversion.archive import MAX_ENTRY_BYTES, FileWithEntries, check_size, read_at
from hpc_mlp.conversion.zipsource import MAX_RATIO
from hpc_mlp.errors import RejectError, UserError, printable

# Bytes: what unpacks to less is no bomb, however well it was packed.
_MIN_BOMB = 1 << 30


class TarSource(FileWithEntries):
    def __init__(self, path: Path, scratch: Path) -> None:
        super().__init__(path)
        plain = _decompressed(path, scratch)
        try:
            with tarfile.open(plain, "r:") as tar:
                self._list(tar)
        except (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError) as error:
            raise _unreadable(path, error) from None
        self._reject_repeated_names()
        self._hold(plain)
        if plain != path:
            # The open file lives on, the name need not.
            plain.unlink()

    def _list(self, tar: tarfile.TarFile) -> None:
        for member in tar:
            tar.members = []  # type: ignore[attr-defined]  # else every header stays in memory
            if member.isdir():
                continue
            index, name = len(self.names), member.name.replace("\0", "�")
            while name.startswith("./"):
                name = name[2:]
            if member.issym() or member.islnk():
                self.problems[index] = "a link"
            elif not member.isreg() or member.issparse():
                self.problems[index] = "not a regular file"
            elif member.size > MAX_ENTRY_BYTES:
                self.problems[index] = f"larger than {MAX_ENTRY_BYTES >> 20} MiB"
            self.names.append(name)
            self._offset.append(member.offset_data)
            self._stored.append(member.size)

    def _bytes_of(self, index: int, limit: int) -> bytes:
        check_size(self._stored[index], limit)
        data = read_at(self._fd, self._stored[index], self._offset[index])
        if len(data) < self._stored[index]:
            raise RejectError("cut short")
        return data


def _decompressed(path: Path, scratch: Path) -> Path:
    with path.open("rb") as file:
        magic = file.read(6)
    opener: Callable[[Path], Any]
    if magic[:2] == b"\x1f\x8b":
        opener = gzip.open
    elif magic[:3] == b"BZh":
        opener = bz2.open
    elif magic == b"\xfd7zXZ\0":
        opener = lzma.open
    else:
        return path
    plain = scratch / f"{path.name}.unpacked"
    limit = max(_MIN_BOMB, MAX_RATIO * path.stat().st_size)
    with opener(path) as packed, plain.open("wb") as file:
        while block := _next_block(path, packed):
            file.write(block)
            if file.tell() > limit:
                raise _unreadable(
                    path, f"a decompression bomb: unpacks to more than {MAX_RATIO} times its size"
                )
    return plain


def _next_block(path: Path, packed: Any) -> bytes:
    """What `packed` has next, b"" at its end. UserError where its bytes are damaged."""
    try:
        block: bytes = packed.read(1 << 20)
    except (EOFError, zlib.error, lzma.LZMAError, ValueError) as error:
        raise _unreadable(path, error) from None
    except OSError as error:
        # bz2 and gzip say damage so, without a number
        if error.errno is not None:
            raise
        raise _unreadable(path, error) from None
    return block


def _unreadable(path: Path, why: object) -> UserError:
    return UserError(
        f"{printable(path)} cannot be read as a tar ({printable(why)}). Is it complete? Check it "
        "with `tar tf`."
    )
