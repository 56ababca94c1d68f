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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypedDict

import numpy as np
import numpy.typing as npt

from hpc_mlp.conversion.archive import Source
from hpc_mlp.conversion.asked import Asked, ColumnNames
from hpc_mlp.conversion.assemble import Assembly
from hpc_mlp.conversion.atomic_folder import check_target, new_folder
from hpc_mlp.conversion.layout import Layout, find_layout, no_images
from hpc_mlp.conversion.opening import open_source, with_labels
from hpc_mlp.conversion.pool import Background, Pool
from hpc_mlp.conversion.worker import Worker, record_type
from hpc_mlp.data.decode import ImageSpec
from hpc_mlp.data.encode import ENCODINGS
from hpc_mlp.data.limits import MAX_PIXELS, MAX_SIDE
from hpc_mlp.data.rejects import RejectLog
from hpc_mlp.errors import RunError, UserError, unknown_name
from hpc_mlp.files.wrong_path import MANIFEST
from hpc_mlp.machine.memory import num_cpus

# A task for a worker: so many images, or so many bytes of pixels.
CHUNK_IMAGES, CHUNK_BYTES = 64, 16 << 20
# Settings that are recorded where they are given.
_READING = ("labels", "file_column", "label_column", "split_column", "class_from_name")


@dataclass(frozen=True)
class Settings:
    """How to convert. All but `workers`, `strict` and `overwrite` shape the result."""

    height: int = 64
    width: int = 64
    grayscale: bool = False
    val: float = 0.1
    test: float = 0.1
    seed: int = 0
    encoding: str = "png"
    compress: bool = False
    shard_mb: float = 64.0
    drop_duplicates: bool = False
    max_pixels: int = MAX_PIXELS
    # Where classes and splits stand, if not where they are looked for.
    labels: str | Path | None = None
    file_column: str | None = None
    label_column: str | None = None
    split_column: str | None = None
    class_from_name: str | None = None
    # 0: one for each processor
    workers: int = 0
    strict: bool = False
    overwrite: bool = False

    def check(self) -> None:
        """UserError where a value makes no sense."""
        if not (1 <= self.height <= MAX_SIDE and 1 <= self.width <= MAX_SIDE):
            raise UserError(
                f"--size {self.height}x{self.width}: each side is from 1 to {MAX_SIDE} pixels."
            )
        if not (0 <= self.val < 1 and 0 <= self.test < 1 and self.val + self.test < 1):
            raise UserError(
                f"--val {self.val} --test {self.test}: fractions from 0, together less than 1; "
                f"the rest is for training."
            )
        if not 0 < self.shard_mb <= 4096:
            raise UserError(f"--shard-mb {self.shard_mb}: megabytes, more than 0 and at most 4096.")
        if not 0 <= self.seed < 2**63 or self.workers < 0 or self.max_pixels < 1:
            raise UserError("--seed and --workers are whole numbers from 0, --max-pixels from 1.")
        if self.encoding not in ENCODINGS:
            raise unknown_name("--encoding", self.encoding, ENCODINGS)
        if self.compress and self.encoding != "png":
            raise UserError(f"--compress is for --encoding png, not {self.encoding}.")
        self.asked.pattern()

    @property
    def asked(self) -> Asked:
        columns = ColumnNames(self.file_column, self.label_column, self.split_column)
        labels = None if self.labels is None else Path(self.labels)
        return Asked(labels, columns, self.class_from_name)

    @property
    def spec(self) -> ImageSpec:
        return ImageSpec(self.height, self.width, 1 if self.grayscale else 3, self.max_pixels)

    def num_workers(self) -> int:
        return self.workers or num_cpus()

    def recorded(self) -> dict[str, Any]:
        names = ("val", "test", "seed", "compress", "shard_mb", "drop_duplicates", "max_pixels")
        given = {name: getattr(self, name) for name in _READING}
        # Of a path the name, which is the same on every machine.
        given["labels"] = None if self.labels is None else Path(self.labels).name
        return (
            {"size": [self.height, self.width], "grayscale": self.grayscale}
            | {name: getattr(self, name) for name in names}
            | {name: value for name, value in given.items() if value is not None}
        )


class ConvertOptions(TypedDict, total=False):
    """The fields of `Settings` but for height and width, as keywords."""

    grayscale: bool
    val: float
    test: float
    seed: int
    encoding: str
    compress: bool
    shard_mb: float
    drop_duplicates: bool
    max_pixels: int
    labels: str | Path | None
    file_column: str | None
    label_column: str | None
    split_column: str | None
    class_from_name: str | None
    workers: int
    strict: bool
    overwrite: bool


class Progress(Protocol):
    """Told how far the conversion is."""

    def start(self, layout: Layout) -> None: ...

    def advance(self, images: int, num_bytes: int, rejects: int) -> None: ...

    def phase(self, text: str) -> None: ...


class Silent:
    def start(self, layout: Layout) -> None: ...

    def advance(self, images: int, num_bytes: int, rejects: int) -> None: ...

    def phase(self, text: str) -> None: ...


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
    source, table = open_source(paths, scratch), None
    with closing(source):
        if asked.labels is not None:
            source, table = with_labels(source, asked.labels)
        yield source, find_layout(source, asked, table)


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
        content = Background(source.sha256)
        Background(_import_for_the_end)
        progress.start(layout)
        rejects.extend(layout.rejects)
        records = _convert_all(pool, source, layout, settings, rejects, progress)
        if not len(records):
            raise no_images(source, rejects.first, rejects.count)
        progress.phase("drawing splits")
        assembly = Assembly(folder, source, layout, records)
        num_pixels = settings.height * settings.width
        assembly.draw_splits(
            settings.seed,
            settings.val,
            settings.test,
            settings.drop_duplicates,
            num_pixels,
            rejects,
        )
        progress.phase("writing shards")
        assembly.write_shards(pool, int(settings.shard_mb * 1e6))
        assembly.write_metadata(
            settings.spec, settings.encoding, settings.recorded(), content.result(), rejects.count
        )


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
    progress: Progress,
) -> npt.NDArray[np.void]:
    """One record for every image taken, in the archive's order."""
    spec = settings.spec
    size = min(CHUNK_IMAGES, max(1, CHUNK_BYTES // (spec.height * spec.width * spec.channels)))
    entries = layout.entries
    records = np.empty(len(entries), record_type(spec.channels))
    taken = 0
    chunks = (entries[at : at + size] for at in range(0, len(entries), size))
    for chunk in pool.map(Worker.convert, chunks):
        records[taken : taken + len(chunk.records)] = chunk.records
        taken += len(chunk.records)
        rejects.extend((source.names[entry], reason) for entry, reason in chunk.rejects)
        progress.advance(len(chunk.records) + len(chunk.rejects), chunk.num_bytes, rejects.count)
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
