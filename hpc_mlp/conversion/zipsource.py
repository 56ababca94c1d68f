"""A ZIP read in place, by byte ranges.

Not `zipfile`: its listing takes about 0.7 kB and 8 µs an entry, and each reader needs its own. This
one takes about 80 bytes and 2 µs, is shared by all worker processes, and looks for hostile entries
while it lists."""

from __future__ import annotations

import io
import os
import stat
import struct
import zlib
from array import array
from pathlib import Path

import numpy as np

from hpc_mlp.conversion.archive import MAX_ENTRY_BYTES, FileWithEntries, check_size, read_at
from hpc_mlp.errors import RejectError, UserError, printable

_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
# An entry of the list, without its versions, times and disk: signature, system, flags, method, CRC,
# packed and full size, lengths of name, extra field and comment, attributes, offset.
_CENTRAL = struct.Struct("<4sxBxx2H4x3L3H4x2L")
_LOCAL = struct.Struct("<4s5H3L2H")
# Bytes; about 20 million entries.
_MAX_DIRECTORY = 2 << 30
# Bytes; larger entries are read in pieces, so that they are not in memory twice.
_AT_ONCE = 4 << 20
# An entry of more than a MiB that shrank further than this is a decompression bomb.
MAX_RATIO = 200

STORED, DEFLATED = 0, 8
_METHODS = {1: "Shrink", 6: "Implode", 9: "Deflate64", 12: "BZIP2", 14: "LZMA"}
_METHODS |= {93: "Zstandard", 95: "XZ"}


class ZipSource(FileWithEntries):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._full, self._crc, self._method = array("Q"), array("I"), array("B")
        self._hold(path)
        try:
            self._list(os.fstat(self._fd).st_size)
            self._find_overlaps()
            self._reject_repeated_names()
        except BaseException as error:
            # Whoever keeps the error keeps this object too.
            self.close()
            if isinstance(error, struct.error | IndexError):
                raise self._unreadable("its list of entries is damaged") from None
            raise

    def _unreadable(self, why: str) -> UserError:
        return UserError(
            f"{printable(self.path)} cannot be read as a ZIP: {why}. "
            f"Is it a ZIP, and complete? Check it with `unzip -t`, or download it again."
        )

    def _list(self, size: int) -> None:
        """Read the central directory into the arrays."""
        offset, length, shift = self._find_directory(size)
        directory = read_at(self._fd, length, offset)
        at = 0
        while at + _CENTRAL.size <= length:
            signature, system, *fields, attributes, local = _CENTRAL.unpack_from(directory, at)
            flags, method, crc, packed, full, n_name, n_extra, n_comment = fields
            if signature != b"PK\1\2":
                raise self._unreadable("its list of entries is damaged")
            at += _CENTRAL.size
            name = directory[at : at + n_name]
            if 0xFFFFFFFF in (packed, full, local):
                extra = directory[at + n_name : at + n_name + n_extra]
                full, packed, local = _zip64(extra, full, packed, local)
            at += n_name + n_extra + n_comment
            text, problem = _decode_name(name, bool(flags & 0x800))
            # On Unix the kind of file.
            mode = attributes >> 16 if system == 3 else 0
            problem = problem or _problem(flags, mode, method, packed, full)
            if problem:
                self.problems[len(self.names)] = problem
            self.names.append(text)
            self._offset.append(min(local + shift, 2**63))
            self._stored.append(packed)
            self._full.append(full)
            self._crc.append(crc)
            self._method.append(min(method, 255))
        if at != length:
            raise self._unreadable("its list of entries is damaged")

    def _find_directory(self, size: int) -> tuple[int, int, int]:
        """Offset and length of the central directory; length of what was put before the ZIP."""
        tail_start = max(0, size - 65_536 - _END.size - 20 - _END64.size)
        tail = read_at(self._fd, size - tail_start, tail_start)
        end = _end_record(tail)
        if end < 0:
            raise self._unreadable("the list of entries at its end is missing")
        _, disk, _, _, _, length, offset, _ = _END.unpack_from(tail, end)
        directory_end = tail_start + end
        locator = tail.rfind(b"PK\6\7", 0, end)
        if locator == end - 20 and locator >= 0:
            directory_end = self._zip64_end(
                struct.unpack_from("<Q", tail, locator + 8)[0], tail_start + locator
            )
            record = _END64.unpack(read_at(self._fd, _END64.size, directory_end))
            disk, length, offset = record[4], record[8], record[9]
        shift = directory_end - length - offset
        if disk or shift < 0 or length > _MAX_DIRECTORY:
            raise self._unreadable(
                "the list of entries at its end does not fit the file (cut short, or in parts)"
            )
        return offset + shift, length, shift

    def _zip64_end(self, stated: int, locator: int) -> int:
        """Where the ZIP64 end record lies: as stated, or right before its locator."""
        for place in (stated, locator - _END64.size):
            if 0 <= place <= locator - _END64.size and read_at(self._fd, 4, place) == b"PK\6\6":
                return place
        raise self._unreadable("its ZIP64 record is damaged")

    def _find_overlaps(self) -> None:
        """Entries whose bytes are also another entry's: the trick of the densest ZIP bombs."""
        if len(self.names) < 2:
            return
        start = np.frombuffer(self._offset, np.uint64).astype(np.int64)
        end = start + _LOCAL.size + np.frombuffer(self._stored, np.uint64).astype(np.int64)
        order = np.argsort(start, kind="stable")
        reach = np.maximum.accumulate(end[order])
        # Begins before an earlier one has ended.
        later = np.flatnonzero(start[order][1:] < reach[:-1]) + 1
        for place in later.tolist():
            self.problems.setdefault(int(order[place]), "overlaps another entry")

    def _bytes_of(self, index: int, limit: int) -> bytes:
        offset, packed, full = self._offset[index], self._stored[index], self._full[index]
        check_size(max(packed, full), limit)
        begin = packed if packed <= _AT_ONCE else 0
        # 512: name and extra field, mostly
        block = read_at(self._fd, _LOCAL.size + 512 + begin, offset)
        if len(block) < _LOCAL.size or block[:4] != b"PK\3\4":
            raise RejectError("its place in the ZIP holds something else")
        n_name, n_extra = struct.unpack_from("<2H", block, 26)
        begin = _LOCAL.size + n_name + n_extra
        deflated = self._method[index] == DEFLATED
        if packed > _AT_ONCE and deflated:
            data = self._inflated(offset + begin, packed, full)
        else:
            data = block[begin : begin + packed]
            if len(data) < packed:
                data = read_at(self._fd, packed, offset + begin)
            if len(data) < packed:
                raise RejectError("cut short")
            if deflated:
                try:
                    data = zlib.decompressobj(-15).decompress(data, full + 1)
                except zlib.error:
                    raise RejectError("its compressed data is damaged") from None
        if len(data) != full:
            raise RejectError("its size is not the one stated")
        if zlib.crc32(data) != self._crc[index]:
            raise RejectError("its checksum is wrong (damaged data)")
        return data

    def _inflated(self, offset: int, packed: int, full: int) -> bytes:
        """The unpacked bytes, at most `full` + 1, without all packed ones in memory beside them."""
        unpacker, unpacked = zlib.decompressobj(-15), io.BytesIO()
        for at in range(0, packed, _AT_ONCE):
            piece = read_at(self._fd, min(_AT_ONCE, packed - at), offset + at)
            if len(piece) < min(_AT_ONCE, packed - at):
                raise RejectError("cut short")
            while piece and not unpacker.eof and unpacked.tell() <= full:
                try:
                    unpacked.write(
                        unpacker.decompress(piece, min(_AT_ONCE, full + 1 - unpacked.tell()))
                    )
                except zlib.error:
                    raise RejectError("its compressed data is damaged") from None
                piece = unpacker.unconsumed_tail
        if unpacked.tell() <= full:
            # A few bytes for which there was no room.
            unpacked.write(unpacker.flush())
        return unpacked.getvalue()


def _end_record(tail: bytes) -> int:
    """Where the end record begins, -1 if nowhere. Its signature may stand in the comment after it
    as well, so that the one whose comment ends with the file is taken, else the last."""
    last = at = tail.rfind(b"PK\5\6", 0, len(tail) - _END.size + 4)
    while at >= 0:
        if at + _END.size + _END.unpack_from(tail, at)[7] == len(tail):
            return at
        at = tail.rfind(b"PK\5\6", 0, at)
    return last


def _decode_name(name: bytes, is_utf8: bool) -> tuple[str, str]:
    """The name and, where it is not what it claims, the reason to reject the entry. Without the
    UTF-8 flag most tools write UTF-8 too; the rest is the ZIP's own code page 437."""
    try:
        text = name.decode("utf-8")
    except UnicodeDecodeError:
        if is_utf8:
            return name.decode("utf-8", "replace"), "its name is not valid UTF-8"
        text = name.decode("cp437")
    if "\0" in text:
        return text.replace("\0", "�"), "its name holds a zero byte"
    return text.replace("\\", "/"), ""


def _problem(flags: int, mode: int, method: int, packed: int, full: int) -> str:
    """Why the entry cannot be taken, by what the list says of it; "" where it can."""
    if flags & 0x41:
        return "encrypted"
    if stat.S_IFMT(mode) and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        return "a symbolic link" if stat.S_ISLNK(mode) else "not a regular file"
    if method not in (STORED, DEFLATED):
        way = _METHODS.get(method, f"method {method}")
        return f"compressed with {way}, which is not supported"
    if full > MAX_ENTRY_BYTES or packed > MAX_ENTRY_BYTES:
        return f"larger than {MAX_ENTRY_BYTES >> 20} MiB"
    if full > 1 << 20 and full > MAX_RATIO * packed:
        return f"a decompression bomb (unpacks to {full // max(packed, 1)} times its size)"
    return ""


def _zip64(extra: bytes, full: int, packed: int, local: int) -> tuple[int, int, int]:
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            values = list(
                struct.unpack_from(f"<{min(length, len(extra) - at - 4) // 8}Q", extra, at + 4)
            )
            full = values.pop(0) if full == 0xFFFFFFFF and values else full
            packed = values.pop(0) if packed == 0xFFFFFFFF and values else packed
            local = values.pop(0) if local == 0xFFFFFFFF and values else local
            break
        at += 4 + length
    return full, packed, local
