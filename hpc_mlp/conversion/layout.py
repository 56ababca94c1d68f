"""From the names in an archive to classes and splits.

Each archive is read by the reader of its own layout: `folders` (class folders, split folders) or
`tables` (labels.csv). A reader gives a `Reading`; here they are put together, and it is said what
was recognised."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt

from hpc_mlp.conversion import folders, tables
from hpc_mlp.conversion.archive import SeveralSources, Source
from hpc_mlp.conversion.reading import Reading, natural_key
from hpc_mlp.data.limits import SPLITS
from hpc_mlp.errors import UserError, printable

IMAGE_SUFFIXES = frozenset(
    (
        "jpg", "jpeg", "jpe", "jfif", "mpo", "png", "apng", "gif", "webp", "bmp", "dib", "tif",
        "tiff", "ppm", "pgm", "pbm", "pnm", "jp2", "j2k", "avif",
    )
)  # fmt: skip
ARCHIVE_SUFFIXES = frozenset(("zip", "tar", "gz", "tgz", "7z", "rar", "bz2", "xz"))
_LABELS_FILES = ("labels.csv", "labels.tsv")
# Files that may say something about the images, but that no reader reads.
_TABLE_SUFFIXES = frozenset(("csv", "tsv", "jsonl", "parquet", "xlsx", "xls", "ods"))
Array = TypeVar("Array", bound="npt.NDArray[Any]")
# So many names stand in a message.
_NAMED = 3


@dataclass
class Layout:
    """`entries[i]` (an index into the source) has class `labels[i]` and, where the archive brings
    its own splits, split `splits[i]` (an index into SPLITS; -1 elsewhere). All in the archive's
    order. `notes`: what was recognised, used and not used, a line each."""

    # "class folders" | "split folders" | … | "labels.csv", or several of these
    kind: str
    classes: tuple[str, ...]
    entries: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int32]
    splits: npt.NDArray[np.int8]
    num_ignored: int
    # (name, reason), by the listing alone
    rejects: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class Sorted:
    """The entries of a source: indices of images, of labels files, and of files that may say
    something about the images but are not read; the number of other files; what cannot be taken, as
    (name, reason)."""

    images: npt.NDArray[np.int64]
    label_files: list[int]
    unread: list[int]
    num_ignored: int
    rejects: list[tuple[str, str]]


def find_layout(source: Source) -> Layout:
    """UserError where there are no images, fewer than two classes, or names that lead outside."""
    found = sort_out(source)
    parts = source.parts() if isinstance(source, SeveralSources) else [range(len(source.names))]
    label_files = [[i for i in found.label_files if i in part] for part in parts]
    # Without a copy where there is one archive: of a million images each array of indices is 8 MB.
    images = [found.images] if len(parts) == 1 else [_within(found.images, part) for part in parts]
    if not len(found.images) and not found.label_files:
        raise no_images(source, found.rejects, len(found.rejects))
    apart = [i for i, files in enumerate(label_files) if files and not len(images[i])]
    # A table that came without images is about those of the others.
    if apart:
        if len(apart) > 1 or any(files and i != apart[0] for i, files in enumerate(label_files)):
            names = ", ".join(printable(source.names[i]) for i in found.label_files[:_NAMED])
            raise UserError(
                f"{printable(source.label)} holds several labels files: {names}. Give one."
            )
        readings = tables.read(source, found.images, label_files[apart[0]])
    else:
        readings = _read_parts(source, images, label_files)
    layout = _together(source, found, readings)
    if len(parts) > 1 and not apart:
        assert isinstance(source, SeveralSources)
        labels = [inner.label for inner in source.sources]
        layout.notes[:0] = _part_lines(labels, images, parts, readings)
    return layout


def _within(images: npt.NDArray[np.int64], part: range) -> npt.NDArray[np.int64]:
    return images[(images >= part.start) & (images < part.stop)]


def _read_parts(
    source: Source, images: Sequence[npt.NDArray[np.int64]], label_files: Sequence[list[int]]
) -> list[Reading]:
    trees = [
        folders.Tree(source.names, part) if len(part) and not files else None
        for part, files in zip(images, label_files, strict=True)
    ]
    # A test.zip beside a train.zip is a split, alone it would be a class.
    trained = any(tree is not None and tree.brings_splits(False) for tree in trees)
    readings: list[Reading] = []
    for i, (part, files) in enumerate(zip(images, label_files, strict=True)):
        # Out of the list, so that it is freed when it is read.
        tree, trees[i] = trees[i], None
        if files:
            readings += tables.read(source, part, files)
        elif tree is not None:
            readings.append(tree.read(tree.brings_splits(trained)))
    return readings


def _together(source: Source, found: Sorted, readings: Sequence[Reading]) -> Layout:
    names = {name for reading in readings for name in reading.classes}
    rejects = [*found.rejects, *(reject for reading in readings for reject in reading.rejects)]
    notes = [note for reading in readings for note in reading.notes]
    everything = tuple(sorted(names, key=natural_key))
    number = {name: i for i, name in enumerate(everything)}
    numbers = [
        np.array([number[name] for name in reading.classes], np.int32) for reading in readings
    ]
    labels = _joined(
        [table[reading.labels] for table, reading in zip(numbers, readings, strict=True)]
    )
    entries = _joined([reading.entries for reading in readings])
    splits = _joined([reading.splits for reading in readings])
    if len(readings) > 1:
        order = np.argsort(entries, kind="stable")
        entries, labels, splits = entries[order], labels[order], splits[order]
    # A class is what can be learnt: of a class that has images for val or test alone, nothing is.
    trained = np.isin(labels, labels[splits <= 0])
    for lost in np.unique(labels[~trained]).tolist():
        here = np.flatnonzero(labels == lost)
        where = " and ".join(SPLITS[i] for i in np.unique(splits[here]).tolist())
        notes.append(
            f"WARNING: class {everything[lost]!r} has no training images: "
            f"its {len(here):,} in {where} are left out"
        )
    untrained = np.flatnonzero(~trained).tolist()
    rejects += [
        (source.names[int(entries[i])], f"class {everything[labels[i]]!r} has no training images")
        for i in untrained
    ]
    if len(untrained):
        entries, labels, splits = entries[trained], labels[trained], splits[trained]
    kept = sorted({int(i) for i in np.unique(labels)})
    classes = _enough(source, tuple(everything[i] for i in kept), found)
    renumbered = np.full(len(everything), -1, np.int32)
    renumbered[kept] = np.arange(len(kept))
    ignored = found.num_ignored + sum(reading.num_ignored for reading in readings)
    kind = " + ".join(dict.fromkeys(reading.kind for reading in readings))
    layout = Layout(kind, classes, entries, renumbered[labels], splits, ignored, rejects, notes)
    layout.notes += [*_split_lines(splits), *_unread_line(source, found)]
    return layout


def _joined(parts: Sequence[Array]) -> Array:
    """Without a copy where there is one."""
    return parts[0] if len(parts) == 1 else cast(Array, np.concatenate(parts))


def _enough(source: Source, classes: tuple[str, ...], found: Sorted) -> tuple[str, ...]:
    """The classes. UserError where they are fewer than two."""
    if len(classes) >= 2:
        return classes
    what = f"only one class, {printable(classes[0])!r}" if classes else "no class folders"
    raise UserError(
        f"{printable(source.label)} holds {what}; at least two are needed. "
        f"Expected is one folder of images for each class, such as cats/001.jpg and dogs/001.jpg."
        + (
            ""
            if classes
            else " Classes in file names (cat_001.jpg) are not read: list them in a labels.csv."
        )
        + (f" It holds {_some(source, found.unread)}: {_ADVICE}" if found.unread else "")
    )


_ADVICE = (
    "of tables only one named labels.csv is read (file name and class in columns with a line of "
    "headings). Unpack the archive, copy or rename the table to labels.csv, and convert the folder."
)


def _part_lines(
    names: Sequence[str],
    images: Sequence[npt.NDArray[np.int64]],
    parts: Sequence[range],
    readings: Sequence[Reading],
) -> Iterable[str]:
    given = [bool((reading.splits >= 0).any()) for reading in readings]
    for name, part, here in zip(names, parts, images, strict=True):
        mine = [i for i, r in enumerate(readings) if len(r.entries) and int(r.entries[0]) in part]
        kinds = (
            " + ".join(dict.fromkeys(readings[i].kind for i in mine)) or "nothing that can be used"
        )
        line = f"{name}: {kinds}, {len(here):,} images"
        if any(given) and mine and not any(given[i] for i in mine):
            line += ", without splits: all go to training"
        yield line


def _split_lines(splits: npt.NDArray[np.int8]) -> Iterable[str]:
    if not (splits >= 0).any():
        return
    counts = {name: int((splits == i).sum()) for i, name in enumerate(SPLITS)}
    line = "splits as the archive says: " + ", ".join(f"{n} {c:,}" for n, c in counts.items() if c)
    if missing := [name for name in SPLITS[1:] if not counts[name]]:
        line += f"; {' and '.join(missing)} drawn from train"
    yield line


def _unread_line(source: Source, found: Sorted) -> Iterable[str]:
    asides = [i for i in found.unread if _suffix(source.names[i]) in _TABLE_SUFFIXES]
    if asides:
        yield f"not used: {_some(source, asides)} (of tables only labels.csv is read)"


def _some(source: Source, indices: Sequence[int]) -> str:
    names = [printable(source.names[i]) for i in indices[:_NAMED]]
    return ", ".join(names) + (
        f" and {len(indices) - _NAMED:,} more" if len(indices) > _NAMED else ""
    )


def _suffix(base: str) -> str:
    return base.rsplit(".", 1)[-1].lower() if "." in base else ""


def no_images(source: Source, first: Sequence[tuple[str, str]], count: int) -> UserError:
    """`first` of `count` rejects: name and reason."""
    why = (
        f" Entries that cannot be taken: {count:,}, the first {printable(first[0][0])}: "
        f"{printable(first[0][1])}."
        if first
        else ""
    )
    return UserError(
        f"{printable(source.label)} holds no images that can be read.{why} "
        f"Expected are images in one folder for each class, such as cats/001.jpg and dogs/001.jpg."
    )


def sort_out(source: Source) -> Sorted:
    images: list[int] = []
    rejects: list[tuple[str, str]] = []
    label_files: list[int] = []
    unread: list[int] = []
    ignored = 0
    for index, name in enumerate(source.names):
        if not name or name.endswith("/"):
            # A folder.
            continue
        base = name.rsplit("/", 1)[-1]
        suffix = base.rsplit(".", 1)[-1].lower() if "." in base else ""
        if _is_hidden(name) or "__MACOSX/" in name or base == "Thumbs.db":
            ignored += 1
        elif base.lower() in _LABELS_FILES:
            label_files.append(index)
        elif suffix in ARCHIVE_SUFFIXES:
            rejects.append((name, "an archive inside the archive is not opened"))
        elif suffix not in IMAGE_SUFFIXES:
            ignored += 1
            if suffix in _TABLE_SUFFIXES or (
                suffix == "txt" and not base.lower().startswith(("readme", "license"))
            ):
                unread.append(index)
        elif index in source.problems:
            rejects.append((name, source.problems[index]))
        else:
            check_safe(name, source)
            images.append(index)
    return Sorted(np.array(images, np.int64), label_files, unread, ignored, rejects)


def _is_hidden(name: str) -> bool:
    # Nearly always.
    if name[0] != "." and "/." not in name:
        return False
    return any(part[:1] == "." and part not in (".", "..") for part in name.split("/"))


def check_safe(name: str, source: Source) -> None:
    """UserError for a name that leads out of the archive: nobody makes one by accident."""
    if name[0] == "/" or (".." in name and ".." in name.split("/")) or re.match(r"[A-Za-z]:", name):
        raise UserError(
            f"{printable(source.label)} holds {printable(name)!r}, a name that leads out of the "
            "archive. It is not to be trusted: get it from elsewhere, or pack the images again."
        )
