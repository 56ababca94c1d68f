"""A .parquet of images as bytes and classes (as data hubs keep them), read by pyarrow."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from hpc_mlp.conversion.archive import MAX_ENTRY_BYTES, Names, check_size
from hpc_mlp.conversion.asked import ColumnNames
from hpc_mlp.conversion.columns import CLASS_COLUMNS, GROUP_COLUMNS
from hpc_mlp.conversion.entries import IMAGE_SUFFIXES, suffix_of
from hpc_mlp.conversion.reading import SPLIT_NAMES, Reading, loose_split
from hpc_mlp.conversion.rows import head, plain_text
from hpc_mlp.errors import RejectError, UserError, nearest, printable
from hpc_mlp.files.digest import file_sha256

KIND = "parquet"
_IMAGE_COLUMNS = ("image", "img", "picture", "photo", "png", "jpg", "jpeg")


class ParquetSource:
    """Its rows are the entries, called by their number and, where the file says one, their name.
    UserError where it has no column of images, or pyarrow is missing."""

    def __init__(self, path: Path, scratch: Path, shown: str | None = None) -> None:
        try:
            import pyarrow.parquet
        except ImportError:
            raise UserError(
                f"{printable(shown or path)}: to read .parquet, pyarrow is needed: pip install "
                "'hpc-mlp[parquet]'"
            ) from None
        self._arrow: Any = pyarrow
        self.path, self.label, self.shown = path, path.name, shown or str(path)
        self.problems: dict[int, str] = {}
        # A process opens its own, and keeps one group of rows.
        self._opened_by, self._file = -1, None
        self._group: tuple[int, Any] = (-1, None)
        with self._readable():
            file = self._open()
            self._schema = file.schema_arrow
            self._rows = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            # Where it is not clear which, the user may still say it.
            found = {head(f.name): f.name for f in self._schema if self._holds_bytes(f.type)}
            usual = [found[name] for name in _IMAGE_COLUMNS if name in found]
            only = [*found.values()] if len(found) == 1 else []
            self.column: str = (usual or only or [""])[0]
            self.names = Names(self._names(file))
        self._starts = np.concatenate([[0], np.cumsum(self._rows)])

    @contextmanager
    def _readable(self) -> Iterator[None]:
        """UserError where pyarrow finds damage within, whatever it raises."""
        try:
            yield
        except UserError:
            raise
        except (self._arrow.ArrowException, OSError, ValueError, KeyError, OverflowError) as error:
            why = str(error).partition("\n")[0]
            raise UserError(
                f"{printable(self.shown)} cannot be read as a parquet file ({printable(why)}). Is "
                "it complete?"
            ) from None

    def _open(self) -> Any:
        if self._opened_by != os.getpid():
            self._file = self._arrow.parquet.ParquetFile(self.path, pre_buffer=False)
            self._opened_by, self._group = os.getpid(), (-1, None)
        return self._file

    def _choose_images(self, wanted: str | None) -> None:
        if wanted is not None:
            self.column = wanted
        known = [field.name for field in self._schema if self._holds_bytes(field.type)]
        if self.column not in known:
            raise UserError(
                f"{printable(self.shown)} should have one column of images as bytes. Its columns "
                f"are {printable(', '.join(self._schema.names))}; of bytes are "
                f"{printable(', '.join(known)) or 'none'}. Choose with --file-column."
            )

    def _holds_bytes(self, kind: Any) -> bool:
        types = self._arrow.types
        if types.is_struct(kind) and (at := kind.get_field_index("bytes")) >= 0:
            kind = kind.field(at).type
        return bool(types.is_binary(kind) or types.is_large_binary(kind))

    def _names(self, file: Any) -> list[str]:
        paths: list[str | None] = [None] * sum(self._rows)
        kind = self._schema.field(self.column).type if self.column else None
        if (
            kind is not None
            and self._arrow.types.is_struct(kind)
            and kind.get_field_index("path") >= 0
        ):
            column = file.read(columns=[f"{self.column}.path"], use_threads=False)[self.column]
            paths = [(row or {}).get("path") for row in column.to_pylist()]
        return [_name(number, path) for number, path in enumerate(paths)]

    def read(self, index: int, limit: int = MAX_ENTRY_BYTES) -> bytes:
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        try:
            file = self._open()
            if self._group[0] != number:
                self._group = (-1, None)
                table = file.read_row_group(number, columns=[self.column], use_threads=False)
                self._group = (number, table[self.column])
            value = self._group[1][index - int(self._starts[number])]
        except (self._arrow.ArrowException, OSError) as error:
            raise RejectError(f"cannot be read: {str(error).partition(chr(10))[0]}") from None
        if self._arrow.types.is_struct(value.type):
            value = value["bytes"] if value.is_valid else value
        if not value.is_valid:
            raise RejectError("its bytes are not in the file")
        data: bytes = value.as_py()
        check_size(len(data), limit)
        return data

    def sha256(self) -> str:
        return file_sha256(self.path)

    def close(self) -> None:
        self._file, self._opened_by = None, -1

    def reading(self, start: int, names: ColumnNames) -> Reading:
        self._choose_images(names.file)
        label = self._column(names.label, "label", CLASS_COLUMNS)
        if label is None:
            raise UserError(
                f"{printable(self.shown)}: which of its columns is the class: "
                f"{printable(', '.join(self._others()))}? Say it with --label-column."
            )
        split = self._column(names.split, "split", ())
        group = self._column(names.group, "group", GROUP_COLUMNS) if names.group != "" else None
        group = None if group == label else group
        called = self._class_names(label)
        classes = [plain_text(value) for value in self._values(label)]
        if called:
            numbers = [int(n) if n.isdigit() else -1 for n in classes]
            classes = [called[n] if 0 <= n < len(called) else "" for n in numbers]
        known = np.array([bool(name) for name in classes], bool)
        numbers_of = {name: i for i, name in enumerate(dict.fromkeys(classes))}
        labels = np.array([numbers_of[name] for name in classes], np.int32)
        notes = [f"took column {self.column!r} as image, {label!r} as class"]
        notes[0] += f", {split!r} as split" if split else ""
        notes[0] += f", {group!r} as group" if group else ""
        notes[0] += ", with the names in the file" if called else ""
        unused = [name for name in self._others() if name not in (label, split, group)]
        notes[0] += f"; not used: {', '.join(unused)}" if unused else ""
        rejects = [(self.names[i], "has no class") for i in np.flatnonzero(~known).tolist()]
        groups = [plain_text(value) for value in self._values(group)] if group else None
        reading = Reading(
            KIND,
            list(numbers_of),
            start + np.arange(len(known)),
            labels,
            self._splits(split),
            rejects,
            [printable(note) for note in notes],
            coded=True,
            groups=groups,
        )
        reading.keep(known)
        return reading

    def _others(self) -> list[str]:
        return [name for name in self._schema.names if name != self.column]

    def _column(self, name: str | None, what: str, usual: tuple[str, ...]) -> str | None:
        """The one that the user names, else the first that is called as usual."""
        known = self._others()
        if name is None:
            heads = {head(one): one for one in reversed(known)}
            default = known[0] if usual and len(known) == 1 else None
            return next((heads[one] for one in usual if one in heads), default)
        if name in known:
            return name
        near = nearest(name, known)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UserError(
            f"--{what}-column {name!r}: {printable(self.shown)} has no such column.{hint} It has "
            f"{printable(', '.join(known))}."
        )

    def _values(self, column: str) -> list[object]:
        with self._readable():
            table = self._open().read(columns=[column], use_threads=False)
            values: list[object] = table[column].to_pylist()
        return values

    def _class_names(self, label: str) -> list[str]:
        """Those that the file itself has for numbers; else none."""
        try:
            found = json.loads((self._schema.metadata or {})[b"huggingface"])
            names = found["info"]["features"][label]["names"]
        except (KeyError, ValueError, TypeError):
            return []
        return [str(name) for name in names] if isinstance(names, list) else []

    def _splits(self, column: str | None) -> Any:
        """int8 [N]: of a column, else by the file's name."""
        if column is None:
            split = loose_split(self.label.removesuffix(".parquet"))
            return np.full(len(self.names), -1 if split is None else split, np.int8)
        values = [plain_text(value).lower() for value in self._values(column)]
        if wrong := [value for value in values if value not in SPLIT_NAMES]:
            raise UserError(
                f"{printable(self.shown)}: {printable(wrong[0])!r} in its column {column!r} is "
                "none of train, val, test."
            )
        return np.array([SPLIT_NAMES[value] for value in values], np.int8)


def _name(number: int, path: str | None) -> str:
    base = (path or "").replace("\\", "/").rsplit("/", 1)[-1]
    return f"{number:06d}-{base}" if suffix_of(base) in IMAGE_SUFFIXES else f"{number:06d}.png"
