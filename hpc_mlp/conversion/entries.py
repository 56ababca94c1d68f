"""The entries of a source, sorted by what they are for: images, tables, labels, the rest."""

from __future__ import annotations

import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hpc_mlp.conversion.archive import Source
from hpc_mlp.conversion.reading import words
from hpc_mlp.errors import UserError, printable

IMAGE_SUFFIXES = frozenset(
    (
        "jpg", "jpeg", "jpe", "jfif", "mpo", "png", "apng", "gif", "webp", "bmp", "dib", "tif",
        "tiff", "ppm", "pgm", "pbm", "pnm", "jp2", "j2k", "avif",
    )
)  # fmt: skip
# Of cameras and instruments: no decoder of ours reads them.
_FOREIGN_IMAGES = frozenset(
    words("heic heif jxl dng cr2 cr3 nef arw orf raf rw2 raw psd svg tga ico dcm nii exr hdr")
)
ARCHIVE_SUFFIXES = frozenset(("zip", "tar", "gz", "tgz", "7z", "rar", "bz2", "xz"))
TABLE_SUFFIXES = frozenset(("csv", "tsv", "jsonl", "ndjson"))
# Those of which an archive may hold many that are no tables.
TEXT_SUFFIXES = frozenset(("txt", "json"))
# They may say something about the images, but are not read inside an archive.
_FOREIGN_TABLES = frozenset(("parquet", "xlsx", "xls", "ods"))
_LABELS_FILES = ("labels.csv", "labels.tsv")
CLASS_LISTS = frozenset(
    f"{stem}.{suffix}"
    for stem in words(
        "classes class_names classnames names labels label_names label_map labelmap labels_map "
        "categories class_map class_to_idx idx_to_class class_indices id2label label2id "
        "cat_to_name label_num_to_disease_map"
    )
    for suffix in ("txt", "csv", "json")
) - {*_LABELS_FILES} | {"manifest.json"}
# So many names stand in a message.
_NAMED = 3


@dataclass
class Sorted:
    """Indices into a source. `label_files`: labels.csv, which is always read. `tables`: others that
    may be. `foreign`: tables that are not read inside an archive. `class_lists`: names for numbers.
    `sidecars`: .cls and .json, which may be the labels of a WebDataset. `num_ignored`: how many
    are no images, all but labels files and folders. `rejects`: (name, reason)."""

    images: npt.NDArray[np.int64]
    label_files: list[int]
    tables: list[int]
    foreign: list[int]
    class_lists: list[int]
    sidecars: npt.NDArray[np.int64]
    num_ignored: int
    rejects: list[tuple[str, str]]

    def within(self, part: range) -> Sorted:
        """Of the entries in `part` alone, without ignored entries and rejects."""

        def some(indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
            # They ascend: a view, no copy.
            first, last = np.searchsorted(indices, (part.start, part.stop)).tolist()
            return indices[first:last]

        def listed(indices: list[int]) -> list[int]:
            return [index for index in indices if index in part]

        return Sorted(
            some(self.images),
            listed(self.label_files),
            listed(self.tables),
            listed(self.foreign),
            listed(self.class_lists),
            some(self.sidecars),
            0,
            [],
        )


def sort_out(source: Source) -> Sorted:
    """UserError for a name that leads out of the archive."""
    images = array("q")
    rejects: list[tuple[str, str]] = []
    label_files: list[int] = []
    tables: list[int] = []
    foreign: list[int] = []
    class_lists: list[int] = []
    sidecars = array("q")
    ignored = 0
    for index, name in enumerate(source.names):
        if not name or name.endswith("/"):
            # A folder.
            continue
        base = name.rsplit("/", 1)[-1]
        suffix = base.rsplit(".", 1)[-1].lower() if "." in base else ""
        if is_hidden(name) or "__MACOSX/" in name or base == "Thumbs.db":
            ignored += 1
        elif base.lower() in _LABELS_FILES:
            label_files.append(index)
        elif suffix in ARCHIVE_SUFFIXES:
            rejects.append((name, "an archive inside the archive is not opened"))
        elif suffix in _FOREIGN_IMAGES:
            rejects.append((name, f"a .{suffix} is not read: save it as PNG or JPEG"))
        elif suffix not in IMAGE_SUFFIXES:
            ignored += 1
            if base.lower() in CLASS_LISTS:
                class_lists.append(index)
            if suffix in TABLE_SUFFIXES or (suffix in TEXT_SUFFIXES and _may_be_list(base)):
                tables.append(index)
            elif suffix in _FOREIGN_TABLES:
                foreign.append(index)
            if suffix in ("cls", "json"):
                sidecars.append(index)
        elif index in source.problems:
            rejects.append((name, source.problems[index]))
        else:
            check_safe(name, source)
            images.append(index)
    return Sorted(
        np.array(images, np.int64),
        label_files,
        tables,
        foreign,
        class_lists,
        np.array(sidecars, np.int64),
        ignored,
        rejects,
    )


def _may_be_list(base: str) -> bool:
    return not base.lower().startswith(("readme", "license", "licence", "requirements"))


def is_hidden(name: str) -> bool:
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


def suffix_of(name: str) -> str:
    base = name.rsplit("/", 1)[-1]
    return base.rsplit(".", 1)[-1].lower() if "." in base else ""


def some_names(source: Source, indices: Sequence[int]) -> str:
    """The first names, and how many more."""
    names = [printable(source.names[i]) for i in indices[:_NAMED]]
    return ", ".join(names) + (
        f" and {len(indices) - _NAMED:,} more" if len(indices) > _NAMED else ""
    )
