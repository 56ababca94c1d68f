"""The rows of a table in an archive, and which image a name in them means."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from pathlib import PurePosixPath

import numpy as np
import numpy.typing as npt

from hpc_mlp.conversion.archive import Names, Source
from hpc_mlp.conversion.entries import suffix_of
from hpc_mlp.errors import RejectError, UserError, printable

Row = list[str]
Rows = list[tuple[int, Row]]


def cell(row: Row, column: int) -> str:
    return row[column] if column < len(row) else ""


def head(cell: str) -> str:
    return re.sub(r"[\s-]+", "_", cell.lower())


def flag(cell: str) -> int | None:
    return {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}.get(cell.lower())


def read_rows(source: Source, index: int, shown: str) -> Rows:
    """Line number and cells of every row that is not blank: of lines with separators (.csv, .tsv),
    of JSON objects (.jsonl; the first row has their keys), or of words (.txt). UserError where it
    cannot be read."""
    try:
        text = source.read(index).decode("utf-8-sig")
        suffix = suffix_of(source.names[index])
        if suffix in ("jsonl", "ndjson"):
            return _objects(text)
        line = text.split("\n", 1)[0]
        if suffix == "txt" and not any(sign in line for sign in ",;\t"):
            return _words(text)
        delimiter = max(",;\t", key=line.count)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        return [
            (reader.line_num, [cell.strip() for cell in row])
            for row in reader
            if any(map(str.strip, row))
        ]
    except (RejectError, UnicodeDecodeError, csv.Error, RecursionError, ValueError) as error:
        raise UserError(
            f"{shown} cannot be read ({printable(error)}). Write it as UTF-8 text: file name, "
            "class."
        ) from None


def _words(text: str) -> Rows:
    """`path label` lines. Where they are not all of as many words, the last one is the label."""
    lines = [(i, line) for i, line in enumerate(text.splitlines(), 1) if line.strip()]
    if len({len(line.split()) for _, line in lines}) == 1:
        return [(i, line.split()) for i, line in lines]
    return [(i, line.strip().rsplit(None, 1)) for i, line in lines]


def _objects(text: str) -> Rows:
    """ValueError, with the line, for one that is no JSON object."""
    objects = [(i, _object(i, line)) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
    keys = list(dict.fromkeys(key for _, one in objects for key in one))
    rows = [(i, [one.get(key, "") for key in keys]) for i, one in objects]
    return [(0, keys), *rows] if keys else []


def _object(line: int, text: str) -> dict[str, str]:
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError(f"line {line} is no JSON object")
    return {key.strip(): plain_text(value) for key, value in found.items()}


def plain_text(value: object) -> str:
    """A value of JSON as a cell of a table: 3 and 3.0 are the same class. Half a character, which
    JSON may hold and no file, is shown as one that cannot be read."""
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass").decode("utf-8", "replace").strip()
    return json.dumps(value, default=str)


class Lookup:
    """Finds an image by what a labels file calls it: its path, or its base name where that is
    unique, each with or without the suffix."""

    def __init__(self, names: Names, images: npt.NDArray[np.int64], folder: PurePosixPath) -> None:
        self.num_images = len(images)
        self._exact: dict[str, int] = {}
        # -1: more than one
        self._loose: dict[str, int] = {}
        prefix = "" if str(folder) == "." else f"{folder}/"
        for index in images.tolist():
            name = names[index]
            self._exact[name.removeprefix(prefix)] = index
            base = name.rsplit("/", 1)[-1]
            for key in {base, name.removeprefix(prefix).rsplit(".", 1)[0], base.rsplit(".", 1)[0]}:
                self._loose[key] = -1 if key in self._loose else index
        # The folders that hold all: they are not always named.
        ends = (min(self._exact), max(self._exact)) if self._exact else ("", "")
        shared = os.path.commonprefix(ends).split("/")[:-1]  # noqa: RUF071 (cut at a slash)
        self._tops = ["".join(f"{part}/" for part in shared[:n]) for n in range(len(shared) + 1)]

    def find(self, name: str) -> int | None:
        index = self._index(name)
        return None if index is None or index < 0 else index

    def is_ambiguous(self, name: str) -> bool:
        return self._index(name) == -1

    def _index(self, name: str) -> int | None:
        """Folders above those of the archive do not matter: `/home/me/cats/1.jpg` is cats/1.jpg."""
        name = name.replace("\\", "/").removeprefix("./")
        found = self._exact.get(name, self._loose.get(name))
        while found is None:
            below = (self._exact.get(top + name) for top in self._tops)
            found = next((index for index in below if index is not None), None)
            if "/" not in name:
                break
            name = name.partition("/")[2]
        return found
