"""Classes and splits from a table beside the images."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from hpc_mlp.conversion.archive import Source
from hpc_mlp.conversion.asked import ColumnNames
from hpc_mlp.conversion.columns import ColumnFinder, Columns
from hpc_mlp.conversion.reading import SPLIT_NAMES, Reading
from hpc_mlp.conversion.rows import Lookup, Row, Rows, cell, flag, read_rows
from hpc_mlp.data.limits import SPLITS
from hpc_mlp.errors import UserError, printable
from hpc_mlp.terminal.text import count

# The classes of images by their folders.
FolderClasses = Callable[[], Mapping[int, str]]
# Class, split and group of an image.
Place = tuple[str, int, str]


class Table:
    """The table at `index` about `images`, which `lookup` finds by what it calls them. `kind`: what
    a reading of it is called. `split`: that of rows that say none (-1: none either). `of_folders`:
    where it may say splits alone. UserError where it cannot be read."""

    def __init__(
        self,
        source: Source,
        images: npt.NDArray[np.int64],
        lookup: Lookup,
        index: int,
        names: ColumnNames,
        kind: str,
        split: int = -1,
        of_folders: FolderClasses | None = None,
    ) -> None:
        self.source, self.images, self.lookup = source, images, lookup
        self.index, self.kind, self.split = index, kind, split
        self.where = source.names[index]
        self.shown = shown_as(source, index)
        # (line, cells)
        self.rows = read_rows(source, index, self.shown)
        self.of_folders = of_folders
        rows = [row for _, row in self.rows]
        self._finder = ColumnFinder(rows, lookup, self.shown, names, of_folders is not None)
        self._columns: Columns | None = None
        # All images that it names, whether or not they have a class.
        self.listed: set[int] = set()
        # Of images that it calls otherwise, one: its name here, and its own.
        self._misspelt: dict[int, str] = {}
        self._called: set[int | None] = set()

    def columns(self) -> Columns:
        """UserError where it is not about these images, or says neither classes nor splits."""
        if self._columns is None:
            self._columns = self._finder.find()
            if not self._columns.classes and self._columns.split is None and self.split < 0:
                raise UserError(f"{self.shown} has no column of classes, and none of splits.")
        return self._columns

    def reading(self) -> Reading:
        """Of what is listed; what is not is in no `rejects`."""
        columns = self.columns()
        rows = self.rows[1:] if columns.header else self.rows
        rejects: list[tuple[str, str]] = []
        found: dict[int, Place] = {}
        wanted: dict[str, Place] = {}
        contradicted: set[int] = set()
        for line, row in rows:
            name, split = cell(row, columns.file), -1
            index = self._find(name, rows, columns.file)
            label = self._label(line, row, columns, index)
            if columns.split is not None:
                split = self._split(line, cell(row, columns.split))
            group = cell(row, columns.group) if columns.group is not None else ""
            place = (label, split, group)
            if name in wanted:
                if wanted[name] != place:
                    rejects.append((name, self._contradiction(wanted[name], place)))
                    contradicted |= {index} if index is not None else set()
                continue
            wanted[name] = place
            if index is None:
                rejects.append((name, self._why_not(name)))
            elif not label:
                rejects.append((name, f"has no class in {self.where}"))
            elif found.setdefault(index, place) != place:
                rejects.append((name, self._contradiction(found[index], place)))
                contradicted.add(index)
        if not found:
            raise self._finder.names_none()
        self.listed = found.keys() | contradicted
        for index in contradicted:
            found.pop(index, None)
        return self._put_together(columns, found, rejects)

    def _find(self, name: str, rows: Rows, column: int) -> int | None:
        """By its spelling; else, of the images that are not called by theirs, by its letters."""
        index = self.lookup.find(name)
        if index is not None or not name or self.lookup.is_ambiguous(name):
            return index
        self._called = self._called or {self.lookup.find(cell(row, column)) for _, row in rows}
        index = self.lookup.find_misspelt(name)
        if index is None or index in self._called:
            return None
        self._misspelt[index] = name
        return index

    def _put_together(
        self, columns: Columns, found: dict[int, Place], rejects: list[tuple[str, str]]
    ) -> Reading:
        classes = list(dict.fromkeys(label for label, *_ in found.values()))
        number = {name: i for i, name in enumerate(classes)}
        entries = np.array(sorted(found), np.int64)
        labels = np.array([number[found[i][0]] for i in entries.tolist()], np.int32)
        splits = np.array([found[i][1] for i in entries.tolist()], np.int8)
        splits[splits < 0] = self.split
        notes = [columns.told(printable(self.where), self._finder.width)]
        if self._misspelt:
            index, name = next(iter(self._misspelt.items()))
            notes.append(
                f"{printable(self.where)}: {count(len(self._misspelt), 'name')} spelt otherwise "
                f"than the images' ({printable(name)} is {printable(self.source.names[index])})"
            )
        groups = None if columns.group is None else [found[i][2] for i in entries.tolist()]
        return Reading(
            self.kind, classes, entries, labels, splits, rejects, notes, coded=True, groups=groups
        )

    def not_listed(self) -> list[tuple[str, str]]:
        """Rejects: the images that `reading` has not met."""
        reason = f"not listed in {self.where}"
        return [
            (self.source.names[i], reason) for i in self.images.tolist() if i not in self.listed
        ]

    def _label(self, line: int, row: Row, columns: Columns, index: int | None) -> str:
        if not columns.classes:
            assert self.of_folders is not None
            return "" if index is None else self.of_folders().get(index, "")
        if len(columns.classes) == 1:
            return cell(row, columns.classes[0])
        ones = [column for column in columns.classes if flag(cell(row, column)) == 1]
        if len(ones) != 1:
            raise UserError(
                f"{self.shown}, line {line}: {len(ones)} of the columns of classes are 1. One "
                "class for each image is supported; write it in one column named label."
            )
        assert columns.header is not None
        return columns.header[ones[0]]

    def _split(self, line: int, text: str) -> int:
        split = SPLIT_NAMES.get(text.lower())
        if split is None:
            raise UserError(
                f"{self.shown}, line {line}: {printable(text)!r} as split is none of "
                f"{', '.join(SPLITS)}. Mend it, or remove that column to have the splits drawn."
            )
        return split

    def _contradiction(self, one: Place, other: Place) -> str:
        first, second = one[0], other[0]
        if first == second and one[1] != other[1]:
            first, second = SPLITS[one[1]], SPLITS[other[1]]
        elif first == second:
            first, second = f"group {one[2]}", f"group {other[2]}"
        return f"listed twice in {self.where}, as {first!r} and as {second!r}"

    def _why_not(self, name: str) -> str:
        if self.lookup.is_ambiguous(name):
            return f"listed in {self.where}, but several images have that name"
        return f"listed in {self.where}, but not in the archive"


def shown_as(source: Source, index: int) -> str:
    """What messages call the table."""
    return f"{printable(source.names[index])} in {printable(source.label)}"
