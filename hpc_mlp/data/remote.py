"""Shards that lie elsewhere: `http://…`, and every other URL that webdataset opens (`gs://…`,
`pipe:…`). No torch.

A URL names the shards folder: `http://host/photos`. Where names do not go at its end, `{}` marks
their place: `pipe:aws s3 cp s3://bucket/photos/{} -`.

What comes is bounded (a manifest by `checked.MAX_BYTES`, a shard by its size in the manifest), and
so is the wait for it: `STALL_SECONDS` without a byte, in each of a few tries. It comes from a
process of its own, which is ended with the wait: no thread and no process stays."""

from __future__ import annotations

import io
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from hpc_mlp.data.manifest import NAME, Manifest, Shard
from hpc_mlp.errors import RunError, UserError, printable
from hpc_mlp.files.checked import MAX_BYTES

# A local shards folder, or a URL.
DatasetLocation = Path | str

STALL_SECONDS = 20.0
_TRIES = 3
_POLL_SECONDS = 0.2
_PIECE = 1 << 20
# -f: an error page is no body. A redirect stays on the network. curl tries again by itself where
# nothing has come yet (a server that is busy); what it has written into the pipe it could not
# take back, hence the last limit, which only counts where we were killed and cannot end it.
_CURL = (
    "curl -fsSL --globoff --proto =http,https --proto-redir =http,https --connect-timeout 15 "
    "--retry 10 --retry-delay 2 --retry-max-time 15 --speed-limit 1 --speed-time 25 --url"
).split()


def is_url(location: DatasetLocation) -> bool:
    return isinstance(location, str) and ("://" in location or location.startswith("pipe:"))


def dataset_location(location: Path | str) -> DatasetLocation:
    """What a user wrote: a URL stays, all else is a folder."""
    return location if is_url(location) else Path(location)


def load_manifest(location: DatasetLocation, command: str = "train") -> Manifest:
    """The manifest of a local folder or a URL. UserError where there is none or it cannot be used;
    `command` as in `Manifest.load`."""
    if not is_url(location):
        return Manifest.load(Path(location), command)
    url = file_url(str(location), NAME)
    try:
        content = fetch_bytes(url, MAX_BYTES)
    except RunError as error:
        raise UserError(f"{error} Is it a shards folder of hpc-mlp convert?") from None
    return Manifest.parse(content, url)


def fetch_bytes(url: str, limit: int) -> bytes:
    """What is at `url`. UserError where more than `limit` bytes come, RunError where several tries
    fail."""
    file = io.BytesIO()
    _fetch(url, file, limit)
    return file.getvalue()


def file_url(url: str, name: str) -> str:
    """The URL of a file of the folder."""
    return url.replace("{}", name) if "{}" in url else f"{url.rstrip('/')}/{name}"


def download(url: str, shard: Shard, stop: threading.Event | None = None) -> IO[bytes]:
    """An unnamed temporary file with as many bytes as the shard has; whether they are the shard's
    is not known yet.

    UserError where more come, RunError where several tries fail, or once `stop` is set."""
    file = tempfile.TemporaryFile()  # noqa: SIM115  (the caller closes it)
    try:
        _fetch(file_url(url, shard.name), file, shard.bytes, shard.bytes, stop)
    except BaseException:
        file.close()
        raise
    return file


def _fetch(
    url: str,
    file: IO[bytes],
    limit: int,
    expected: int | None = None,
    stop: threading.Event | None = None,
) -> None:
    """Write what is at `url` into `file`, trying again where fewer than `expected` bytes came."""
    reason = ""
    for _ in range(_TRIES):
        file.seek(0)
        file.truncate()
        try:
            with closing(_pieces(url, stop)) as pieces:
                for piece in pieces:
                    if file.tell() + len(piece) > limit:
                        raise UserError(
                            f"{printable(url)} is damaged: more than {limit:,} bytes came."
                        )
                    file.write(piece)
            file.flush()
        except UserError:
            raise
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            continue
        if expected is None or file.tell() == expected:
            return
        reason = f"{file.tell():,} of {expected:,} bytes came"
    raise RunError(f"cannot read {printable(url)} ({printable(reason)}; {_TRIES} tries).")


def _pieces(url: str, stop: threading.Event | None) -> Generator[bytes]:
    """The body as it comes. OSError where it does not come whole; RunError once `stop` is set."""
    with _process(url) as (stream, problem):
        waiting = select.poll()
        waiting.register(stream, select.POLLIN)
        heard = time.monotonic()
        while True:
            if stop is not None and stop.is_set():
                raise RunError(f"reading {printable(url)} was interrupted.")
            if waiting.poll(1000 * _POLL_SECONDS):
                if not (piece := os.read(stream.fileno(), _PIECE)):
                    break
                yield piece
                heard = time.monotonic()
            elif time.monotonic() - heard > STALL_SECONDS:
                raise OSError(f"no byte came in {STALL_SECONDS:g} s")
        if text := problem():
            raise OSError(text)


@contextmanager
def _process(url: str) -> Iterator[tuple[IO[bytes], Callable[[], str]]]:
    """What the process that reads `url` puts out, and a function that waits for its end and tells
    what went wrong. With the context the process ends, and what it has started."""
    with _sigterm_unwinds(), tempfile.TemporaryFile() as errors, ExitStack() as stack:
        if url.lower().startswith(("http://", "https://")):
            process: subprocess.Popen[bytes] | None = subprocess.Popen(
                [*_CURL, url], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors
            )
            assert process is not None and process.stdout is not None
            stream: IO[bytes] = process.stdout
        else:
            # Imports torch's data tools: only where it is needed.
            from webdataset.gopen import gopen

            opened: Any = gopen(url, "rb")
            process, stream = getattr(opened, "proc", None), getattr(opened, "stream", opened)
        stack.callback(stream.close)
        if process is not None:
            stack.callback(_end, process)

        def problem() -> str:
            try:
                code = 0 if process is None else process.wait(STALL_SECONDS)
            except subprocess.TimeoutExpired:
                return "what reads it does not end"
            errors.seek(0)
            # 141: a pipeline's end that did not want all that came.
            return (
                ""
                if code in (0, 141)
                else errors.read(1000).decode(errors="replace") or f"exit {code}"
            )

        yield stream, problem


@contextmanager
def _sigterm_unwinds() -> Iterator[None]:
    """Where SIGTERM would end this process on the spot, and not the one that reads: let it leave
    this context first."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill it, and what a shell has started for `pipe:`."""
    import psutil

    if process.poll() is None:
        with suppress(psutil.Error):
            for child in psutil.Process(process.pid).children(recursive=True):
                with suppress(psutil.Error):
                    child.kill()
        process.kill()
        process.wait()
