"""`groups.npy`: which images of a shards folder belong together, since they are equal or nearly so,
or of one group that the user gave (a patient, a scene). No torch."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hpc_mlp.data.manifest import Manifest
from hpc_mlp.data.remote import DatasetLocation, fetch_bytes, file_url, is_url
from hpc_mlp.errors import DamagedError, UserError, printable
from hpc_mlp.files import checked

NAME = "groups.npy"
_AGAIN = "Convert the images again: hpc-mlp convert ZIP OUT --overwrite"
# Bytes of an .npy before its data: of one dimension, far less.
_HEADER = 4096


def encode(groups: NDArray[np.int64]) -> bytes:
    """As the file has them: an .npy of format 1.0, little-endian int64 [N]."""
    file = io.BytesIO()
    np.lib.format.write_array(file, groups.astype("<i8"), version=(1, 0))
    return file.getvalue()


def load_groups(location: DatasetLocation, manifest: Manifest) -> NDArray[np.int64] | None:
    """int64 [N] of a local shards folder or a URL: for each image, in the order of the splits
    (train, val, test) and of their tars, a number from 0 to N - 1; images of equal number belong
    together. None where the folder has none: each image is alone. UserError where the file is
    missing, or not the manifest's; RunError where a URL cannot be read."""
    if manifest.groups is None:
        return None
    name, size = manifest.groups.file, sum(s.num_images for s in manifest.splits.values())
    if is_url(location):
        where = file_url(str(location), name)
        content: bytes | None = fetch_bytes(where, 8 * size + _HEADER)
    else:
        where = str(Path(location) / name)
        try:
            content = checked.read_bytes(Path(location) / name, _AGAIN)
        except DamagedError as error:
            raise UserError(str(error)) from None
    if content is None:
        raise UserError(f"{printable(where)} is missing. {_AGAIN}")
    if hashlib.sha256(content).hexdigest() != manifest.groups.sha256:
        raise _damaged(where, "not the bytes that were written")
    return _decoded(content, size, where)


def _decoded(content: bytes, size: int, where: str) -> NDArray[np.int64]:
    """The header is read by itself: what it says of sizes is not believed."""
    file = io.BytesIO(content)
    try:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("no .npy of format 1.0")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    # What numpy's parser of a hostile header raises is not bounded.
    except Exception as error:
        raise _damaged(where, str(error)) from None
    data = content[file.tell() :]
    if shape != (size,) or dtype != np.dtype("<i8") or len(data) != 8 * size:
        raise _damaged(where, f"{dtype} of shape {shape}, not int64 for {size} images")
    groups = np.frombuffer(data, "<i8").astype(np.int64)
    if size and not (groups.min() >= 0 and groups.max() < size):
        raise _damaged(where, f"a number that is not from 0 to {size - 1}")
    return groups


def _damaged(where: str, why: str) -> UserError:
    return UserError(f"{printable(where)} is damaged ({printable(why)}). {_AGAIN}")
