"""The rows of a table in an archive, and which image a name in them means."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np
import numpy.typing as npt

from hpc_mlp.conversion.archive import Names, Source
from hpc_mlp.conversion.entries import IMAGE_SUFFIXES, suffix_of
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
    of JSON objects (.jsonl, .json; the first row has their keys), or of words (.txt). UserError
    where it cannot be read."""
    try:
        data = source.read(index)
        # Windows' PowerShell and Excel write UTF-16, with its mark.
        text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
        suffix = suffix_of(source.names[index])
        if suffix == "json":
            return _whole(json.loads(text))
        if suffix in ("jsonl", "ndjson"):
            return _objects(
                [
                    (i, json.loads(line))
                    for i, line in enumerate(text.split("\n"), 1)
                    if line.strip()
                ]
            )
        line = text.split("\n", 1)[0]
        if suffix == "txt" and not any(sign in line for sign in ",;\t"):
            return _words(text)
        delimiter = max(",;\t|", key=line.count)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        # Excel's first line may name its separator: sep=;
        return [
            (reader.line_num, [cell.strip() for cell in row])
            for row in reader
            if any(map(str.strip, row)) and not (reader.line_num == 1 and row[0] == "sep=")
        ]
    except UnicodeDecodeError:
        raise UserError(
            f"{shown} cannot be read: it is not UTF-8. Save it as UTF-8 text; in Excel, save it "
            "as 'CSV UTF-8'."
        ) from None
    except (RejectError, csv.Error, RecursionError, ValueError) as error:
        raise UserError(
            f"{shown} cannot be read ({printable(error)}). Write it as UTF-8 text: file name, "
            "class."
        ) from None


def _words(text: str) -> Rows:
    """`path label` lines, and comments (#). Where they are not all of as many words, the last one
    is the label."""
    lines = [
        (i, line)
        for i, line in enumerate(text.splitlines(), 1)
        if line.strip()
        and not (line[0] == "#" and suffix_of(line.split()[0]) not in IMAGE_SUFFIXES)
    ]
    if len({len(line.split()) for _, line in lines}) == 1:
        return [(i, line.split()) for i, line in lines]
    return [(i, line.strip().rsplit(None, 1)) for i, line in lines]


def _whole(found: object) -> Rows:
    """Of a list of objects; of one of file names and classes, or of file names and objects; or of
    a list of file names and classes. ValueError for anything else."""
    if isinstance(found, dict) and len(found) == 1:
        # {"labels": …}
        only = next(iter(found.values()))
        found = only if isinstance(only, list) else found
    if isinstance(found, dict) and found:
        if all(isinstance(value, dict) for value in found.values()):
            return _objects([(0, {"file": name} | value) for name, value in found.items()])
        found = [[name, value] for name, value in found.items()]
    if isinstance(found, list) and all(isinstance(row, dict) for row in found):
        return _objects(list(enumerate(found, 1)))
    if isinstance(found, list) and all(
        isinstance(row, list)
        and len(row) == 2
        and not any(isinstance(value, list | dict) for value in row)
        for row in found
    ):
        return [(i, [plain_text(value) for value in row]) for i, row in enumerate(found, 1)]
    raise ValueError("it is no JSON of file names and classes")


def _objects(found: list[tuple[int, object]]) -> Rows:
    """Line and object. ValueError, with the line, for one that is no JSON object."""
    objects = [(i, _object(i, one)) for i, one in found]
    keys = list(dict.fromkeys(key for _, one in objects for key in one))
    rows = [(i, [one.get(key, "") for key in keys]) for i, one in objects]
    return [(0, keys), *rows] if keys else []


def _object(line: int, found: object) -> dict[str, str]:
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
        self.example = names[int(images[0])] if len(images) else ""
        self._exact: dict[str, int] = {}
        # -1: more than one
        self._loose: dict[str, int] = {}
        # The same of `_plain` names.
        self._spelt: tuple[dict[str, int], dict[str, int], list[str]] | None = None
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

    def find_misspelt(self, name: str) -> int | None:
        """For a name that `find` does not know: whatever the suffix, in capitals or not, and
        however Unicode writes its letters."""
        if self._spelt is None:
            # Late: of a million images they take much memory.
            exact, loose = dict[str, int](), dict[str, int]()
            for path, index in self._exact.items():
                for names, key in ((exact, _plain(path)), (loose, _plain(path.rpartition("/")[2]))):
                    names[key] = -1 if key in names else index
            self._spelt = (exact, loose, [*map(_plain, self._tops)])
        found = _search(_plain(name.replace("\\", "/")), *self._spelt)
        return None if found is None or found < 0 else found

    def knows(self, name: str) -> bool:
        """Whether one image is called so, or several."""
        return self._index(name) is not None

    def is_ambiguous(self, name: str) -> bool:
        return self._index(name) == -1

    def _index(self, name: str) -> int | None:
        return _search(name.replace("\\", "/"), self._exact, self._loose, self._tops)


def _search(
    name: str, exact: dict[str, int], loose: dict[str, int], tops: Sequence[str]
) -> int | None:
    """Folders above those of the archive do not matter: `/home/me/cats/1.jpg` is cats/1.jpg."""
    name = name.removeprefix("./")
    found = exact.get(name, loose.get(name))
    while found is None:
        below = (exact.get(top + name) for top in tops)
        found = next((index for index in below if index is not None), None)
        if "/" not in name:
            break
        name = name.partition("/")[2]
    return found


def _plain(name: str) -> str:
    stem, _, suffix = name.rpartition(".")
    name = stem if stem and suffix.lower() in IMAGE_SUFFIXES else name
    return unicodedata.normalize("NFC", name).casefold()
