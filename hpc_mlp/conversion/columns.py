"""Which column of a table names the image, which its class, its split and its group."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from hpc_mlp.conversion.asked import ColumnNames
from hpc_mlp.conversion.reading import SPLIT_NAMES, words
from hpc_mlp.conversion.rows import Lookup, Row, cell, flag, head
from hpc_mlp.errors import UserError, nearest, printable

# Each in the order of preference, where a table has several.
_FILE_COLUMNS = words(
    "file filename file_name filepath filepaths file_path path image image_name image_path "
    "image_file image_id imageid img img_name img_path id name fname picture photo"
)
CLASS_COLUMNS = words(
    "class class_name classname label_name category_name label category target labels classes "
    "species breed diagnosis dx disease emotion variety tag class_id classid class_index label_id y"
)
_SPLIT_COLUMNS = words("split subset partition set phase usage fold dataset data_set")
GROUP_COLUMNS = words("group group_id patient patient_id subject subject_id case case_id")
# Rows that are looked at to find the column of file names.
_SAMPLE = 1000
_SHOWN = 8


@dataclass
class Columns:
    """Which column says what; `classes` has several where each is one class (one-hot), and none
    where folders are the classes."""

    file: int
    classes: list[int]
    split: int | None
    group: int | None
    header: Row | None

    def _name(self, column: int) -> str:
        head = self.header[column] if self.header and column < len(self.header) else ""
        return f"{column + 1} {printable(head)!r}" if head else f"{column + 1}"

    def told(self, where: str, width: int) -> str:
        """What was used and what was not, in one line."""
        parts = [f"column {self._name(self.file)} as file"]
        if not self.classes:
            parts.append("the folders as class")
        elif len(self.classes) == 1:
            parts.append(f"{self._name(self.classes[0])} as class")
        else:
            first, last = self._name(self.classes[0]), self._name(self.classes[-1])
            parts.append(f"{first} to {last} as one class each")
        parts += [f"{self._name(self.split)} as split"] if self.split is not None else []
        parts += [f"{self._name(self.group)} as group"] if self.group is not None else []
        used = {self.file, *self.classes, self.split, self.group}
        unused = [column for column in range(width) if column not in used]
        line = f"{where}: took {', '.join(parts)}"
        return line + (f"; not used: {', '.join(map(self._name, unused))}" if unused else "")


class ColumnFinder:
    """`rows` of the table that messages call `shown`. UserError where it cannot be understood."""

    def __init__(
        self,
        rows: Sequence[Row],
        lookup: Lookup,
        shown: str,
        names: ColumnNames,
        folders_will_do: bool = False,
    ) -> None:
        self.rows, self.lookup, self.shown, self.names = rows, lookup, shown, names
        self.folders_will_do = folders_will_do
        self.width = max(map(len, rows), default=0)
        # How many cells of each column name an image; where none does, as far as spelling goes.
        for find in (lookup.find, lookup.find_misspelt):
            self.hits = [
                sum(find(cell(row, c)) is not None for row in rows[:_SAMPLE])
                for c in range(self.width)
            ]
            if any(self.hits):
                break

    def find(self) -> Columns:
        if not any(self.hits):
            raise self.names_none()
        header = self._header()
        heads = [re.sub(r"^unnamed:_\d+$", "", head(cell)) for cell in header] if header else []
        file = self._given(self.names.file, header, "file")
        if file is None:
            best = self._likeliest_files()
            usual = [n for n in _FILE_COLUMNS if n in heads and heads.index(n) in best]
            # The rows' own numbers, as pandas writes them, have no heading, or Unnamed: 0.
            best = [c for c in best if cell(heads, c)] or best
            file = heads.index(usual[0]) if usual else best[0]
        elif not self.hits[file]:
            raise self.names_none()
        label = self._given(self.names.label, header, "label")
        split = self._given(self.names.split, header, "split")
        group = self._given(self.names.group or None, header, "group")
        others = [column for column in range(self.width) if column not in (file, label, group)]
        if split is None:
            split = self._split_column(heads, others, label is not None)
        others = [column for column in others if column != split]
        classes = [label] if label is not None else self._classes(header, heads, file, others)
        if self.names.group is None:
            taken = {file, split, *classes}
            places = [heads.index(name) for name in GROUP_COLUMNS if name in heads]
            group = next((place for place in places if place not in taken), None)
        return Columns(file, classes, split, group, header)

    def _likeliest_files(self) -> list[int]:
        """Those that name most images; with a suffix, as a number may be a name by chance."""
        best = [c for c, hit in enumerate(self.hits) if hit == max(self.hits)]
        rows = self.rows[1:_SAMPLE]
        return [c for c in best if any("." in cell(row, c) for row in rows)] or best

    def names_none(self) -> UserError:
        column = f" in its column {self.names.file!r}" if self.names.file else ""
        cells = (one for row in self.rows[:_SAMPLE] for one in row if one)
        if not any(self.hits) and any(map(self.lookup.is_ambiguous, cells)):
            return UserError(
                f"{self.shown} has names that several images have. Write their paths, such as "
                f"{printable(self.lookup.example)}."
            )
        return UserError(
            f"{self.shown} names none of its {self.lookup.num_images:,} images{column}. "
            f"They are called such as {printable(self.lookup.example)}; expected are lines of file "
            f"name and class, such as 001.jpg,cat."
        )

    def _given(self, name: str | None, header: Row | None, what: str) -> int | None:
        """The column called `name` by the user, who calls it the one of `what`."""
        if name is None:
            return None
        names = list(header or [])
        for found in (names, [head(heading) for heading in names]):
            wanted = name if found is names else head(name)
            if wanted in found:
                return found.index(wanted)
        if name.isascii() and name.isdigit() and 1 <= int(name) <= self.width:
            return int(name) - 1
        near = nearest(name, names)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        known = ", ".join(names[: 3 * _SHOWN]) if names else f"no headings: give 1 to {self.width}"
        raise UserError(
            f"--{what}-column {name!r}: {self.shown} has no such column.{hint} It has {known}."
        )

    def _header(self) -> Row | None:
        """The first row, where it holds headings: it names no image, and either a usual heading or,
        unlike the others, something without a suffix in the place of a file name; where none has
        a suffix, it has nothing that another row has."""
        first = self.rows[0]
        if any(self.lookup.find(cell) is not None for cell in first):
            return None
        usual = {*_FILE_COLUMNS, *CLASS_COLUMNS, *_SPLIT_COLUMNS}
        given = (self.names.file, self.names.label, self.names.split, self.names.group)
        usual |= {head(name) for name in given if name}
        if any(head(cell) in usual for cell in first):
            return first
        file = self._likeliest_files()[0]
        others = self.rows[1:_SAMPLE]
        if "." in cell(first, file):
            return None
        if any("." in cell(row, file) for row in others):
            return first
        again = any(
            one and any(one == cell(row, c) for row in others) for c, one in enumerate(first)
        )
        return None if again or len(first) < 2 else first

    def _classes(
        self, header: Row | None, heads: Row, file: int, others: Sequence[int]
    ) -> list[int]:
        apart = [c for c in others if c >= len(heads) or heads[c] not in GROUP_COLUMNS]
        # Neither the rows' own numbers nor empty columns have a heading.
        others = [c for c in apart or others if not header or cell(heads, c)] or apart or others
        named = [n for n in CLASS_COLUMNS if n in heads and heads.index(n) in others]
        if named:
            return [heads.index(named[0])]
        if not others:
            if self.folders_will_do:
                return []
            raise UserError(
                f"{self.shown} has no column of classes. Expected are file name and class."
            )
        if len(others) == 1:
            return [others[0]]
        if self._is_one_hot(others, header):
            return list(others)
        # The customary order.
        if header is None:
            return [next((column for column in others if column > file), others[0])]
        names = ", ".join(
            printable(header[c]) if c < len(header) else str(c + 1) for c in others[:_SHOWN]
        )
        raise UserError(
            f"{self.shown}: which of its columns is the class: {names}? Say it with --label-column."
        )

    def _split_column(
        self, heads: Sequence[str], others: Sequence[int], label_is_given: bool
    ) -> int | None:
        if "split" in heads and heads.index("split") in others:
            return heads.index("split")
        if len(others) < 2 - label_is_given:
            return None
        rows = self.rows[1:] if heads else self.rows
        for column in others:
            values = {cell(row, column).lower() for row in rows}
            splits = {SPLIT_NAMES.get(value) for value in values}
            if None not in splits and 0 in splits and len(splits) > 1:
                return column
        return None

    def _is_one_hot(self, others: Sequence[int], header: Row | None) -> bool:
        rows = self.rows[1:] if header else self.rows
        if not rows or not all(flag(cell(row, c)) is not None for row in rows for c in others):
            return False
        if header is None or not all(c < len(header) and header[c] for c in others):
            raise UserError(
                f"{self.shown} seems to have a column of 0 and 1 for each class, but no headings "
                "that name them. Write the class in one column."
            )
        return True
