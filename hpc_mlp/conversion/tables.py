"""Classes and splits from a table beside the images: labels.csv."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import numpy.typing as npt

from hpc_mlp.conversion.archive import Source
from hpc_mlp.conversion.folders import split_of_folders
from hpc_mlp.conversion.reading import SPLIT_NAMES, Reading
from hpc_mlp.conversion.rows import Lookup, Row, cell, flag, head, read_rows
from hpc_mlp.data.limits import SPLITS
from hpc_mlp.errors import UserError, printable


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_FILE_COLUMNS = _words(
    "file filename file_name filepath file_path path image image_name image_path image_file "
    "image_id imageid img img_name img_path id name fname picture photo"
)
# In the order of preference, where a table has several.
_CLASS_COLUMNS = _words(
    "class class_name classname label_name category_name label category target labels classes "
    "species breed diagnosis tag y"
)
_SPLIT_COLUMNS = _words("split subset partition set phase usage fold dataset data_set")
_CLASS_LISTS = _words(
    "classes.txt class_names.txt classnames.txt names.txt labels.txt label_names.txt label_map.txt "
    "labelmap.txt classes.csv class_names.csv label_map.csv classes.json label_map.json"
)
# Rows that are looked at to find the column of file names.
_SAMPLE = 1000


def read(source: Source, images: npt.NDArray[np.int64], tables: Sequence[int]) -> list[Reading]:
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
        readings.append(Table(source, rest[own], index, folders[index]).reading())
        rest = rest[~own]
    readings[0].rejects += [(source.names[i], "below no labels file") for i in rest.tolist()]
    unused = [printable(source.names[index]) for index in tables if index not in used]
    readings[0].num_ignored = len(unused)
    readings[0].notes += [f"not used: {', '.join(unused)}"] if unused else []
    _take_splits_of_folders(source, readings)
    return readings


def _below(
    source: Source, images: npt.NDArray[np.int64], folder: PurePosixPath
) -> npt.NDArray[np.bool_]:
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
        keep = mine >= 0
        reading.entries, reading.labels, reading.splits = (
            reading.entries[keep],
            reading.labels[keep],
            mine[keep],
        )


@dataclass
class _Columns:
    """Which column says what; `classes` has several where each is one class (one-hot)."""

    file: int
    classes: list[int]
    split: int | None
    header: Row | None

    def told(self, where: str, width: int) -> str:
        """What was used and what was not, in one line."""

        def name(column: int) -> str:
            head = self.header[column] if self.header and column < len(self.header) else ""
            return f"{column + 1} {printable(head)!r}" if head else f"{column + 1}"

        parts = [f"column {name(self.file)} as file"]
        if len(self.classes) == 1:
            parts.append(f"{name(self.classes[0])} as class")
        else:
            parts.append(f"{name(self.classes[0])} to {name(self.classes[-1])} as one class each")
        parts += [f"{name(self.split)} as split"] if self.split is not None else []
        used = {self.file, *self.classes, self.split}
        unused = [column for column in range(width) if column not in used]
        line = f"{where}: took {', '.join(parts)}"
        return line + (f"; not used: {', '.join(map(name, unused))}" if unused else "")


class Table:
    def __init__(
        self, source: Source, images: npt.NDArray[np.int64], index: int, folder: PurePosixPath
    ) -> None:
        self.source, self.images = source, images
        self.where = source.names[index]
        self.shown = f"{printable(self.where)} in {printable(source.label)}"
        # (line, cells)
        self.rows = read_rows(source, index, self.shown)
        self.lookup = Lookup(source.names, images, folder)
        self.width = max((len(row) for _, row in self.rows), default=0)

    def reading(self) -> Reading:
        columns = self._columns()
        rows = self.rows[1:] if columns.header else self.rows
        rejects: list[tuple[str, str]] = []
        found: dict[int, tuple[str, int]] = {}
        wanted: dict[str, tuple[str, int]] = {}
        contradicted: set[int] = set()
        for line, row in rows:
            name, label, split = cell(row, columns.file), self._label(line, row, columns), -1
            if columns.split is not None:
                split = self._split(line, cell(row, columns.split))
            index = self.lookup.find(name)
            if name in wanted:
                if wanted[name] != (label, split):
                    rejects.append((name, self._contradiction(wanted[name], (label, split))))
                    contradicted |= {index} if index is not None else set()
                continue
            wanted[name] = (label, split)
            if index is None:
                rejects.append((name, self._why_not(name)))
            elif not label:
                rejects.append((name, f"has no class in {self.where}"))
            elif found.setdefault(index, (label, split)) != (label, split):
                rejects.append((name, self._contradiction(found[index], (label, split))))
                contradicted.add(index)
        if not found:
            raise UserError(
                f"{self.shown} names none of its {len(self.images):,} images. "
                f"Expected are lines of file name and class, such as 001.jpg,cat."
            )
        unlisted = [i for i in self.images.tolist() if i not in found and i not in contradicted]
        rejects += [(self.source.names[i], f"not listed in {self.where}") for i in unlisted]
        for index in contradicted:
            found.pop(index, None)
        return self._put_together(columns, found, rejects)

    def _put_together(
        self, columns: _Columns, found: dict[int, tuple[str, int]], rejects: list[tuple[str, str]]
    ) -> Reading:
        classes = list(dict.fromkeys(label for label, _ in found.values()))
        number = {name: i for i, name in enumerate(classes)}
        entries = np.array(sorted(found), np.int64)
        labels = np.array([number[found[i][0]] for i in entries.tolist()], np.int32)
        splits = np.array([found[i][1] for i in entries.tolist()], np.int8)
        notes = [columns.told(printable(self.where), self.width)]
        if all(re.fullmatch(r"-?\d+(\.0+)?", name) for name in classes):
            lists = [n for n in self.source.names if n.rsplit("/", 1)[-1].lower() in _CLASS_LISTS]
            if lists:
                notes.append(
                    f"the classes in {printable(self.where)} are numbers, and stay numbers: "
                    f"{printable(lists[0])} is not used"
                )
        return Reading("labels.csv", classes, entries, labels, splits, rejects, notes)

    # ── cells
    # ───────────────────────────────────────────────────────────────────────────────────────────

    def _label(self, line: int, row: Row, columns: _Columns) -> str:
        if len(columns.classes) == 1:
            label = cell(row, columns.classes[0])
            if "/" in label or label in (".", "..") or "\\" in label:
                raise UserError(
                    f"{self.shown} names a class {printable(label)!r}: a class name has no slashes."
                )
            return label
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

    def _contradiction(self, one: tuple[str, int], other: tuple[str, int]) -> str:
        first, second = one[0], other[0]
        if first == second:
            first, second = SPLITS[one[1]], SPLITS[other[1]]
        return f"listed twice in {self.where}, as {first!r} and as {second!r}"

    def _why_not(self, name: str) -> str:
        if self.lookup.is_ambiguous(name):
            return f"listed in {self.where}, but several images have that name"
        return f"listed in {self.where}, but not in the archive"

    # ── columns
    # ─────────────────────────────────────────────────────────────────────────────────────────

    def _columns(self) -> _Columns:
        sample = [row for _, row in self.rows[:_SAMPLE]]
        hits = [
            sum(self.lookup.find(cell(r, c)) is not None for r in sample) for c in range(self.width)
        ]
        if not any(hits):
            raise UserError(
                f"{self.shown} names none of its {len(self.images):,} images. "
                f"Expected are lines of file name and class, such as 001.jpg,cat."
            )
        header = self._header(sample, hits.index(max(hits)))
        heads = [head(cell) for cell in header] if header else []
        best = [c for c, hit in enumerate(hits) if hit == max(hits)]
        file = next((c for c in best if c < len(heads) and heads[c] in _FILE_COLUMNS), best[0])
        others = [column for column in range(self.width) if column != file]
        split = self._split_column(heads, others)
        others = [column for column in others if column != split]
        named = [
            heads.index(name)
            for name in _CLASS_COLUMNS
            if name in heads and heads.index(name) in others
        ]
        if named or len(others) == 1:
            return _Columns(file, (named or others)[:1], split, header)
        if not others:
            raise UserError(
                f"{self.shown} has no column of classes. Expected are file name and class."
            )
        if self._is_one_hot(others, header):
            return _Columns(file, others, split, header)
        # The customary order.
        if header is None:
            return _Columns(file, others[:1], split, None)
        names = ", ".join(
            printable(header[c]) if c < len(header) else str(c + 1) for c in others[:8]
        )
        raise UserError(
            f"{self.shown}: which of its columns is the class: {names}? Name that one label in the "
            "line of headings."
        )

    def _header(self, sample: Sequence[Row], file: int) -> Row | None:
        """The first row, where it holds headings: it names no image, and either a usual heading or,
        unlike the others, something without a suffix in the place of a file name."""
        first = sample[0]
        if any(self.lookup.find(cell) is not None for cell in first):
            return None
        usual = {*_FILE_COLUMNS, *_CLASS_COLUMNS, *_SPLIT_COLUMNS}
        if any(head(cell) in usual for cell in first):
            return first
        return (
            None
            if "." in cell(first, file) or not any("." in cell(r, file) for r in sample[1:])
            else first
        )

    def _split_column(self, heads: Sequence[str], others: Sequence[int]) -> int | None:
        if "split" in heads and heads.index("split") in others:
            return heads.index("split")
        if len(others) < 2:
            return None
        rows = self.rows[1:] if heads else self.rows
        for column in others:
            values = {cell(row, column).lower() for _, row in rows}
            splits = {SPLIT_NAMES.get(value) for value in values}
            if None not in splits and 0 in splits and len(splits) > 1:
                return column
        return None

    def _is_one_hot(self, others: Sequence[int], header: Row | None) -> bool:
        rows = [row for _, row in (self.rows[1:] if header else self.rows)]
        if not rows or not all(flag(cell(row, c)) is not None for row in rows for c in others):
            return False
        if header is None or not all(c < len(header) and header[c] for c in others):
            raise UserError(
                f"{self.shown} seems to have a column of 0 and 1 for each class, but no headings "
                "that name them. Write the class in one column."
            )
        return True
