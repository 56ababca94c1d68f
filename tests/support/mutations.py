"""Damaged and hostile variations of files, drawn from a seed: bytes, JSON values, archives,
images."""

from __future__ import annotations

import bz2
import gzip
import importlib
import io
import itertools
import json
import lzma
import random
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
from PIL import Image

HOSTILE_NAMES = (
    "\x1b]52;c;aGk=\x07", "\x9b31m", "\u202egpj.exe", "a\nb", "[red]x[/]", ":skull:",
    "<script>alert(1)</script>", "=1+1", "|x|", "`x`", "$x^2$", "../up", "/etc/passwd", "..",
    "C:\\x", "a" * 300, "e\u0301", "CON", "猫", "a\x00b", "\udc80", "-rf", "%s{0}", "a\\b",
    ".hidden", "",
)  # fmt: skip
_DEEP = "[" * 3000 + "]" * 3000
# As JSON text, so that there may be what Python's json would not write.
HOSTILE_JSON = (
    "null", "true", "0", "-1", "1", "1.5", "NaN", "Infinity", "-Infinity", "1e400", "1" + "0" * 30,
    "1" + "0" * 5000, "-9223372036854775809", "4294967296", '""', '"x"', '"1"', r'"\ud800"',
    r'"\u001b]52;c;aGk=\u0007"', r'"\u202egpj\u009b\n[red]"', '"../../up"', '"/dev/zero"',
    r'"a\u0000b"', '"' + "a" * 5000 + '"', "[]", "{}", "[[1]]", "[null]", '{"a": 1}',
    '["x", 1, null]', _DEEP, "[" * 100_000,
)  # fmt: skip


def mutated_bytes(data: bytes, rng: random.Random) -> bytes:
    """1 to 8 small changes: bits and bytes, runs of them, cuts, repeats, numbers of 16 and 32
    bits."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        if not out:
            return bytes(out)
        at, length = rng.randrange(len(out)), rng.choice((1, 2, 4, 16, 64))
        kind = rng.randrange(8)
        if kind == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[at] = rng.choice((0, 1, 0x1B, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif kind == 2:
            out[at : at + length] = rng.randbytes(length)
        elif kind == 3:
            del out[at : at + length]
        elif kind == 4:
            out[at:at] = out[at : at + length]
        elif kind == 5:
            del out[at:]
        elif kind == 6:
            number = rng.choice(
                (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFF, rng.getrandbits(32))
            )
            out[at : at + 4] = struct.pack(rng.choice("<>") + "I", number)[: len(out) - at]
        else:
            other = rng.randrange(len(out))
            out[at : at + length] = out[other : other + length]
    return bytes(out)


def mutated_json(data: bytes, rng: random.Random) -> bytes:
    """One to three values of another type, too large, missing, or too many; or damaged bytes. Of
    JSON lines, one."""
    if rng.random() < 0.15:
        return mutated_bytes(data, rng)
    lines = (
        data.decode().splitlines()
        if data.count(b"\n") and not data.startswith(b"{\n")
        else [data.decode()]
    )
    at = rng.randrange(len(lines)) if lines else 0
    try:
        tree = json.loads(lines[at])
    except (ValueError, IndexError):
        return mutated_bytes(data, rng)
    marks: dict[str, str] = {}
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        tree = _changed(tree, rng, marks)
    text = json.dumps(tree)
    for mark, value in marks.items():
        text = text.replace(json.dumps(mark), value)
    lines[at] = text
    return "\n".join(lines).encode() + b"\n"


def _changed(tree: Any, rng: random.Random, marks: dict[str, str]) -> Any:
    places: list[tuple[Any, Any]] = []
    todo = [tree]
    while todo:
        node = todo.pop()
        keys = (
            list(node)
            if isinstance(node, dict)
            else range(min(len(node), 20))
            if isinstance(node, list)
            else ()
        )
        places += [(node, key) for key in keys]
        todo += [node[key] for key in keys]
    mark = f"@{rng.getrandbits(64):x}@"
    marks[mark] = rng.choice(HOSTILE_JSON)
    if not places or rng.random() < 0.02:
        return mark
    node, key = rng.choice(places)
    kind = rng.randrange(6)
    if kind == 0:
        del node[key]
    elif kind == 1 and isinstance(node, list):
        node.insert(rng.randrange(len(node) + 1), mark)
    elif kind == 1:
        node[rng.choice(HOSTILE_NAMES)] = mark
    elif kind == 2 and isinstance(node[key], int | float):
        node[key] = rng.choice(
            (node[key] + 1, node[key] - 1, -node[key], node[key] * 1000, float(node[key]))
        )
    elif kind == 2 and isinstance(node[key], str):
        node[key] = rng.choice(HOSTILE_NAMES)
    else:
        node[key] = mark
    return tree


# -- archives


def name(rng: random.Random, index: int, suffix: str = "png") -> str:
    """Of an entry: mostly CLASS/N.png."""
    words = [rng.choice("abc")]
    for position in range(2):
        if rng.random() < 0.15:
            words.insert(position, rng.choice(HOSTILE_NAMES))
    return "/".join([*words, f"{index}.{suffix}"])


def zip_file(images: list[tuple[str, bytes]], rng: random.Random) -> bytes:
    """A ZIP of these images, or what is nearly one: field edits in its headers, damaged bytes,
    hostile names."""
    file = io.BytesIO()
    with zipfile.ZipFile(
        file, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    ) as archive:
        for i, (suffix, data) in enumerate(images):
            entry = name(rng, i, suffix)
            info = zipfile.ZipInfo(entry.encode(errors="replace").decode() or "x")
            info.compress_type = rng.choice(
                (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)
            )
            if rng.random() < 0.05:
                info.external_attr = (
                    rng.choice((0o120777, 0o010644, 0o020644, 0o040755)) << 16
                )  # link, pipe, device
            archive.writestr(info, data)
        if rng.random() < 0.1:
            archive.writestr(
                "labels.csv", mutated_bytes(b"file,class\na/0.png,a\nb/1.png,b\n" * 3, rng)
            )
    whole = bytearray(file.getvalue())
    for _ in range(rng.choice((0, 1, 1, 2, 4))):
        headers = _offsets(whole, (b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06"))
        if not headers:
            break
        at = rng.choice(headers) + rng.randrange(4, 46)
        value = rng.choice((0, 1, 0xFF, 0xFFFF, 0xFFFFFFFF, 0x7FFFFFFF, rng.getrandbits(16)))
        whole[at : at + 4] = struct.pack("<I", value)[: rng.choice((1, 2, 4))]
    return mutated_bytes(bytes(whole), rng) if rng.random() < 0.5 else bytes(whole)


def _offsets(data: bytes | bytearray, signatures: tuple[bytes, ...]) -> list[int]:
    found = []
    for signature in signatures:
        at = data.find(signature)
        while at >= 0:
            found.append(at)
            at = data.find(signature, at + 1)
    return found


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "tar": bytes,
    "tar.gz": partial(gzip.compress, mtime=0),
    "tar.bz2": bz2.compress,
    "tar.xz": lzma.compress,
}


def tar_file(images: list[tuple[str, bytes]], rng: random.Random, suffix: str) -> bytes:
    """A tar of these images with links, devices and lying headers among them, compressed; then
    damaged, or before."""
    file = io.BytesIO()
    form = rng.choice((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for i, (ending, data) in enumerate(images):
            info = tarfile.TarInfo(name(rng, i, ending))
            info.size = len(data)
            if rng.random() < 0.06:
                info.type = rng.choice(
                    (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, b"S")
                )
                info.linkname = rng.choice(HOSTILE_NAMES)
            try:
                archive.addfile(info, io.BytesIO(data))
            # A name that this format cannot hold.
            except (ValueError, OSError, UnicodeError):
                continue
    data = file.getvalue()
    if rng.random() < 0.5:
        data = tar_fields(data, rng)
    if rng.random() < 0.3:
        data = mutated_bytes(data, rng)
    packed = COMPRESSIONS[suffix](data)
    return mutated_bytes(packed, rng) if rng.random() < 0.4 else packed


def tar_fields(data: bytes, rng: random.Random) -> bytes:
    """Another name, size, type or number in one header, its sum right again."""
    out = bytearray(data)
    headers = [at - 257 for at in _offsets(data, (b"ustar",)) if (at - 257) % 512 == 0]
    for at in rng.sample(headers, min(len(headers), rng.choice((1, 1, 2)))):
        first, length = rng.choice(
            ((0, 100), (100, 8), (124, 12), (124, 12), (136, 12), (156, 1), (157, 100), (345, 155))
        )
        digits = rng.choice(
            (
                b"77777777777",
                b"00000000000",
                b"\x80" + b"\xff" * 10,
                b"\xff" * 11,
                b"-0000000001",
                rng.randbytes(11),
                b"%011o" % rng.getrandbits(20),
            )
        )
        out[at + first : at + first + length] = (digits * 15)[:length]
        header = bytes(out[at : at + 148]) + b" " * 8 + bytes(out[at + 156 : at + 512])
        out[at + 148 : at + 156] = b"%06o\0 " % sum(header)
    return bytes(out)


# -- labelled images


def table(rng: random.Random, names: list[str], suffix: str) -> bytes:
    """Classes, splits and groups of these images; in a third of the tables one cell is hostile, in
    another third bytes are damaged."""
    rows = [
        [name, "ab"[i % 2], ("train", "train", "val")[i // 2 % 3], f"p{i % 3}"]
        for i, name in enumerate(names)
    ]
    heads = ["file_name", "label", "split", rng.choice(("group", "patient_id", "x"))]
    kind = rng.randrange(3)
    if kind == 0:
        rng.choice([heads, *rows])[rng.randrange(4)] = rng.choice(HOSTILE_NAMES)
    if suffix == "jsonl":
        objects = [json.dumps(dict(zip(heads, row, strict=True))) for row in rows]
        data = ("\n".join(objects) + "\n").encode()
        return mutated_json(data, rng) if kind == 1 else data
    sign = rng.choice(",;\t")
    lines = [sign.join(row) for row in ([heads, *rows] if rng.random() < 0.8 else rows)]
    data = ("\n".join(lines) + "\n").encode(errors="surrogatepass")
    return mutated_bytes(data, rng) if kind == 1 else data


def labelled_zip(images: list[tuple[str, bytes]], rng: random.Random) -> bytes:
    """Images in one folder, and a table of them."""
    names = [f"img/{i}.{suffix}" for i, (suffix, _) in enumerate(images)]
    name, suffix = rng.choice(
        (
            ("labels.csv", "csv"),
            ("metadata.jsonl", "jsonl"),
            ("train.csv", "csv"),
            ("all.txt", "txt"),
        )
    )
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for path, (_, data) in zip(names, images, strict=True):
            archive.writestr(path, data)
        archive.writestr(name, table(rng, names, suffix))
        if rng.random() < 0.2:
            archive.writestr("classes.txt", mutated_bytes(b"0 cat\n1 dog\n", rng))
    return file.getvalue()


def webdataset(images: list[tuple[str, bytes]], rng: random.Random) -> bytes:
    """A tar of images with .json or .cls beside them, some of which are damaged."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for i, (suffix, data) in enumerate(images):
            kind = rng.choice(("json", "json", "cls"))
            said = b"%d" % (i % 2)
            if kind == "json":
                said = json.dumps({"label": i % 2, "case": f"p{i}"}).encode()
            if rng.random() < 0.3:
                said = (mutated_json if kind == "json" else mutated_bytes)(said, rng)
            for ending, content in ((suffix, data), (kind, said)):
                info = tarfile.TarInfo(f"{i:04d}.{ending}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return tar_fields(file.getvalue(), rng) if rng.random() < 0.3 else file.getvalue()


def npz(rng: random.Random) -> bytes:
    """Arrays of images and labels, one of them of another type or shape, or damaged."""
    size = rng.choice((1, 6, 6))
    arrays: dict[str, Any] = {}
    for split in ("train", "test"):
        pixels = np.frombuffer(rng.randbytes(size * 48), np.uint8)
        arrays[f"{split}_images"] = pixels.reshape(size, 4, 4, 3)
        arrays[f"{split}_labels"] = np.arange(size) % 2
    changes: tuple[Callable[[Any], Any], ...] = (
        lambda a: a[:-1],
        lambda a: a.astype(np.float64),
        lambda a: a[:, None],
        lambda a: a.ravel(),
        lambda a: np.array([{}] * len(a), object),
        lambda a: np.asfortranarray(a),
        lambda a: a.astype(np.int64) - 1000,
    )
    if rng.random() < 0.5:
        name = rng.choice(sorted(arrays))
        arrays[name] = rng.choice(changes)(arrays[name])
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            one = io.BytesIO()
            np.save(one, array)
            data = one.getvalue()
            # A header that lies, under the right sum.
            if rng.random() < 0.15:
                at = data.index(b"'shape': (") + 10
                lie = rng.choice((b"9", b"-1", b"1e9", b"((", b"999999999"))
                data = data[:at] + lie + data[at + len(lie) :]
            elif rng.random() < 0.15:
                data = mutated_bytes(data, rng)
            archive.writestr(f"{name}.npy", data)
    return mutated_bytes(file.getvalue(), rng) if rng.random() < 0.2 else file.getvalue()


def parquet(images: list[tuple[str, bytes]], rng: random.Random) -> bytes | None:
    """Images as bytes with classes and groups, with a value of another type, or damaged bytes. None
    without pyarrow."""
    try:
        arrow = importlib.import_module("pyarrow")
        module = importlib.import_module("pyarrow.parquet")
    except ImportError:
        return None
    odd: list[Any] = [None, "", "a/b", *HOSTILE_NAMES[:8]]
    labels: list[Any] = [*itertools.islice(itertools.cycle("ab"), len(images))]
    groups: list[Any] = [rng.choice(("p", "q", None)) for _ in images]
    rng.choice((labels, groups))[0] = rng.choice(odd)
    table = {
        "image": [
            {"bytes": data, "path": f"{i}.{suffix}"} for i, (suffix, data) in enumerate(images)
        ],
        "label": labels if rng.random() < 0.8 else rng.choice(([b"\xff"] * 6, [1.5] * 6)),
        rng.choice(("patient", "x\x1b[2J")): groups,
    }
    file = io.BytesIO()
    module.write_table(arrow.table(table), file, row_group_size=rng.choice((1, 3)))
    return mutated_bytes(file.getvalue(), rng) if rng.random() < 0.4 else file.getvalue()


# -- images


IMAGE_KINDS = (
    "PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "PGM", "PBM", "TGA", "ICO", "PCX", "SGI",
    "DDS", "JPEG2000", "AVIF", "EPS", "PDF", "ICNS",
)  # fmt: skip


@cache
def samples() -> list[tuple[str, bytes]]:
    """(suffix, file) of random pixels: every kind in every mode that Pillow writes here."""
    rng = random.Random(0)
    found: list[tuple[str, bytes]] = []
    for kind, mode in itertools.product(
        IMAGE_KINDS, ("RGB", "L", "P", "RGBA", "1", "I;16", "CMYK")
    ):
        size = rng.choice(((5, 4), (16, 9), (1, 30)))
        image = Image.frombytes("RGB", size, rng.randbytes(size[0] * size[1] * 3))
        image = image.convert("L").convert("I;16") if mode == "I;16" else image.convert(mode)
        file = io.BytesIO()
        try:
            image.save(file, {"PGM": "PPM", "PBM": "PPM"}.get(kind, kind))
        # Not this mode in this kind, or no such encoder.
        except (OSError, ValueError, KeyError):
            continue
        found.append(({"JPEG": "jpg"}.get(kind, kind.lower()), file.getvalue()))
    return found


def images(rng: random.Random, count: int) -> list[tuple[str, bytes]]:
    """Some of `samples`; three of ten are called PNG or JPEG, whatever they are."""
    some = rng.choices(samples(), k=count)
    return [
        (rng.choice(("png", "jpg")) if rng.random() < 0.3 else suffix, data)
        for suffix, data in some
    ]


def mutated_image(data: bytes, rng: random.Random) -> bytes:
    """Damaged bytes; of a PNG also a chunk with another content whose sum is right."""
    if not data.startswith(b"\x89PNG") or rng.random() < 0.5:
        return mutated_bytes(data, rng)
    at, chunks = 8, []
    while at + 8 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    i = rng.randrange(len(chunks))
    kind, content = chunks[i]
    chunks[i] = (
        rng.choice((kind, b"tEXt", b"iCCP", b"acTL", b"PLTE")),
        mutated_bytes(content, rng),
    )
    pack = (
        struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks
    )
    return data[:8] + b"".join(pack)
