"""An archive of class-labelled images → a folder of WebDataset shards with a manifest.

One pass decodes, resizes, counts, fingerprints, encodes and spools every image, in the archive's
order, in several processes. Then the splits are drawn, with equal images kept together, and the
spooled images are copied into the shards in one global random order. Nothing depends on which
process did what."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from hpc_mlp.conversion.alterations import TONES
from hpc_mlp.conversion.archive import Source
from hpc_mlp.conversion.asked import Asked
from hpc_mlp.conversion.assemble import Assembly
from hpc_mlp.conversion.atomic_folder import check_target, new_folder
from hpc_mlp.conversion.layout import Layout, find_layout, no_images
from hpc_mlp.conversion.opening import open_source, with_labels
from hpc_mlp.conversion.pool import Pool, in_background
from hpc_mlp.conversion.settings import Settings
from hpc_mlp.conversion.worker import Worker, record_type
from hpc_mlp.data.rejects import RejectLog
from hpc_mlp.errors import RunError, UserError
from hpc_mlp.files.wrong_path import MANIFEST
from hpc_mlp.machine.memory import return_freed_memory
from hpc_mlp.terminal.output import say

# A task for a worker: so many images, or so many bytes of pixels.
CHUNK_IMAGES, CHUNK_BYTES = 64, 16 << 20


class Progress(Protocol):
    """Told how far the conversion is."""

    def start(self, layout: Layout) -> None: ...

    def advance(self, images: int, num_bytes: int, rejects: int) -> None: ...

    def phase(self, text: str) -> None: ...


class Silent:
    def start(self, layout: Layout) -> None: ...

    def advance(self, images: int, num_bytes: int, rejects: int) -> None: ...

    def phase(self, text: str) -> None: ...


class Noted(Silent):
    """Says what was recognised, where that is more than classes from folders."""

    classes: tuple[str, ...] = ()

    def start(self, layout: Layout) -> None:
        self.classes = layout.classes
        for line in layout.lines() if layout.notes else ():
            say(line)


def convert(
    paths: Sequence[Path], out: Path, settings: Settings, progress: Progress | None = None
) -> None:
    """Convert the archive at `paths` into the new folder `out`. UserError for wrong input, RunError
    for failed work; in both cases, and on Ctrl-C, nothing is left behind."""
    settings.check()
    check_target(out, settings.overwrite, MANIFEST)
    for path in paths:
        if out.resolve() == path.resolve():
            raise UserError(f"{out} is the input itself. Choose another folder for the shards.")
    try:
        with _sigterm_interrupts(), new_folder(out, settings.overwrite, MANIFEST) as folder:
            _convert(paths, folder, settings, progress or Silent())
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise RunError(
            f"{out} cannot be written: {error.strerror or error}{where}. Nothing was kept."
        ) from None
    except MemoryError:
        raise RunError(
            "not enough memory. Nothing was kept. Try fewer --workers or a smaller --size."
        ) from None


def _convert(paths: Sequence[Path], folder: Path, settings: Settings, progress: Progress) -> None:
    with read_layout(paths, folder, settings.asked) as (source, layout):
        _convert_source(source, layout, folder, settings, progress)
    for spool in folder.glob("spool-*"):
        spool.unlink()


@contextmanager
def read_layout(
    paths: Sequence[Path], scratch: Path, asked: Asked
) -> Iterator[tuple[Source, Layout]]:
    """The archive at `paths`, open, and what is in it. `scratch`: a folder that may hold temporary
    files. UserError as `open_source` and `find_layout`."""
    source, tables = open_source(paths, scratch), list[int]()
    with closing(source):
        for labels in asked.labels:
            source, table = with_labels(source, labels)
            tables.append(table)
        yield source, find_layout(source, asked, tables)


def _convert_source(
    source: Source, layout: Layout, folder: Path, settings: Settings, progress: Progress
) -> None:
    if not len(layout.entries):
        raise no_images(source, layout.rejects, len(layout.rejects))
    worker = Worker(source, settings.spec, settings.encoding, settings.compress, folder)
    count = min(settings.num_workers(), len(layout.entries) // 32 + 1)
    rejects = RejectLog(folder, source.label, settings.strict)
    with closing(worker), Pool(worker, count) as pool, rejects:
        # The pages it reads are those that the workers read.
        content = in_background(source.sha256)
        in_background(_import_for_the_end)
        progress.start(layout)
        rejects.extend(layout.rejects)
        records = _convert_all(pool, source, layout, settings, rejects, folder, progress)
        if not len(records):
            raise no_images(source, rejects.first, rejects.count)
        progress.phase("drawing splits")
        # Only now: workers ask for the same sizes again and again.
        return_freed_memory()
        assembly = Assembly(folder, source, layout, records, settings)
        assembly.draw_splits(rejects)
        progress.phase("writing shards")
        assembly.write_shards(pool)
        assembly.write_metadata(content.result(), rejects.count)


def _import_for_the_end() -> None:
    """pydantic takes 0.1 s, for which the workers need not wait."""
    import yaml  # noqa: F401

    import hpc_mlp.data.manifest  # noqa: F401


def _convert_all(
    pool: Pool[Worker],
    source: Source,
    layout: Layout,
    settings: Settings,
    rejects: RejectLog,
    folder: Path,
    progress: Progress,
) -> npt.NDArray[np.void]:
    """One record for every image taken, in the archive's order, and the tones in `folder`."""
    spec = settings.spec
    size = min(CHUNK_IMAGES, max(1, CHUNK_BYTES // (spec.height * spec.width * spec.channels)))
    entries = layout.entries
    records = np.empty(len(entries), record_type(spec.channels))
    taken = 0
    chunks = (entries[at : at + size] for at in range(0, len(entries), size))
    with (folder / TONES).open("xb") as tones:
        for chunk in pool.map(Worker.convert, chunks):
            records[taken : taken + len(chunk.records)] = chunk.records
            tones.write(chunk.tones.data)
            taken += len(chunk.records)
            rejects.extend((source.names[entry], reason) for entry, reason in chunk.rejects)
            done = len(chunk.records) + len(chunk.rejects)
            progress.advance(done, chunk.num_bytes, rejects.count)
    return records[:taken]


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM (a Slurm job at its time limit) clean up as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
