"""The rows of a table in an archive, and which image a name in them means."""

from __future__ import annotations

import csv
import io
import re
from pathlib import PurePosixPath

import numpy as np
import numpy.typing as npt

from hpc_mlp.conversion.archive import Names, Source
from hpc_mlp.errors import RejectError, UserError, printable

Row = list[str]


def cell(row: Row, column: int) -> str:
    return row[column] if column < len(row) else ""


def head(cell: str) -> str:
    return re.sub(r"[\s-]+", "_", cell.lower())


def flag(cell: str) -> int | None:
    return {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}.get(cell.lower())


def read_rows(source: Source, index: int, shown: str) -> list[tuple[int, Row]]:
    """Line number and cells of every row that is not blank. File names have forward slashes."""
    try:
        text = source.read(index).decode("utf-8-sig")
        line = text.split("\n", 1)[0]
        delimiter = max(",;\t", key=line.count)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        return [
            (reader.line_num, [cell.strip() for cell in row])
            for row in reader
            if any(map(str.strip, row))
        ]
    except (RejectError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"{shown} cannot be read ({printable(error)}). Write it as UTF-8 text: file name, "
            "class."
        ) from None


class Lookup:
    """Finds an image by what a labels file calls it: its path, or its base name where that is
    unique, each with or without the suffix."""

    def __init__(self, names: Names, images: npt.NDArray[np.int64], folder: PurePosixPath) -> None:
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

    def find(self, name: str) -> int | None:
        index = self._index(name)
        return None if index is None or index < 0 else index

    def is_ambiguous(self, name: str) -> bool:
        return self._index(name) == -1

    def _index(self, name: str) -> int | None:
        name = name.replace("\\", "/").removeprefix("./")
        return self._exact.get(name, self._loose.get(name))
