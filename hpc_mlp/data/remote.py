"""Shards that lie elsewhere: every URL that webdataset opens (`http://…`, `s3://…`, `pipe:…`). No torch.

A URL names the shards folder: `http://host/photos`. Where names do not go at its end, `{}` marks their place:
`pipe:aws s3 cp s3://bucket/photos/{} -`.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from hpc_mlp.data.manifest import NAME, Manifest, Shard
from hpc_mlp.errors import RunError, UserError

Place = Path | str  # a local shards folder, or a URL

_PIECE = 1 << 20
_TRIES = 3


def is_url(place: Place) -> bool:
    return isinstance(place, str) and ("://" in place or place.startswith("pipe:"))


def shards_place(place: Path | str) -> Place:
    """What a user wrote: a URL stays, all else is a folder."""
    return place if is_url(place) else Path(place)


def load_manifest(place: Place) -> Manifest:
    """The manifest of a local folder or a URL. UserError where there is none or it cannot be used."""
    if not is_url(place):
        return Manifest.load(Path(place))
    url = file_url(str(place), NAME)
    try:
        content = b"".join(_pieces(url))
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot read {url} ({_reason(error)}). Is it a shards folder of hpc-mlp convert?"
        ) from None
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / NAME).write_bytes(content)
        try:
            return Manifest.load(Path(folder))
        except UserError:
            raise UserError(f"{url} cannot be used as a manifest. Is it a shards folder?") from None


def file_url(place: str, name: str) -> str:
    """The URL of a file of the folder. Names come from a manifest, and `pipe:` hands them to a shell."""
    if not re.fullmatch(r"\w[\w.-]*", name, flags=re.ASCII):
        raise UserError(
            f"the manifest at {place} names a shard {name!r}: only letters, digits, '-', '.', '_'."
        )
    return place.replace("{}", name) if "{}" in place else f"{place.rstrip('/')}/{name}"


def download(place: str, shard: Shard, stop: threading.Event | None = None) -> IO[bytes]:
    """An unnamed temporary file with the shard's bytes, checked against the manifest.

    UserError where the bytes are others, RunError where they cannot be had after several tries, or once
    `stop` is set.
    """
    url = file_url(place, shard.name)
    reason = ""
    for _ in range(_TRIES):
        file = tempfile.TemporaryFile()  # noqa: SIM115  (the caller closes it)
        digest = hashlib.sha256()
        try:
            for piece in _pieces(url):
                digest.update(piece)
                file.write(piece)
                if stop is not None and stop.is_set():
                    raise RunError(f"reading {url} was interrupted.")
            file.flush()
        except BaseException as error:
            file.close()
            if not isinstance(error, OSError | ValueError):
                raise
            reason = _reason(error)
            continue
        if digest.hexdigest() == shard.sha256:
            return file
        reason = f"{file.tell()} bytes came that are not those in {NAME}"
        cut = file.tell() < shard.bytes
        file.close()
        if not cut:  # a transfer may be cut short, but does not change bytes
            raise UserError(f"{url} is damaged: {reason}. Convert the ZIP again, or copy the shards again.")
    raise RunError(f"cannot read {url} ({reason}; {_TRIES} tries).")


def _pieces(url: str) -> Iterator[bytes]:
    from webdataset.gopen import gopen  # imports torch's data tools: only where it is needed

    with gopen(url, "rb", bufsize=_PIECE) as stream:
        while piece := stream.read(_PIECE):
            yield piece


def _reason(error: Exception) -> str:
    """webdataset names the whole command line in its errors; the exit status is what says something."""
    status = re.search(r"exit -?\d+", str(error))
    return status[0] if status else " ".join(str(error).split())[:200]
