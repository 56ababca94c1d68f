"""From the names in an archive to classes, splits and groups.

Each archive is read by the reader of its own layout, as `choice` says: `folders` (class folders,
split folders), `chosen_tables` (labels.csv and others), `samples` (WebDataset), or the source
itself (`npzsource`, `parquetsource`); or by `from_names`. A reader gives a `Reading`; here they are
put together, and it is said what was recognised."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt

from hpc_mlp.conversion import (
    chosen_tables,
    class_names,
    from_names,
    given_groups,
    parquetsource,
    samples,
)
from hpc_mlp.conversion.archive import SeveralSources, Source
from hpc_mlp.conversion.asked import Asked
from hpc_mlp.conversion.choice import Choice, listed
from hpc_mlp.conversion.entries import TEXT_SUFFIXES, some_names, sort_out, suffix_of
from hpc_mlp.conversion.given_groups import GivenGroups
from hpc_mlp.conversion.reading import Reading, loose_split
from hpc_mlp.data.limits import SPLITS
from hpc_mlp.errors import UserError, printable
from hpc_mlp.terminal.text import count, natural_key
from hpc_mlp.terminal.text import listed as listed_names

Array = TypeVar("Array", bound="npt.NDArray[Any]")
_NOTHING = Asked()


@dataclass
class Layout:
    """`entries[i]` (an index into the source) has class `labels[i]` and, where the archive brings
    its own splits, split `splits[i]` (an index into SPLITS; -1 elsewhere). All in the archive's
    order. `notes`: what was recognised, used and not used, a line each."""

    # "class folders" | "split folders" | … | "labels.csv", or several of these
    kind: str
    classes: tuple[str, ...]
    entries: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int32]
    splits: npt.NDArray[np.int8]
    groups: GivenGroups
    num_ignored: int
    # (name, reason), by the listing alone
    rejects: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """What was recognised."""
        ignored = f", {count(self.num_ignored, 'other file')} ignored" if self.num_ignored else ""
        images, classes = count(len(self.entries), "image"), count(len(self.classes), "class")
        return [f"{self.kind}: {images} of {classes}{ignored}", *(f"  {n}" for n in self.notes)]


def find_layout(source: Source, asked: Asked = _NOTHING, tables: Sequence[int] = ()) -> Layout:
    """`tables`: the entries that --labels names. UserError where there are no images, fewer than
    two classes, names that lead outside, or not what is `asked` for."""
    pattern = asked.pattern()
    found = sort_out(source)
    parts = source.parts() if isinstance(source, SeveralSources) else [range(len(source.names))]
    if not len(found.images) and not found.label_files:
        raise no_images(source, found.rejects, len(found.rejects), holds_numbers(source))
    chosen = Choice(source, found, parts, asked)
    if pattern is not None:
        readings = [from_names.read(source, found.images, pattern)]
        chosen.leave_labels_files(readings)
    elif tables:
        readings = chosen_tables.read_named(source, found.images, tables, asked.columns)
        chosen.leave_labels_files(readings, tables)
    elif apart := chosen.apart():
        readings = apart
    else:
        readings = chosen.by_part()
        if len(parts) > 1:
            readings[0].notes[:0] = _part_lines(chosen, readings)
    layout = _together(source, chosen, readings)
    layout.groups = given_groups.by_path(source, layout.entries, asked) or layout.groups
    layout.notes += layout.groups.lines()
    return layout


def _together(source: Source, chosen: Choice, readings: Sequence[Reading]) -> Layout:
    found = chosen.found
    class_names.name_numbers(source, found.class_lists, readings)
    names = {name for reading in readings for name in reading.classes}
    rejects = [*found.rejects, *(reject for reading in readings for reject in reading.rejects)]
    notes = list(dict.fromkeys(note for reading in readings for note in reading.notes))
    notes += _alike_lines(names)
    everything = tuple(sorted(names, key=natural_key))
    number = {name: i for i, name in enumerate(everything)}
    numbers = [
        np.array([number[name] for name in reading.classes], np.int32) for reading in readings
    ]
    labels = _joined(
        [table[reading.labels] for table, reading in zip(numbers, readings, strict=True)]
    )
    entries = _joined([reading.entries for reading in readings])
    splits = _joined([reading.splits for reading in readings])
    groups = given_groups.of_readings(readings)
    if len(readings) > 1:
        order = np.argsort(entries, kind="stable")
        entries, labels, splits = entries[order], labels[order], splits[order]
        groups = groups.of(order)
    # A class is what can be learnt: of a class that has images for val or test alone, nothing is.
    trained = np.isin(labels, labels[splits <= 0])
    for lost in np.unique(labels[~trained]).tolist():
        here = np.flatnonzero(labels == lost)
        where = " and ".join(SPLITS[i] for i in np.unique(splits[here]).tolist())
        notes.append(
            f"WARNING: class {everything[lost]!r} has no training images: "
            f"its {len(here):,} in {where} are left out"
        )
    untrained = np.flatnonzero(~trained).tolist()
    rejects += [
        (source.names[int(entries[i])], f"class {everything[labels[i]]!r} has no training images")
        for i in untrained
    ]
    if len(untrained):
        entries, labels, splits = entries[trained], labels[trained], splits[trained]
        groups = groups.of(trained)
    kept = sorted({int(i) for i in np.unique(labels)})
    classes = _enough(source, tuple(everything[i] for i in kept), chosen)
    renumbered = np.full(len(everything), -1, np.int32)
    renumbered[kept] = np.arange(len(kept))
    ignored = found.num_ignored + sum(reading.num_ignored for reading in readings)
    kind = " + ".join(dict.fromkeys(reading.kind for reading in readings))
    layout = Layout(
        kind, classes, entries, renumbered[labels], splits, groups, ignored, rejects, notes
    )
    layout.notes += [*_split_lines(splits), *_unread_lines(chosen)]
    return layout


def _joined(parts: Sequence[Array]) -> Array:
    """Without a copy where there is one."""
    return parts[0] if len(parts) == 1 else cast(Array, np.concatenate(parts))


def _enough(source: Source, classes: tuple[str, ...], chosen: Choice) -> tuple[str, ...]:
    """The classes. UserError where they are fewer than two."""
    if len(classes) >= 2:
        return classes
    what = f"only one class, {printable(classes[0])!r}" if classes else "no class folders"
    found, unused = chosen.found, chosen.unused
    names = from_names.advice(source, found.images)
    tables = f" Tables that it holds:{listed(unused)[1:]}." if unused else ""
    if unused:
        tables += " Read one with --labels FILE, --file-column and --label-column."
    foreign = f" Save {some_names(source, found.foreign)} as CSV." if found.foreign else ""
    raise UserError(
        f"{printable(source.label)} holds {what}; at least two are needed. "
        f"Expected is one folder of images for each class, such as cats/001.jpg and dogs/001.jpg, "
        f"or a table of file names and classes.{names}{tables}{foreign}"
    )


def _part_lines(chosen: Choice, readings: Sequence[Reading]) -> Iterable[str]:
    """What each archive gives; of many files of one kind together."""
    given = [bool((reading.splits >= 0).any()) for reading in readings]
    # What is recognised, what is said of its splits, a number where it stands alone.
    lines: dict[tuple[str, str, int], list[int]] = {}
    for number, part in enumerate(chosen.parts):
        piece = chosen.pieces[number]
        helpers = {*piece.class_lists, *(chosen.apart_tables and piece.tables)}
        if helpers and not len(piece.images):
            continue
        mine = [i for i, r in enumerate(readings) if len(r.entries) and int(r.entries[0]) in part]
        kinds = " + ".join(dict.fromkeys(readings[i].kind for i in mine))
        without = any(given) and mine and not any(given[i] for i in mine)
        splits = ", without splits: all go to training" if without else ""
        alone = -1 if kinds in (samples.KIND, parquetsource.KIND) else number
        lines.setdefault((kinds or "nothing that can be used", splits, alone), []).append(number)
    for (kinds, splits, _), numbers in lines.items():
        names = [chosen.inner[number].label for number in numbers]
        named = names[0] if len(names) == 1 else f"{names[0]} … {names[-1]} ({len(names)} files)"
        images = sum(len(chosen.pieces[number].images) for number in numbers)
        yield f"{named}: {kinds}, {count(images, 'image')}{splits}"


def _alike_lines(names: Iterable[str]) -> Iterable[str]:
    """Classes that may be meant as one."""
    alike: dict[str, list[str]] = {}
    for name in sorted(names, key=natural_key):
        plain = unicodedata.normalize("NFKC", name).casefold()
        alike.setdefault(re.sub(r"[\s_-]+", " ", plain), []).append(repr(printable(name)))
    if several := [" and ".join(one) for one in alike.values() if len(one) > 1]:
        yield f"classes of nearly one name are kept apart: {listed_names(several, 3)}"


def _split_lines(splits: npt.NDArray[np.int8]) -> Iterable[str]:
    if not (splits >= 0).any():
        return
    counts = {name: int((splits == i).sum()) for i, name in enumerate(SPLITS)}
    line = "splits as the archive says: " + ", ".join(f"{n} {c:,}" for n, c in counts.items() if c)
    if missing := [name for name in SPLITS[1:] if not counts[name]]:
        line += f"; {' and '.join(missing)} drawn from train"
    yield line


def _unread_lines(chosen: Choice) -> Iterable[str]:
    """Tables that are not used. Of texts, few are."""
    if chosen.unused:
        yield f"not used{listed(chosen.unused)}"
    names_of = chosen.source.names
    asides = [i for i in chosen.unread if suffix_of(names_of[i]) not in TEXT_SUFFIXES]
    lists = [i for i in chosen.unread if suffix_of(names_of[i]) == "txt"]
    if splits := [i for i in lists if loose_split(names_of[i].rpartition("/")[2]) is not None]:
        yield (
            f"not used: {some_names(chosen.source, splits)} (folders are the classes; each with "
            "--labels, they may say the splits)"
        )
    if asides:
        names = some_names(chosen.source, asides)
        yield f"not used: {names} (--labels FILE takes classes from a table)"


def holds_numbers(source: Source) -> str:
    """The name of a table or array; "" where there is none."""
    return next((name for name in source.names if suffix_of(name) in ("csv", "npy")), "")


def no_images(
    source: Source, first: Sequence[tuple[str, str]], count: int, numbers: str = ""
) -> UserError:
    """`first` of `count` rejects: name and reason. `numbers`: what may hold the pixels."""
    why = (
        f" Entries that cannot be taken: {count:,}, the first {printable(first[0][0])}: "
        f"{printable(first[0][1])}."
        if first
        else ""
    )
    return UserError(
        f"{printable(source.label)} holds no images that can be read.{why} "
        f"Expected are images in one folder for each class, such as cats/001.jpg and dogs/001.jpg."
        + (
            f" Pixels in {printable(numbers)} are not read: save them with their classes as one "
            ".npz, numpy.savez(file, images=…, labels=…)."
            if numbers
            else ""
        )
    )
