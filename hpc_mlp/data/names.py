"""`names.jsonl`: the name that each image of the shards has in its archive, a JSON string a line.

Line r + 1 is of row r, which is the image's key too: train, val and test one after the other, each
in the order of its shards."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hpc_mlp.errors import UserError
from hpc_mlp.terminal.text import json_text

if TYPE_CHECKING:
    from hpc_mlp.data.manifest import Manifest

NAME = "names.jsonl"
# Bytes; no name is longer.
_LONGEST = 1 << 20


def write_names(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Write `names`, in the order of rows; what the manifest says of the file."""
    digest = hashlib.sha256()
    with (folder / NAME).open("xb") as file:
        for name in names:
            line = f"{json_text(name)}\n".encode()
            digest.update(line)
            file.write(line)
    return {"file": NAME, "sha256": digest.hexdigest()}


def read_names(folder: Path, manifest: Manifest, rows: Iterable[int]) -> dict[int, str] | None:
    """The names of these rows; None where the conversion kept none, as before 0.2. UserError where
    the file is gone or not as the manifest says."""
    from hpc_mlp.files.checked import open_file

    if manifest.names is None:
        return None
    path, wanted, found = folder / manifest.names.file, set(rows), dict[int, str]()
    digest, row, why = hashlib.sha256(), 0, "its bytes are not those that were written"
    try:
        with open_file(path) as file:
            for row, line in enumerate(iter(partial(file.readline, _LONGEST), b""), 1):
                digest.update(line)
                if row - 1 in wanted:
                    found[row - 1] = str(json.loads(line))
    except OSError as error:
        why = error.strerror or str(error)
    except ValueError:
        why = f"line {row} is no JSON"
    else:
        images = sum(split.num_images for split in manifest.splits.values())
        if digest.hexdigest() == manifest.names.sha256 and row == images:
            return found
    raise UserError(f"{path} cannot be used ({why}). Convert the images again.")
