"""Quick ways to the pixels of plain PNGs, such as `convert` writes."""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

_START = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
# In a header after height and width: 8 bits a value, gray or RGB, not interlaced → channels.
_CHANNELS = {bytes((8, 0, 0, 0, 0)): 1, bytes((8, 2, 0, 0, 0)): 3}


def packed_rows(data: bytes) -> tuple[tuple[int, int, int], bytes] | None:
    """(height, width, channels) and the deflated rows of a PNG of 8 bits a value, gray or RGB, that
    holds nothing besides its pixels. None where the file is any other. No checksum is looked at."""
    channels = _CHANNELS.get(data[24:29])
    if channels is None or data[:16] != _START:
        return None
    parts = []
    position = 33
    while (kind := data[position + 4 : position + 8]) == b"IDAT":
        end = position + 8 + int.from_bytes(data[position : position + 4], "big")
        parts.append(data[position + 8 : end])
        position = end + 4
    if kind != b"IEND":
        return None
    height, width = int.from_bytes(data[20:24], "big"), int.from_bytes(data[16:20], "big")
    return (height, width, channels), b"".join(parts)


def decode_plain(data: bytes, height: int, width: int, channels: int) -> NDArray[np.uint8] | None:
    """uint8 [H, W, C] of a plain PNG whose rows all use one filter, None, Sub or Up: inflated and
    at most summed up.

    Twice as fast as Pillow on small images, and most of it without the interpreter lock. None where
    the file is any other PNG; ValueError or zlib.error where it is damaged. The chunk CRCs are not
    looked at: inflate's own checksum covers the pixels."""
    found = packed_rows(data)
    if found is None or found[0] != (height, width, channels):
        return None
    size = height * (1 + width * channels)
    # One byte more than there should be: inflate comes to its end and checksum, no further.
    inflate = zlib.decompressobj()
    rows = np.frombuffer(inflate.decompress(found[1], size + 1), dtype=np.uint8)
    if len(rows) != size or not inflate.eof:
        raise ValueError("it holds more or fewer pixels than it says")
    rows = rows.reshape(height, 1 + width * channels)
    kinds = bytes(rows[:, 0])
    pixels = rows[:, 1:].reshape(height, width, channels)
    if kinds == b"\0" * height:
        return pixels
    if kinds[1:] == b"\2" * (height - 1) and kinds[0] in (0, 2):
        return np.add.accumulate(pixels, axis=0, dtype=np.uint8)
    if kinds == b"\1" * height:
        return np.add.accumulate(pixels, axis=1, dtype=np.uint8)
    return None
