"""Classes of a WebDataset: beside each image a .cls or .json of the same key."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator

import numpy as np

from hpc_mlp.conversion.archive import Source
from hpc_mlp.conversion.asked import ColumnNames
from hpc_mlp.conversion.columns import CLASS_COLUMNS, GROUP_COLUMNS
from hpc_mlp.conversion.entries import Sorted, suffix_of
from hpc_mlp.conversion.reading import Reading, loose_split
from hpc_mlp.conversion.rows import head, plain_text
from hpc_mlp.errors import RejectError, UserError, printable

KIND = "WebDataset"
# Bytes of a .cls or .json: more is no label.
_MOST_BYTES = 1 << 20
# Sidecars that are looked at, and entries around them.
_LOOKED_AT, _NEAR = 50, 8
_SECOND = "another image of its sample comes first"


def are_here(source: Source, piece: Sorted, json_too: bool) -> bool:
    """Whether one of the first .cls or, with `json_too`, .json stands beside an image of its
    key."""
    for index in piece.sidecars[:_LOOKED_AT].tolist():
        if suffix_of(source.names[index]) == "cls" or json_too:
            near = range(max(0, index - _NEAR), min(len(source.names), index + _NEAR + 1))
            images = piece.images[np.searchsorted(piece.images, near.start) :][: len(near)]
            key = _key(source.names[index])
            if any(i in near and _key(source.names[i]) == key for i in images.tolist()):
                return True
    return False


def read(source: Source, piece: Sorted, label: str, names: ColumnNames) -> Reading:
    """`label`: the archive's name, which may say the split (train-000000.tar). UserError where a
    .json does not say which of its keys is the class."""
    if other := ColumnNames(names.file, None, names.split).options():
        raise UserError(f"{other[0]} is for a table: {printable(label)} is a WebDataset.")
    split = loose_split(label.removesuffix(".tar"))
    numbers: dict[str, int] = {}
    entries, labels, groups = [], [], []
    rejects: list[tuple[str, str]] = []
    taken: Counter[str] = Counter()
    for sample in _samples(source, piece):
        found = [index for index, kind in sample if kind == "image"]
        rejects += [(source.names[index], _SECOND) for index in found[1:]]
        if not found:
            continue
        sides = {kind: index for index, kind in reversed(sample) if kind != "image"}
        kind = "cls" if "cls" in sides else "json"
        try:
            if kind not in sides:
                raise RejectError("has no .cls or .json beside it")
            name, group, how = _said(source, sides[kind], names)
        except RejectError as error:
            rejects.append((source.names[found[0]], str(error)))
            continue
        taken[how] += 1
        entries.append(found[0])
        labels.append(numbers.setdefault(name, len(numbers)))
        groups.append(group)
    if not entries:
        raise UserError(
            f"{printable(source.label)} looks like a WebDataset, but none of its .cls or .json "
            f"says a class: {printable(rejects[0][0])} {printable(rejects[0][1])}."
        )
    notes = [f"took classes from {' and '.join(sorted(taken))}"]
    if names.group and not any(groups):
        raise UserError(
            f"--group-column {names.group!r}: no .json that says a class in "
            f"{printable(source.label)} has such a key."
        )
    splits = np.full(len(entries), -1 if split is None else split, np.int8)
    return Reading(
        KIND,
        list(numbers),
        np.array(entries, np.int64),
        np.array(labels, np.int32),
        splits,
        rejects,
        notes,
        -sum(taken.values()),
        coded=True,
        groups=groups if any(groups) else None,
    )


def _samples(source: Source, piece: Sorted) -> Iterator[list[tuple[int, str]]]:
    """Entries (index, "image" | "cls" | "json") that follow each other and have one key."""
    order = np.sort(np.concatenate([piece.images, piece.sidecars]))
    is_image = np.isin(order, piece.images, assume_unique=True)
    before, sample = None, list[tuple[int, str]]()
    for index, image in zip(order.tolist(), is_image.tolist(), strict=True):
        name = source.names[index]
        key = _key(name)
        if key != before and sample:
            yield sample
            sample = []
        before = key
        sample.append((index, "image" if image else suffix_of(name)))
    if sample:
        yield sample


def _key(name: str) -> str:
    """Up to the first dot of the file name."""
    folder, slash, base = name.rpartition("/")
    return f"{folder}{slash}{base.split('.', 1)[0]}"


def _said(source: Source, index: int, names: ColumnNames) -> tuple[str, str, str]:
    """The class that a .cls or .json says, the group ("": none), and where the class stands, in
    words. RejectError where there is no class."""
    try:
        text = source.read(index, _MOST_BYTES).decode("utf-8-sig").strip()
        if suffix_of(source.names[index]) == "cls":
            return _checked(text), "", ".cls"
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RejectError(f"its label cannot be read: {error}") from None
    if not isinstance(found, dict):
        return _checked(plain_text(found)), "", ".json"
    key = _key_of(found, names.label, CLASS_COLUMNS)
    if key is None:
        known = ", ".join(map(printable, list(found)[:8]))
        raise UserError(
            f"{printable(source.names[index])} in {printable(source.label)}: which of its keys is "
            f"the class: {known}? Say it with --label-column."
        )
    group = _key_of(found, names.group, GROUP_COLUMNS)
    named = "" if group in (None, key) else plain_text(found[group])
    return _checked(plain_text(found[key])), named, f"{printable(key)!r} in .json"


def _key_of(found: dict[str, object], wanted: str | None, usual: tuple[str, ...]) -> str | None:
    """The key that the user names, else the first that is called as usual."""
    if wanted is not None:
        return wanted if wanted in found else None
    heads = {head(key): key for key in reversed(found)}
    return next((heads[name] for name in usual if name in heads), None)


def _checked(name: str) -> str:
    """RejectError for what is no name of a class."""
    if not name or len(name) > 200:
        raise RejectError(f"{name[:40]!r} is no name of a class")
    return name
