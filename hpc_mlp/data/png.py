"""A quick way to the pixels of the PNGs that `convert` writes."""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

_MAGIC = b"\x89PNG\r\n\x1a\n"
# Channels → colour type.
_COLOUR = {1: 0, 3: 2}


def decode_plain(data: bytes, height: int, width: int, channels: int) -> NDArray[np.uint8] | None:
    """uint8 [H, W, C] of an 8-bit PNG whose rows all use one filter, None, Sub or Up: inflated and at most summed up.

    Twice as fast as Pillow on small images, and most of it without the interpreter lock. None where the file
    is any other PNG; ValueError or zlib.error where it is damaged. The chunk CRCs are not looked at: inflate's own
    checksum covers the pixels.
    """
    shape = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big")
    if data[:8] != _MAGIC or data[12:29] != shape + bytes((8, _COLOUR[channels], 0, 0, 0)):
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
    size = height * (1 + width * channels)
    # One byte more than there should be, so that inflate comes to the end and its checksum, and no further.
    inflate = zlib.decompressobj()
    rows = np.frombuffer(inflate.decompress(b"".join(parts), size + 1), dtype=np.uint8)
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
