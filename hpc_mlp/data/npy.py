"""An image of a shard as a NumPy file: uint8 [H, W, C] behind a header of a fixed text."""

from __future__ import annotations

import functools
import io
import threading

import numpy as np
from numpy.typing import NDArray

_parsing = threading.Lock()


def encode_npy(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, pixels, allow_pickle=False)
    return buffer.getvalue()


def decode_npy(data: bytes, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """The array of a file that `encode_npy` wrote for this shape, a view of `data`; of any other
    file what NumPy reads, whatever its shape and dtype. ValueError where it is damaged."""
    header = _header(shape)
    if data.startswith(header):
        return np.frombuffer(data, np.uint8, offset=len(header)).reshape(shape)
    # One thread at a time: NumPy's reader parses the header as Python source, and two threads that
    # do so at once can fail with "AST constructor recursion depth mismatch" (CPython 3.11).
    with _parsing:
        array: NDArray[np.uint8] = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    return array


@functools.lru_cache(maxsize=8)
def _header(shape: tuple[int, int, int]) -> bytes:
    return encode_npy(np.empty(shape, np.uint8))[: -int(np.prod(shape))]
