"""From the paths that the user names to a source."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

from hpc_mlp.conversion.archive import FileSource, FolderSource, Names, SeveralSources, Source
from hpc_mlp.conversion.entries import IMAGE_SUFFIXES, check_safe, is_hidden, suffix_of
from hpc_mlp.conversion.npzsource import NpzSource
from hpc_mlp.conversion.parquetsource import ParquetSource
from hpc_mlp.conversion.tarsource import TarSource
from hpc_mlp.conversion.zipsource import ZipSource
from hpc_mlp.errors import RejectError, UserError, printable

# What people give for an archive, and what to do about it.
_OTHERS = {
    "csv": "Give the ZIP or folder of its images, and the table with --labels",
    "7z": "Unpack it, and give the folder",
    "rar": "Unpack it, and give the folder",
    "h5": "Write its images to one folder for each class",
    "hdf5": "Write its images to one folder for each class",
}
# What is read inside a ZIP without images.
_INSIDE: dict[str, type[NpzSource | ParquetSource]] = {"npz": NpzSource, "parquet": ParquetSource}
_TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


def open_source(paths: Sequence[Path], scratch: Path) -> Source:
    """The source at `paths`. `scratch` is a folder that may hold temporary files: what cannot be
    read by offset is decompressed there once. UserError where one cannot be read."""
    sources: list[Source] = []
    labels = []
    with ExitStack() as opened:
        for path in paths:
            if path.is_dir():
                label, here = _folder(path, scratch, opened)
            elif not path.exists():
                raise UserError(
                    f"{printable(path)} does not exist. Give a ZIP, a .tar, a .tar.gz or a folder "
                    "of images."
                )
            else:
                source = opened.enter_context(closing(_file(path, scratch)))
                label = path.name
                here = [source]
                if isinstance(source, ZipSource):
                    here = _with_files_inside(source, scratch, opened)
            labels.append(label)
            sources += here
        # None is refused: they stay open.
        opened.pop_all()
    return sources[0] if len(sources) == 1 else SeveralSources(sources, " + ".join(labels))


def _file(path: Path, scratch: Path) -> Source:
    if (kind := path.suffix[1:].lower()) in IMAGE_SUFFIXES:
        raise UserError(
            f"{printable(path)} is one image. Give the folder that holds one folder of images for "
            "each class, or a ZIP of it."
        )
    if kind in _OTHERS:
        raise UserError(
            f"{printable(path)} is a .{kind} file, which is not supported: "
            f"what is read is a ZIP, a .tar, a .tar.gz or a folder. {_OTHERS[kind]}."
        )
    return (_reader(path.name) or _zip)(path, scratch)


def _zip(path: Path, scratch: Path) -> Source:
    return ZipSource(path)


def _reader(name: str) -> Callable[[Path, Path], Source] | None:
    """For a file called so, which is no ZIP."""
    if name.lower().endswith(_TARS):
        return TarSource
    if suffix_of(name) == "npz":
        return NpzSource
    return ParquetSource if suffix_of(name) == "parquet" else None


def _folder(path: Path, scratch: Path, opened: ExitStack) -> tuple[str, list[Source]]:
    """Its name, and one source; or, where it holds no images but files of them (a WebDataset's
    shards, .parquet, .npz), what else is there, and each of them."""
    folder = FolderSource(path)
    if any(suffix_of(name) in IMAGE_SUFFIXES for name in folder.names):
        return folder.label, [folder]
    readers = {
        name: reader for name in folder.names if not is_hidden(name) and (reader := _reader(name))
    }
    if not readers:
        return folder.label, [folder]
    folder.names = Names(name for name in folder.names if name not in readers)
    sources: list[Source] = [folder] if len(folder.names) else []
    for name, reader in readers.items():
        source = opened.enter_context(closing(reader(path / name, scratch)))
        # Folders may say the split.
        source.label = name
        sources.append(source)
    return folder.label, sources


def _with_files_inside(archive: ZipSource, scratch: Path, opened: ExitStack) -> list[Source]:
    """The ZIP; or, where it holds no images but .npz or .parquet, what else is there, and each of
    them, unpacked to a file in `scratch`."""
    if any(suffix_of(name) in IMAGE_SUFFIXES for name in archive.names):
        return [archive]
    readers: dict[int, type[NpzSource | ParquetSource]] = {}
    for index, name in enumerate(archive.names):
        if (kind := _INSIDE.get(suffix_of(name))) and not is_hidden(name):
            check_safe(name, archive)
            readers[index] = kind
    if not readers:
        return [archive]
    names = list(archive.names)
    # Under their names they would be tables that are not read.
    archive.names = Names("" if index in readers else name for index, name in enumerate(names))
    sources: list[Source] = [archive]
    for index, reader in readers.items():
        shown = f"{names[index]} in {archive.label}"
        # A conversion removes what is called so.
        number, file = tempfile.mkstemp(f".{suffix_of(names[index])}", "spool-inside-", scratch)
        try:
            with open(number, "wb") as unpacked:
                unpacked.write(archive.read(index))
        except RejectError as error:
            raise UserError(f"{printable(shown)} cannot be read: {error}.") from None
        source = opened.enter_context(closing(reader(Path(file), scratch, shown)))
        source.label = names[index]
        sources.append(source)
    return sources


def with_labels(source: Source, labels: Path) -> tuple[Source, int]:
    """`source` with the table `labels`, and its index: a file outside, which is added as the last
    entry, or else an entry by its path, or by the end of its path. UserError where it is
    neither, or not clear."""
    if labels.is_file():
        outside = FileSource([Path(labels.name)], labels.parent, labels.name)
        inner = source.sources if isinstance(source, SeveralSources) else [source]
        both = f"{source.label} + {outside.label}"
        return SeveralSources([*inner, outside], both), len(source.names)
    wanted = labels.as_posix().removeprefix("./")
    ends = [i for i, name in enumerate(source.names) if f"/{name}".endswith(f"/{wanted}")]
    exact = [i for i in ends if source.names[i] == wanted]
    if len(exact or ends) == 1:
        return source, (exact or ends)[0]
    where = printable(source.label)
    if not ends:
        raise UserError(
            f"--labels {printable(labels)}: there is no such file, neither here nor in {where}."
        )
    found = ", ".join(printable(source.names[i]) for i in ends[:3])
    raise UserError(f"--labels {printable(labels)}: {where} holds several: {found}. Say which.")
