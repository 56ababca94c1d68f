"""From the names in an archive to classes and splits."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import numpy as np
import numpy.typing as npt

from hpc_mlp.data.archive import Names, RejectError, SeveralSources, Source
from hpc_mlp.data.manifest import SPLITS
from hpc_mlp.errors import UserError

IMAGE_SUFFIXES = frozenset(
    (
        "jpg", "jpeg", "jpe", "jfif", "mpo", "png", "apng", "gif", "webp", "bmp", "dib", "tif", "tiff",
        "ppm", "pgm", "pbm", "pnm", "jp2", "j2k", "avif",
    )
)  # fmt: skip
ARCHIVE_SUFFIXES = frozenset(("zip", "tar", "gz", "tgz", "7z", "rar", "bz2", "xz"))
_SPLIT_NAMES = {
    "train": 0, "training": 0, "val": 1, "valid": 1, "validation": 1, "test": 2, "testing": 2,
}  # fmt: skip
NOT_IN_CLASS = "not in a class folder"


@dataclass
class Layout:
    """`entries[i]` (an index into the source) has class `labels[i]` and, where the archive brings its own
    splits, split `splits[i]` (an index into SPLITS; -1 elsewhere). All in the archive's order."""

    kind: str  # "class folders" | "split folders" | "labels.csv"
    classes: tuple[str, ...]
    entries: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int32]
    splits: npt.NDArray[np.int8]
    num_ignored: int
    rejects: list[tuple[str, str]] = field(default_factory=list)  # (name, reason), by the listing alone


def natural_key(text: str) -> tuple[tuple[int, int, str], ...]:
    """Sorts `2` before `10`."""
    parts = re.findall(r"[0-9]+|[^0-9]+", text)
    return (*((0, int(p), "") if p[0] in "0123456789" else (1, 0, p) for p in parts), (2, 0, text))


def find_layout(source: Source) -> Layout:
    """UserError where there are no images, fewer than two classes, or names that lead out of the archive."""
    images, ignored, rejects, label_files = sort_out(source)
    if label_files:
        return _from_labels_file(source, images, label_files, ignored, rejects)
    if not len(images):
        raise no_images(source, rejects, len(rejects))
    folders: dict[tuple[str, ...], int] = {}  # folder → number, in order of appearance
    places = np.empty(len(images), np.int32)
    for position, index in enumerate(images.tolist()):
        parts = tuple(_parts(source.names[index])[:-1])
        places[position] = folders.setdefault(parts, len(folders))
    kind, classes, by_folder = _place_folders(source, images, places, list(folders))
    table = np.array(by_folder, np.int32).reshape(-1, 2)
    labels, splits = table[places, 0], table[places, 1].astype(np.int8)
    lost = np.flatnonzero(labels < 0)
    reason = NOT_IN_CLASS if kind == "class folders" else "not in a class folder below train, val or test"
    rejects += [(source.names[int(images[i])], reason) for i in lost.tolist()]
    keep = labels >= 0
    return Layout(kind, classes, images[keep], labels[keep], splits[keep], ignored, rejects)


def no_images(source: Source, first: Sequence[tuple[str, str]], count: int) -> UserError:
    """`first` of `count` rejects: name and reason."""
    why = (
        f" Entries that cannot be taken: {count:,}, the first {first[0][0]}: {first[0][1]}." if first else ""
    )
    return UserError(
        f"{source.label} holds no images that can be read.{why} "
        f"Expected are images in one folder for each class, such as cats/001.jpg and dogs/001.jpg."
    )


def sort_out(source: Source) -> tuple[npt.NDArray[np.int64], int, list[tuple[str, str]], list[int]]:
    """Indices of images; the number of entries ignored; rejects; indices of files named labels.csv."""
    images: list[int] = []
    rejects: list[tuple[str, str]] = []
    label_files: list[int] = []
    ignored = 0
    for index, name in enumerate(source.names):
        if not name or name.endswith("/"):
            continue  # a folder
        base = name.rsplit("/", 1)[-1]
        suffix = base.rsplit(".", 1)[-1].lower() if "." in base else ""
        if _is_hidden(name) or "__MACOSX/" in name or base == "Thumbs.db":
            ignored += 1
        elif base.lower() == "labels.csv":
            label_files.append(index)
        elif suffix in ARCHIVE_SUFFIXES:
            rejects.append((name, "an archive inside the archive is not opened"))
        elif suffix not in IMAGE_SUFFIXES:
            ignored += 1
        elif index in source.problems:
            rejects.append((name, source.problems[index]))
        else:
            check_safe(name, source)
            images.append(index)
    return np.array(images, np.int64), ignored, rejects, label_files


def _is_hidden(name: str) -> bool:
    if name[0] != "." and "/." not in name:  # nearly always
        return False
    return any(part[:1] == "." and part not in (".", "..") for part in name.split("/"))


def check_safe(name: str, source: Source) -> None:
    """UserError for a name that leads out of the archive: nobody makes one by accident."""
    if name[0] == "/" or (".." in name and ".." in name.split("/")) or re.match(r"[A-Za-z]:", name):
        raise UserError(
            f"{source.label} holds {name!r}, a name that leads out of the archive. "
            f"It is not to be trusted: get it from elsewhere, or pack the images again."
        )


def _parts(name: str) -> list[str]:
    return [part for part in name.split("/") if part not in ("", ".")]


# ── class folders, split folders ────────────────────────────────────────────────────────────────────────


def _place_folders(
    source: Source,
    images: npt.NDArray[np.int64],
    places: npt.NDArray[np.int32],
    folders: list[tuple[str, ...]],
) -> tuple[str, tuple[str, ...], list[tuple[int, int]]]:
    """Kind, classes and, for every folder, (class, split); -1 where it has none."""
    if isinstance(source, SeveralSources):  # each may have a top folder of its own
        tops: dict[int, int] = {}
        for part in source.parts():
            here = np.unique(places[(images >= part.start) & (images < part.stop)]).tolist()
            top = _top([folders[i] for i in here])
            for i in here:
                tops[i] = min(top, tops.get(i, top))
        below = [folder[tops[i] :] for i, folder in enumerate(folders)]
    else:
        top = _top(folders)
        below = [folder[top:] for folder in folders]
    first = {folder[0] for folder in below if folder}
    splits = {_SPLIT_NAMES[name.lower()] for name in first if name.lower() in _SPLIT_NAMES}
    all_splits = all(name.lower() in _SPLIT_NAMES for name in first)
    if 0 in splits and (len(splits) > 1 or all_splits):
        return _split_folders(source, below)
    classes = _class_names(source, first)
    number = {name: i for i, name in enumerate(classes)}
    return "class folders", classes, [(number[f[0]], -1) if f else (-1, -1) for f in below]


def _top(folders: Sequence[tuple[str, ...]]) -> int:
    """How many folders to go down until there is more than one, or none that holds folders."""
    depth = 0
    while True:
        children = {folder[depth] for folder in folders if len(folder) > depth}
        deeper = any(len(folder) > depth + 1 for folder in folders)
        if len(children) != 1 or not deeper or next(iter(children)).lower() in _SPLIT_NAMES:
            return depth
        depth += 1


def _split_folders(
    source: Source, below: Sequence[tuple[str, ...]]
) -> tuple[str, tuple[str, ...], list[tuple[int, int]]]:
    inside: dict[int, list[tuple[str, ...]]] = {}
    for folder in below:
        if folder and folder[0].lower() in _SPLIT_NAMES:
            inside.setdefault(_SPLIT_NAMES[folder[0].lower()], []).append(folder[1:])
    top = {split: _top(folders) for split, folders in inside.items()}
    trained = {folder[top[0]] for folder in inside[0] if len(folder) > top[0]}
    classes = _class_names(source, trained)
    number = {name: i for i, name in enumerate(classes)}
    placed = []
    for folder in below:
        split = _SPLIT_NAMES.get(folder[0].lower(), -1) if folder else -1
        name = folder[1 + top[split]] if split >= 0 and len(folder) > 1 + top[split] else None
        placed.append((number.get(name, -1) if name is not None else -1, split))
    return "split folders", classes, placed


def _class_names(source: Source, names: set[str]) -> tuple[str, ...]:
    classes = tuple(sorted(names, key=natural_key))
    if len(classes) < 2:
        found = f"only one class, {classes[0]!r}" if classes else "no class folders"
        raise UserError(
            f"{source.label} holds {found}; at least two are needed. "
            f"Expected is one folder of images for each class, such as cats/001.jpg and dogs/001.jpg."
        )
    return classes


# ── labels.csv ──────────────────────────────────────────────────────────────────────────────────────────


def _from_labels_file(
    source: Source,
    images: npt.NDArray[np.int64],
    label_files: list[int],
    ignored: int,
    rejects: list[tuple[str, str]],
) -> Layout:
    chosen = min(label_files, key=lambda index: (source.names[index].count("/"), index))
    where = source.names[chosen]
    folder = PurePosixPath(where).parent
    wanted: dict[str, str] = {}
    rows = list(_read_rows(source, chosen))
    by_name = _Lookup(source.names, images, folder)
    if rows and by_name.find(rows[0][0]) is None:
        rows = rows[1:]  # a line of headings
    found: dict[int, str] = {}
    for name, label in rows:
        index = by_name.find(name)
        if name in wanted:
            if wanted[name] != label:
                rejects.append((name, f"listed twice in {where}, as {wanted[name]!r} and as {label!r}"))
            continue
        wanted[name] = label
        if index is None:
            rejects.append((name, f"listed in {where}, but not in the archive"))
        elif not label:
            rejects.append((name, f"has no class in {where}"))
        elif "/" in label or label in (".", "..") or "\\" in label:
            raise UserError(
                f"{where} in {source.label} names a class {label!r}: a class name has no slashes."
            )
        else:
            found[index] = label
    if not found:
        raise UserError(
            f"{where} in {source.label} names none of its {len(images)} images. "
            f"Expected are lines of file name and class, such as 001.jpg,cat."
        )
    classes = _class_names(source, set(found.values()))
    number = {name: i for i, name in enumerate(classes)}
    rejects += [(source.names[i], f"not listed in {where}") for i in images.tolist() if i not in found]
    entries = np.array(sorted(found), np.int64)
    labels = np.array([number[found[i]] for i in entries.tolist()], np.int32)
    none = np.full(len(entries), -1, np.int8)
    return Layout("labels.csv", classes, entries, labels, none, ignored + len(label_files) - 1, rejects)


def _read_rows(source: Source, index: int) -> Iterator[tuple[str, str]]:
    where = source.names[index]
    try:
        text = source.read(index).decode("utf-8-sig")
        delimiter = next((d for d in ",;\t" if d in text[:1000]), ",")
        for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter):
            if len(row) >= 2:
                yield row[0].strip().replace("\\", "/"), row[1].strip()
    except (RejectError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"{where} in {source.label} cannot be read ({error}). Write it as UTF-8 text: file name, class."
        ) from None


class _Lookup:
    """Finds an image by what a labels file calls it: its path, or its base name where that is unique,
    each with or without the suffix."""

    def __init__(self, names: Names, images: npt.NDArray[np.int64], folder: PurePosixPath) -> None:
        self._exact: dict[str, int] = {}
        self._loose: dict[str, int] = {}  # -1: more than one
        prefix = "" if str(folder) == "." else f"{folder}/"
        for index in images.tolist():
            name = names[index]
            self._exact[name.removeprefix(prefix)] = index
            base = name.rsplit("/", 1)[-1]
            for key in {base, name.removeprefix(prefix).rsplit(".", 1)[0], base.rsplit(".", 1)[0]}:
                self._loose[key] = -1 if key in self._loose else index

    def find(self, name: str) -> int | None:
        name = name.removeprefix("./")
        index = self._exact.get(name, self._loose.get(name, -1))
        return index if index >= 0 else None


assert set(_SPLIT_NAMES.values()) == set(range(len(SPLITS)))
