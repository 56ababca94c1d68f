"""Which reader is for which archive."""

from __future__ import annotations

from collections.abc import Sequence

from hpc_mlp.conversion import chosen_tables, class_names, folders, parquetsource, samples
from hpc_mlp.conversion.archive import SeveralSources, Source
from hpc_mlp.conversion.asked import Asked
from hpc_mlp.conversion.entries import TEXT_SUFFIXES, Sorted, some_names, suffix_of
from hpc_mlp.conversion.reading import LabelledSource, Reading
from hpc_mlp.errors import UserError, printable

# So many tables stand in a message.
_NAMED = 3


class Choice:
    """Chooses a reader for each of `pieces` of a source. `unread`: tables that were not looked
    into. `unused`: those that were, and why they are not used."""

    def __init__(self, source: Source, found: Sorted, parts: Sequence[range], asked: Asked) -> None:
        self.source, self.found, self.parts, self.asked = source, found, parts, asked
        # Without a copy where there is one: of a million images each array is 8 MB.
        self.pieces = [found.within(part) for part in parts] if len(parts) > 1 else [found]
        self.inner = source.sources if isinstance(source, SeveralSources) else [source]
        self.unread = sorted([*found.tables, *found.foreign])
        self.unused: list[str] = []
        # Tables in an archive of their own, where one other has images.
        with_images = [piece for piece in self.pieces if len(piece.images)]
        self.apart_tables = [
            index
            for piece in self.pieces
            if len(with_images) == 1 and not len(piece.images)
            for index in piece.tables
        ]

    def leave_labels_files(self, readings: Sequence[Reading], tables: Sequence[int] = ()) -> None:
        """`tables`: the only ones that were read."""
        left = [index for index in self.found.label_files if index not in tables]
        self.unread = [index for index in sorted([*left, *self.unread]) if index not in tables]
        # Those have been counted as ignored, unlike labels files.
        others = sum(index not in self.found.label_files for index in tables)
        readings[0].num_ignored = len(left) - others

    def apart(self) -> list[Reading]:
        """Of a table that came without images, about those of the others; else nothing."""
        pieces = self.pieces
        apart = [i for i, piece in enumerate(pieces) if piece.label_files and not len(piece.images)]
        if not apart:
            return []
        if len(apart) > 1 or any(p.label_files for i, p in enumerate(pieces) if i != apart[0]):
            names = some_names(self.source, self.found.label_files)
            raise UserError(
                f"{printable(self.source.label)} holds several labels files: {names}. Say which "
                "one counts with --labels."
            )
        tables = pieces[apart[0]].label_files
        return chosen_tables.read_labels_files(
            self.source, self.found.images, tables, self.asked.columns
        )

    def by_part(self) -> list[Reading]:
        trees = [
            folders.Tree(self.source.names, piece.images)
            if len(piece.images) and not piece.label_files and not isinstance(inner, LabelledSource)
            else None
            for piece, inner in zip(self.pieces, self.inner, strict=True)
        ]
        # A test.zip beside a train.zip is a split, alone it would be a class.
        trained = any(tree is not None and tree.brings_splits(False) for tree in trees)
        readings: list[Reading] = []
        for i, piece in enumerate(self.pieces):
            # Out of the list, so that it is freed when it is read.
            tree, trees[i] = trees[i], None
            inner = self.inner[i]
            if isinstance(inner, LabelledSource):
                readings.append(inner.reading(self.parts[i].start, self.asked.columns))
            elif piece.label_files:
                readings += self._labels_files(piece)
            elif tree is not None:
                readings += self._one_part(i, tree, tree.brings_splits(trained))
        return _with_training(readings)

    def _labels_files(self, piece: Sorted) -> list[Reading]:
        try:
            return chosen_tables.read_labels_files(
                self.source, piece.images, piece.label_files, self.asked.columns
            )
        except UserError:
            # Where folders are numbers it may be their names, and no table of images.
            tree = folders.Tree(self.source.names, piece.images)
            split_folders = tree.brings_splits(False)
            classes, lists = tree.classes(split_folders), piece.label_files
            if len(lists) != 1 or not class_names.lists_all(self.source, lists[0], classes):
                raise
            self.found.class_lists.append(lists[0])
            self.found.num_ignored += 1
            return [tree.read(split_folders)]

    def _one_part(self, number: int, tree: folders.Tree, split_folders: bool) -> list[Reading]:
        piece, options = self.pieces[number], self.asked.columns.options()
        named = tree.names_classes(split_folders)
        if samples.are_here(self.source, piece, json_too=not named):
            label = self.inner[number].label
            return [samples.read(self.source, piece, label, self.asked.columns)]
        if named and not options:
            return [tree.read(split_folders)]
        tables = piece.tables or self.apart_tables
        readings, reasons = chosen_tables.read_any(
            self.source, piece.images, tables, self.asked.columns
        )
        self.unused += reasons
        looked_into = {*tables}
        self.unread = [index for index in self.unread if index not in looked_into]
        if not readings and options:
            raise UserError(
                f"{options[0]} is for a table, and {printable(self.source.label)} holds none about "
                f"its images{listed(reasons)}. Name it with --labels."
            )
        real = any(suffix_of(self.source.names[index]) not in TEXT_SUFFIXES for index in tables)
        # Folders that are no classes: read as splits they have none, and that is refused.
        return readings or [tree.read(split_folders or (not named and tree.is_classless(real)))]


def _with_training(readings: list[Reading]) -> list[Reading]:
    """Files that are called val alone are no split: there is nothing to train on."""
    if not any((reading.splits == 0).any() for reading in readings):
        for reading in readings:
            if reading.kind in (samples.KIND, parquetsource.KIND):
                reading.splits[:] = -1
    return readings


def listed(reasons: Sequence[str]) -> str:
    """`: a, b and 3 more`"""
    more = f" and {len(reasons) - _NAMED:,} more" if len(reasons) > _NAMED else ""
    return f": {', '.join(reasons[:_NAMED])}{more}" if reasons else ""
