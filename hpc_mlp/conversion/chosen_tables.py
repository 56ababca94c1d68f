"""Which tables of an archive are read, each about which of its images."""

from __future__ import annotations

import heapq
import re
from collections.abc import Sequence
from functools import cache
from pathlib import PurePosixPath

import numpy as np
import numpy.typing as npt

from hpc_mlp.conversion.archive import Names, Source
from hpc_mlp.conversion.asked import ColumnNames
from hpc_mlp.conversion.entries import CLASS_LISTS, TEXT_SUFFIXES, suffix_of
from hpc_mlp.conversion.folders import classes_of_folders, split_of_folders
from hpc_mlp.conversion.reading import Reading, loose_split
from hpc_mlp.conversion.rows import Lookup
from hpc_mlp.conversion.tables import FolderClasses, Table, shown_as
from hpc_mlp.errors import UserError, printable

Images = npt.NDArray[np.int64]
# So many tables are looked into where none is named.
_MOST = 32
_TEXT, _CLASS_LIST = 1, 2


def read_labels_files(
    source: Source, images: Images, tables: Sequence[int], names: ColumnNames
) -> list[Reading]:
    """Of an archive with these images and these `tables` (indices into the source): a reading for
    each table that is about images of its own. What lies below the folder of another is not used.
    UserError where a table cannot be understood."""
    folders = {index: PurePosixPath(source.names[index]).parent for index in tables}
    used = sorted(tables, key=lambda index: (len(folders[index].parts), index))
    for index in list(used):
        others = [folders[other] for other in used if other != index]
        nested = any(other in (folders[index], *folders[index].parents) for other in others)
        if len(used) > 1 and (nested or not _below(source, images, folders[index]).any()):
            used.remove(index)
    readings, rest = [], images
    for index in sorted(used):
        own = _below(source, rest, folders[index]) if len(used) > 1 else np.ones(len(rest), bool)
        lookup = Lookup(source.names, rest[own], folders[index])
        table = Table(
            source, rest[own], lookup, index, names, source.names[index].rpartition("/")[2].lower()
        )
        reading = table.reading()
        reading.rejects += table.not_listed()
        readings.append(reading)
        rest = rest[~own]
    readings[0].rejects += [(source.names[i], "below no labels file") for i in rest.tolist()]
    unused = [printable(source.names[index]) for index in tables if index not in used]
    readings[0].num_ignored = len(unused)
    readings[0].notes += [f"not used: {', '.join(unused)}"] if unused else []
    _take_splits_of_folders(source, readings)
    return readings


def read_named(
    source: Source, images: Images, tables: Sequence[int], names: ColumnNames
) -> list[Reading]:
    """The tables that the user names; of several, each that is called like a split is that split.
    One without classes may say the splits of class folders. UserError where one cannot be
    understood."""
    scopes, read = _Scopes(source, images), []
    scopes.of_folders = cache(lambda: classes_of_folders(source.names, images))
    for index in dict.fromkeys(tables):
        split = loose_split(_stem(source.names[index])) if len(tables) > 1 else None
        read.append(scopes.table(index, names, -1 if split is None else split))
    _want_training(read)
    readings = _read_together(source, images, read)
    for reading in readings:
        reading.num_ignored = 0
    return readings


def read_any(
    source: Source, images: Images, tables: Sequence[int], names: ColumnNames
) -> tuple[list[Reading], list[str]]:
    """Those of `tables` that are about `images` and have a column of classes: one; or one for each
    split, by their names (train.csv, test.csv); or one in each of several folders. Readings (none
    where no table will do), and why the others are not read. UserError where it is unclear which
    table counts."""
    scopes = _Scopes(source, images)
    tables, left = _likeliest(source, tables)
    splits = {index: loose_split(_stem(source.names[index])) for index in tables}
    usable: list[Table] = []
    reasons = [f"{left:,} texts and tables that were not looked into"] if left else []
    before = 0
    for index in tables:
        name, kind = printable(source.names[index]), _doubt(source.names[index])
        if usable and kind > before:
            break
        before = kind
        if "submission" in _stem(name).lower():
            reasons.append(f"{name} (a submission, not labels)")
            continue
        try:
            split = splits[index]
            table = scopes.table(index, names, -1 if split is None else split)
            if kind == _TEXT and table.lookup.knows(_stem(name)):
                reasons.append(f"{name} (about the image of its name alone)")
                continue
            table.columns()
        except UserError as error:
            why = str(error).removeprefix(shown_as(source, index))
            reasons += [f"{name} ({_first_clause(why)})"] if kind < _CLASS_LIST else []
            continue
        usable.append(table)
    if not usable:
        return [], reasons
    named = [table for table in usable if splits[table.index] is not None]
    if {0} < {table.split for table in named}:
        # Beside train.csv and test.csv, others are about something else.
        reasons += [
            f"{printable(table.where)} (named for no split, unlike {printable(named[0].where)})"
            for table in usable
            if table not in named
        ]
        usable = named
    _want_training(usable)
    folders = {PurePosixPath(table.where).parent for table in usable}
    if len(usable) > 1 and len(named) < len(usable) and len(folders) < len(usable):
        shown = [printable(table.where) for table in usable]
        raise UserError(
            f"{printable(source.label)} holds several tables of classes: {', '.join(shown)}. Say "
            f"which one counts: --labels {shown[0]} (or several, each with --labels)"
        )
    return _read_together(source, images, usable), reasons


def _want_training(tables: Sequence[Table]) -> None:
    """val.csv alone is no split: there is nothing to train on."""
    if not any(table.split == 0 for table in tables):
        for table in tables:
            table.split = -1


def _read_together(source: Source, images: Images, usable: Sequence[Table]) -> list[Reading]:
    readings = [table.reading() for table in usable]
    _drop_contradictions(source, usable, readings)
    listed = set().union(*(table.listed for table in usable))
    where = " or ".join(table.where for table in usable)
    rest = [source.names[i] for i in images.tolist() if i not in listed]
    readings[0].rejects += [(name, f"not listed in {where}") for name in rest]
    for reading in readings:
        reading.num_ignored = -1
    _take_splits_of_folders(source, readings)
    return readings


def _drop_contradictions(
    source: Source, tables: Sequence[Table], readings: Sequence[Reading]
) -> None:
    """An image that two tables list counts once, where they agree, and else not at all."""
    if len(readings) < 2:
        return
    first: dict[int, tuple[int, str, int, str]] = {}
    wrong: set[int] = set()
    for number, reading in enumerate(readings):
        keep = np.ones(len(reading.entries), bool)
        rows = zip(
            reading.entries.tolist(), reading.labels.tolist(), reading.splits.tolist(), strict=True
        )
        groups = reading.groups
        for place, (entry, label, split) in enumerate(rows):
            here = (number, reading.classes[label], split, groups[place] if groups else "")
            before = first.setdefault(entry, here)
            keep[place] = before is here
            if before[1:] != here[1:] and entry not in wrong:
                wrong.add(entry)
                both = f"{tables[before[0]].where} and in {tables[number].where}"
                reading.rejects.append((source.names[entry], f"listed differently in {both}"))
        reading.keep(keep)
    for reading in readings if wrong else ():
        reading.keep(~np.isin(reading.entries, list(wrong)))


def _doubt(name: str) -> int:
    """A table is one rather than a text (of which there may be one for each image), and a text
    rather than a list of classes, which may look like a table (`0 cat`)."""
    if name.rpartition("/")[2].lower() in CLASS_LISTS:
        return _CLASS_LIST
    return _TEXT if suffix_of(name) in TEXT_SUFFIXES else 0


def _likeliest(source: Source, tables: Sequence[int]) -> tuple[list[int], int]:
    """Those to look into, the likeliest kind first, and how many are left."""

    def rank(index: int) -> tuple[int, int, int]:
        name = source.names[index]
        return (_doubt(name), name.count("/"), index)

    chosen = heapq.nsmallest(_MOST, tables, key=rank)
    return sorted(chosen, key=lambda index: (rank(index)[0], index)), len(tables) - len(chosen)


class _Scopes:
    """What tables are about: images, and a lookup of them, which for a million takes seconds and
    much memory. Of those the last one is kept, and what tables in use hold."""

    def __init__(self, source: Source, images: Images) -> None:
        self.source, self.images = source, images
        self.of_folders: FolderClasses | None = None
        self._last: tuple[tuple[PurePosixPath, int], Images, Lookup] | None = None

    def table(self, index: int, names: ColumnNames, split: int) -> Table:
        where = PurePosixPath(self.source.names[index])
        images, folder, restricted = self._scope(where, split)
        key = (folder, split if restricted else -1)
        if self._last is None or self._last[0] != key:
            # Let go of the one before, first.
            self._last = None
            self._last = (key, images, Lookup(self.source.names, images, folder))
        _, images, lookup = self._last
        shown = printable(where.name)
        return Table(
            self.source, images, lookup, index, names, shown, split, of_folders=self.of_folders
        )

    def _scope(self, where: PurePosixPath, split: int) -> tuple[Images, PurePosixPath, bool]:
        """The images below the table's folder, or below the nearest folder above that holds any,
        and that folder; and whether they are without those in folders of other splits."""
        images = self.images
        folder = where.parent
        for folder in where.parents:
            below = _below(self.source, images, folder)
            if below.any():
                images = images[below]
                break
        if split < 0:
            return images, folder, False
        of_folder = _splits_by_folder(self.source.names, images)
        if not (of_folder == split).any():
            return images, folder, False
        own = (of_folder == split) | (of_folder < 0)
        return images[own], folder, not own.all()


def _splits_by_folder(names: Names, images: Images) -> npt.NDArray[np.int8]:
    """By the first folder on an image's path that is called like a split, or nearly; else -1."""
    known: dict[str, int] = {}
    splits = np.full(len(images), -1, np.int8)
    for place, index in enumerate(images.tolist()):
        folder = names[index].rpartition("/")[0]
        if folder not in known:
            found = [
                split
                for part in folder.split("/")
                if (split := loose_split(part, True)) is not None
            ]
            known[folder] = found[0] if found else -1
        splits[place] = known[folder]
    return splits


def _below(source: Source, images: Images, folder: PurePosixPath) -> npt.NDArray[np.bool_]:
    prefix = "" if str(folder) == "." else f"{folder}/"
    return np.array([source.names[i].startswith(prefix) for i in images.tolist()], bool)


def _take_splits_of_folders(source: Source, readings: Sequence[Reading]) -> None:
    """Where no table says a split, but the images lie in split folders: these."""
    entries = np.concatenate([reading.entries for reading in readings])
    splits = split_of_folders(source.names, entries) if len(entries) else None
    if splits is None or any((reading.splits >= 0).any() for reading in readings):
        return
    for reading in readings:
        mine, splits = splits[: len(reading.entries)], splits[len(reading.entries) :]
        lost = reading.entries[mine < 0].tolist()
        reading.rejects += [
            (source.names[i], "not in a folder train, val or test, as others are") for i in lost
        ]
        reading.splits = mine
        reading.keep(mine >= 0)


def _first_clause(text: str) -> str:
    """`names none of its 3 images. Expected …` → `names none of its 3 images`"""
    return re.split(r"\. ", text.strip(": "))[0].rstrip(".")


def _stem(name: str) -> str:
    return PurePosixPath(name).stem
