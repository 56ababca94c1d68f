"""Sources: ZIPs of every kind, honest and hostile; tars, folders, several at once."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import io
import os
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.archives import (
    contents,
    convert,
    converted,
    encoded,
    make_zip,
    picture,
    refused,
    rejects,
    two_classes,
)

from hpc_mlp.conversion.opening import open_source
from hpc_mlp.data.decode import ImageSpec
from hpc_mlp.errors import RejectError, UserError
from hpc_mlp.inference.images import Images


def entries(*paths: Path, scratch: Path) -> dict[str, bytes | str]:
    """Name → bytes, or the reason why there are none."""
    source = open_source(paths, scratch)
    found: dict[str, bytes | str] = {}
    for index, name in enumerate(source.names):
        try:
            found[name] = source.read(index)
        except RejectError as error:
            found[name] = str(error)
    return found


# ── honest archives
# ─────────────────────────────────────────────────────────────────────────────────────

FILES = {
    "a/1.txt": b"one" * 500,
    "a/ü.txt": b"",
    "b/very/deep.bin": os.urandom(3000),
    "日本.txt": b"x",
}


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_reads_as_zipfile_reads_it(tmp_path: Path, method: int) -> None:
    path = make_zip(tmp_path / "a.zip", FILES, method)
    assert entries(path, scratch=tmp_path) == FILES


def test_zips_with_comment_prefix_zip64_and_data_descriptors(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", FILES)
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b"PK\5\6 is not the end" * 10
    assert entries(path, scratch=tmp_path) == FILES
    (tmp_path / "prefixed.zip").write_bytes(b"#!/bin/sh\n" * 100 + path.read_bytes())
    assert entries(tmp_path / "prefixed.zip", scratch=tmp_path) == FILES
    with zipfile.ZipFile(tmp_path / "64.zip", "w") as archive:
        for name, data in FILES.items():
            with archive.open(name, "w", force_zip64=True) as file:
                file.write(data)
    assert entries(tmp_path / "64.zip", scratch=tmp_path) == FILES

    class Unseekable(io.RawIOBase):
        def __init__(self, file: io.BufferedWriter) -> None:
            self.file = file

        def writable(self) -> bool:
            return True

        def write(self, data: bytes) -> int:  # type: ignore[override]
            return self.file.write(data)

    with (
        (tmp_path / "streamed.zip").open("wb") as file,
        zipfile.ZipFile(cast(IO[bytes], Unseekable(file)), "w") as archive,
    ):
        for name, data in FILES.items():
            archive.writestr(name, data)
    assert entries(tmp_path / "streamed.zip", scratch=tmp_path) == FILES


def zip_with_a_hole(path: Path, before: dict[str, bytes], after: dict[str, bytes]) -> Path:
    """A ZIP64 in a sparse file: entries, then one that takes 5 GiB of nothing, then entries beyond
    4 GiB."""
    with path.open("wb") as file, zipfile.ZipFile(file, "w", allowZip64=True) as archive:
        for name, data in before.items():
            archive.writestr(name, data)
        hole = zipfile.ZipInfo("hole.bin")
        hole.file_size = hole.compress_size = 5 << 30
        hole.header_offset, hole.CRC = archive.start_dir, 0
        file.seek(hole.header_offset)
        file.write(hole.FileHeader(zip64=True))
        file.seek(5 << 30, os.SEEK_CUR)
        archive.start_dir = file.tell()
        archive.filelist.append(hole)
        archive.NameToInfo["hole.bin"] = hole
        for name, data in after.items():
            archive.writestr(name, data)
    assert path.stat().st_size > 5 << 30
    return path


def test_entries_before_and_beyond_four_gigabytes(tmp_path: Path) -> None:
    images = two_classes(4)
    path = zip_with_a_hole(tmp_path / "big.zip", {"cat/first.png": b"x"}, images)
    found = entries(path, scratch=tmp_path)
    assert found.pop("hole.bin") == "larger than 1024 MiB"
    assert found == {"cat/first.png": b"x", **images}


@pytest.mark.slow
def test_a_zip_of_more_than_four_gigabytes_is_converted(tmp_path: Path) -> None:
    """To the same shards as a small ZIP of the same images."""
    images = two_classes(40)
    names = sorted(images)
    before, after = ({name: images[name] for name in part} for part in (names[::2], names[1::2]))
    small = make_zip(tmp_path / "small.zip", before | after)
    big = zip_with_a_hole(tmp_path / "big.zip", before, after)
    options = ("--size", "20x24", "--workers", "2")
    expected = converted(small, tmp_path / "small", *options)
    found = converted(big, tmp_path / "big", *options)
    assert found.digest == expected.digest and found.num_rejects == 0 and found.num_ignored == 1
    assert sum(split.num_images for split in found.splits.values()) == 80
    tars = [
        {k: v for k, v in contents(tmp_path / n).items() if k.endswith(".tar")}
        for n in ("small", "big")
    ]
    assert tars[0] == tars[1] and len(tars[0]) == 3
    with big.open("rb") as file:
        assert found.source["sha256"] == hashlib.file_digest(file, "sha256").hexdigest()


def test_backslashes_and_old_encodings(tmp_path: Path) -> None:
    path = make_zip(
        tmp_path / "a.zip", {"cat/x1.png": b"1", "cat/x2.png": b"2", "cat/x3.png": b"3"}
    )
    data = (
        path.read_bytes()
        .replace(b"cat/x1", b"cat\\x1")
        .replace(b"x2.png", b"\x81\x82.png")
        .replace(b"x3.png", "ü3.pn".encode())
    )
    path.write_bytes(data)
    assert entries(path, scratch=tmp_path) == {
        "cat/x1.png": b"1",
        "cat/üé.png": b"2",
        "cat/ü3.pn": b"3",
    }


def pack(path: Path, files: dict[str, bytes]) -> Path:
    mode = {".tar": "w", ".gz": "w:gz", ".tgz": "w:gz", ".xz": "w:xz", ".bz2": "w:bz2"}[path.suffix]
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def unpack(path: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def test_zip_tar_and_folder_give_the_same_shards(tmp_path: Path) -> None:
    files = dict(sorted(two_classes(12).items()))
    made: list[Path] = [make_zip(tmp_path / "a.zip", files), unpack(tmp_path / "a", files)]
    made += [
        pack(tmp_path / name, files)
        for name in ("a.tar", "a.tar.gz", "a.tgz", "a.tar.xz", "a.tar.bz2")
    ]
    digests = {converted(path, tmp_path / f"out-{path.name}", "--size", 8).digest for path in made}
    assert len(digests) == 1
    assert converted(made[0], tmp_path / "again", "--size", 8).source["sha256"]


def test_several_archives_are_one_dataset(tmp_path: Path) -> None:
    files = two_classes(8)
    cats = make_zip(tmp_path / "cats.zip", {f"top/{n}": d for n, d in files.items() if "cat" in n})
    dogs = pack(tmp_path / "dogs.tar", {n: d for n, d in files.items() if "dog" in n})
    manifest = converted(cats, dogs, tmp_path / "out", "--size", 8)
    assert manifest.classes == ("cat", "dog") and manifest.source["name"] == "cats.zip + dogs.tar"
    more = make_zip(
        tmp_path / "more.zip", {f"photos/2024/{n}": d for n, d in two_classes(3).items()}
    )
    manifest = converted(make_zip(tmp_path / "a.zip", files), more, tmp_path / "both", "--size", 8)
    assert (
        manifest.classes == ("cat", "dog")
        and sum(s.num_images for s in manifest.splits.values()) == 22
    )


def test_links_in_a_folder_are_followed_but_not_round_in_circles(tmp_path: Path) -> None:
    root = unpack(tmp_path / "a", two_classes(4))
    (root / "cat" / "up").symlink_to(root)
    (root / "dog" / "linked.png").symlink_to(
        unpack(tmp_path / "b", {"x.png": encoded(picture(77))}) / "x.png"
    )
    (root / "dog" / "broken.png").symlink_to("nowhere")
    manifest = converted(root, tmp_path / "out", "--size", 8)
    assert sum(s.num_images for s in manifest.splits.values()) == 9
    assert list(rejects(tmp_path / "out")) == ["dog/broken.png"]


# ── hostile archives
# ────────────────────────────────────────────────────────────────────────────────────


def special(mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("cat/special.png")
    info.create_system, info.external_attr = 3, mode << 16
    return info


def edited(path: Path, edit: Callable[[bytearray, int, int], None]) -> None:
    """`edit(data, local header, central header)` of the entry cat/special.png."""
    data = bytearray(path.read_bytes())
    name = b"cat/special.png"
    local = data.index(name) - 30
    edit(data, local, data.index(name, local + 40) - 46)
    path.write_bytes(data)


def set_encrypted(data: bytearray, local: int, central: int) -> None:
    data[local + 6] |= 1
    data[central + 8] |= 1


def set_crc(data: bytearray, local: int, central: int) -> None:
    data[central + 16] ^= 1


def set_bad_utf8(data: bytearray, local: int, central: int) -> None:
    data[central + 9] |= 8
    data[central + 46 + 4] = 0xFF


def set_size(data: bytearray, local: int, central: int) -> None:
    struct.pack_into("<L", data, central + 24, 5)


def set_method(data: bytearray, local: int, central: int) -> None:
    struct.pack_into("<H", data, central + 10, 14)


def set_place(data: bytearray, local: int, central: int) -> None:
    struct.pack_into("<L", data, central + 42, 0)


def set_far(data: bytearray, local: int, central: int) -> None:
    struct.pack_into("<L", data, central + 42, 0xFFFFFF00)


Edit = Callable[[bytearray, int, int], None]
EDITS: dict[Edit, str] = {
    set_encrypted: "encrypted",
    set_crc: "checksum",
    set_bad_utf8: "UTF-8",
    set_size: "size is not the one stated",
    set_method: "LZMA",
    set_place: "overlaps",
    set_far: "something else",
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_wrong_entry_is_rejected_with_its_reason(tmp_path: Path, edit: Edit) -> None:
    path = make_zip(tmp_path / "a.zip", two_classes(6) | {"cat/special.png": encoded(picture(5))})
    edited(path, edit)
    converted(path, tmp_path / "out", "--size", 8)
    found = rejects(tmp_path / "out")
    # Whose name is another.
    assert "cat/special.png" in found or edit is set_bad_utf8
    assert all(EDITS[edit] in reason for reason in found.values()) and 1 <= len(found) <= 2


def test_links_devices_and_nested_archives_are_rejected(tmp_path: Path) -> None:
    for mode, reason in ((stat.S_IFLNK, "symbolic link"), (stat.S_IFIFO, "not a regular file")):
        path = make_zip(tmp_path / "a.zip", two_classes(6))
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(special(mode | 0o777), b"/etc/passwd")
        converted(path, tmp_path / "out", "--size", 8, "--overwrite")
        assert reason in rejects(tmp_path / "out")["cat/special.png"]
    path = make_zip(tmp_path / "b.zip", two_classes(6) | {"cat/inner.zip": b"PK"})
    converted(path, tmp_path / "out", "--size", 8, "--overwrite")
    assert "archive inside" in rejects(tmp_path / "out")["cat/inner.zip"]
    tar = pack(tmp_path / "a.tar", two_classes(6))
    with tarfile.open(tar, "a") as archive_:
        link = tarfile.TarInfo("cat/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive_.addfile(link)
    converted(tar, tmp_path / "out", "--size", 8, "--overwrite")
    assert rejects(tmp_path / "out") == {"cat/link.png": "a link"}


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_the_second_of_two_entries_of_one_name_is_rejected(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", two_classes(6))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("cat/0.png", encoded(picture(50)))
    manifest = converted(path, tmp_path / "out", "--size", 8)
    assert rejects(tmp_path / "out") == {"cat/0.png": "its name is an earlier entry's name"}
    assert sum(s.num_images for s in manifest.splits.values()) == 12


def test_bombs_are_rejected(tmp_path: Path) -> None:
    bomb = bytes(300 << 20)
    files = two_classes(6) | {
        "cat/bomb.bmp": bomb,
        "dog/bomb.png": encoded(picture(1)) + bytes(8 << 20),
    }
    pixels = encoded(picture(1, (10, 10)).resize((9000, 9000), 0), "PNG")
    path = make_zip(tmp_path / "a.zip", files | {"dog/large.png": pixels})
    converted(path, tmp_path / "out", "--size", 8)
    found = rejects(tmp_path / "out")
    assert (
        "decompression bomb" in found["cat/bomb.bmp"]
        and "decompression bomb" in found["dog/bomb.png"]
    )
    assert "--max-pixels" in found["dog/large.png"] and len(found) == 3


@pytest.mark.parametrize(
    "name", ["../x.png", "a/../../x.png", "/x.png", "C:\\x.png", "..\\..\\x.png", "\\\\host\\x.png"]
)
def test_names_that_lead_out_are_refused(tmp_path: Path, name: str) -> None:
    refused(
        convert(make_zip(tmp_path / "a.zip", two_classes(3) | {name: b"x"}), tmp_path / "out"),
        "leads out",
    )
    assert [p.name for p in tmp_path.iterdir()] == ["a.zip"]


ORIGINAL = {
    f"{c}/{i}.png": encoded(picture(i + 10 * (c == "b"), (9, 7))) for c in "ab" for i in range(3)
}


@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_a_mutated_zip_never_makes_a_traceback_or_anything_outside_out(
    tmp_path: Path, data: st.DataObject
) -> None:
    home = tmp_path / "home"
    home.mkdir(exist_ok=True)
    path = make_zip(home / "a.zip", ORIGINAL, data.draw(st.sampled_from([0, 8])))
    content = bytearray(path.read_bytes())
    places = st.integers(0, len(content) - 1)
    headers = [i for i in range(len(content) - 4) if content[i : i + 2] == b"PK"]
    for _ in range(data.draw(st.integers(1, 5))):
        kind = data.draw(st.sampled_from(["byte", "header", "cut", "copy"]))
        if kind == "byte":
            content[data.draw(places) % len(content)] = data.draw(st.integers(0, 255))
        elif kind == "header":
            at = data.draw(st.sampled_from(headers)) + data.draw(st.integers(4, 60))
            content[at % len(content)] = data.draw(st.sampled_from([0, 1, 0x2E, 0x2F, 0x7F, 0xFF]))
        elif kind == "cut":
            start = data.draw(places) % len(content)
            del content[start : start + data.draw(st.integers(0, 20))]
        else:
            start, to = data.draw(places) % len(content), data.draw(places) % len(content)
            content[to:to] = content[start : start + data.draw(st.integers(0, 50))]
    path.write_bytes(content)
    result = convert(path, home / "out", "--size", 4)
    assert result.exit_code in (0, 2), result.output
    if result.exit_code == 2:
        refused(result)
        assert sorted(p.name for p in home.iterdir()) == ["a.zip"]
    else:
        assert sorted(p.name for p in home.iterdir()) == ["a.zip", "out"]
        assert {"manifest.json", "rejects.jsonl"} <= set(contents(home / "out"))
        for file in (home / "out").iterdir():
            file.unlink()
        (home / "out").rmdir()
    assert [p.name for p in tmp_path.iterdir()] == ["home"]


# ── damaged tars, descriptors, large entries
# ────────────────────────────────────────────────────────────


@pytest.mark.parametrize("suffix", [".tar.gz", ".tar.bz2", ".tar.xz", ".tar"])
@pytest.mark.parametrize("damage", ["flip", "cut", "zeros"])
def test_a_damaged_tar_is_said_in_one_line(tmp_path: Path, suffix: str, damage: str) -> None:
    """By `convert` as by `predict`, and nothing is left over."""
    path = pack(
        tmp_path / f"a{suffix}", {f"{c}/{i}.png": os.urandom(3000) for c in "ab" for i in range(9)}
    )
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    if damage == "flip":
        data[middle : middle + 64] = bytes(byte ^ 0x5A for byte in data[middle : middle + 64])
    elif damage == "cut":
        del data[middle:]
    else:
        data[12:600] = bytes(588)
    path.write_bytes(data)
    result = convert(path, tmp_path / "out", "--size", 4)
    assert not (tmp_path / "out").exists()
    # The bytes of an image, about which a tar knows nothing.
    if suffix == ".tar" and damage == "flip":
        refused(result, "no images")
        return
    refused(result, "a.tar", "cannot be read as a tar" if "no images" not in result.stderr else "")
    with contextlib.suppress(UserError):
        Images([path])
    assert os.listdir(tmp_path) == [path.name]


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.sampled_from([".gz", ".bz2", ".xz"]), st.data())
def test_a_mutated_compressed_tar_is_read_or_refused(
    tmp_path: Path, kind: str, data: st.DataObject
) -> None:
    path = pack(tmp_path / f"a.tar{kind}", ORIGINAL)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(1, len(content)))])
    try:
        entries(path, scratch=tmp_path)
    except UserError as error:
        assert "cannot be read as a tar" in str(error)


def num_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def uncollected() -> Iterator[None]:
    """Without the garbage collector: what an error in a cycle holds open stays open, as in an
    interactive session, which keeps its last error."""
    gc.disable()
    yield
    gc.enable()


def test_descriptors_stay_constant(tmp_path: Path, uncollected: None) -> None:
    """Of the fifth conversion as many are open as of the first, finished or refused; the same for
    what `predict` opens."""
    archives = [make_zip(tmp_path / "a.zip", ORIGINAL), pack(tmp_path / "a.tar.gz", ORIGINAL)]
    empty = make_zip(tmp_path / "empty.zip", {"x.txt": b""})
    # Enough for two processes.
    broken = {f"{name}/{i}.png": b"no image" for name in "ab" for i in range(20)}
    text = tmp_path / "text.zip"
    text.write_text("no ZIP")
    refusals = ([empty], [text], [make_zip(tmp_path / "broken.zip", broken)], [archives[0], text])
    counts, errors = [], []
    for _ in range(5):
        for archive in archives:
            converted(archive, tmp_path / "out", "--size", 4, "--overwrite")
            images = Images([archive])
            assert sum(len(batch) for batch in images.batches(ImageSpec(4, 4, 3), "png", 4)) == 6
            del images
        for paths in refusals:
            refused(convert(*paths, tmp_path / "not", "--workers", 2))
        for wrong in (empty, text):
            with pytest.raises(UserError) as error:
                Images([archives[0], wrong])
            errors.append(error)
        counts.append(num_descriptors())
    assert len(set(counts)) == 1, counts


def test_a_closed_source_holds_nothing_open(tmp_path: Path) -> None:
    before = num_descriptors()
    source = open_source(
        [make_zip(tmp_path / "a.zip", FILES), pack(tmp_path / "a.tar", FILES)], tmp_path
    )
    assert num_descriptors() == before + 2
    source.close()
    assert num_descriptors() == before


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_large_entries_are_read_in_pieces(tmp_path: Path, method: int) -> None:
    half = os.urandom(9 << 20)
    files = {"a.bin": half + half[: 1 << 20] + bytes(1 << 20), "b.bin": half}
    path = make_zip(tmp_path / "a.zip", files, method)
    assert entries(path, scratch=tmp_path) == files
    source = open_source([path], tmp_path)
    with pytest.raises(RejectError, match="larger than 10 MiB"):
        source.read(0, 10 << 20)
    data = bytearray(path.read_bytes())
    data[5 << 20] ^= 0xFF
    path.write_bytes(data)
    assert isinstance(entries(path, scratch=tmp_path)["a.bin"], str)


@pytest.mark.parametrize("name", ["a.h5", "labels.csv", "a.rar", "a.7z"])
def test_what_is_no_archive_of_ours_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"PAR1")
    refused(
        convert(tmp_path / name, tmp_path / "out"), f".{name.split('.')[-1]} file", "not supported"
    )
    image = tmp_path / "1.JPG"
    image.write_bytes(b"")
    refused(convert(image, tmp_path / "out"), "1.JPG is one image. Give the folder that holds")


def test_a_bomb_in_a_compressed_tar_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpc_mlp.conversion.tarsource._MIN_BOMB", 10 << 20)
    path = pack(tmp_path / "a.tar.xz", {"a/1.png": bytes(100 << 20)})
    refused(convert(path, tmp_path / "out"), "decompression bomb")
    assert os.listdir(tmp_path) == ["a.tar.xz"]
