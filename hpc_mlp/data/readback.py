"""Reading shards back: `inspect --verify` and the contact sheet."""

from __future__ import annotations

import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from hpc_mlp.data.archive import RejectError
from hpc_mlp.data.decode import ImageSpec, decode_image
from hpc_mlp.data.manifest import NAME, Manifest, check_shard
from hpc_mlp.errors import UserError

_CELL, _GAP, _LABEL = 72, 4, 150  # pixels
_MAX_CLASSES, _PER_CLASS = 60, 12


def members(path: Path) -> Iterator[tuple[str, str, bytes, int]]:
    """(key, suffix, image bytes, class) of every sample of a shard. UserError where it is no such shard."""
    try:
        with tarfile.open(path, "r:") as tar:
            waiting: tuple[str, str, bytes] | None = None
            for member in tar:
                file = tar.extractfile(member)
                data = file.read() if file else b""
                tar.members = []  # type: ignore[attr-defined]  # else every header stays in memory
                key, _, suffix = member.name.partition(".")
                if suffix != "cls":
                    waiting = (key, suffix, data)
                elif waiting and waiting[0] == key:
                    yield *waiting, int(data)
    except (tarfile.TarError, ValueError, OSError) as error:
        raise UserError(f"{path} is damaged ({error}). Convert the ZIP again.") from None


def verify(folder: Path, manifest: Manifest) -> str:
    """Check every shard's bytes, keys and classes against the manifest. UserError at the first difference."""
    keys: set[int] = set()
    shards = 0
    for name, split in manifest.splits.items():
        counts: Counter[int] = Counter()
        for shard in split.shards:
            check_shard(folder, shard)
            labels = [(int(key), label) for key, _, _, label in members(folder / shard.name)]
            keys.update(key for key, _ in labels)
            counts.update(label for _, label in labels)
            shards += 1
            if len(labels) != shard.num_images:
                raise _differs(folder / shard.name, f"{len(labels)} images instead of {shard.num_images}")
        if tuple(counts[i] for i in range(len(manifest.classes))) != split.class_counts:
            raise _differs(folder, f"the classes of {name} are not counted right")
    total = sum(split.num_images for split in manifest.splits.values())
    if len(keys) != total:
        raise _differs(folder, f"{len(keys)} different keys for {total} images")
    return f"verified: {shards} shards, {total:,} images, every byte as it was written"


def _differs(path: Path, what: str) -> UserError:
    return UserError(f"{path} does not agree with {NAME}: {what}. Convert the ZIP again.")


def contact_sheet(folder: Path, manifest: Manifest, file: Path) -> str:
    """A PNG with a row of training images for each class."""
    height, width = manifest.image_size
    spec = ImageSpec(height, width, manifest.channels)
    classes = manifest.classes[:_MAX_CLASSES]
    found: dict[int, list[Image.Image]] = {i: [] for i in range(len(classes))}
    wanted = {i: min(_PER_CLASS, manifest.splits["train"].class_counts[i]) for i in found}
    for shard in manifest.splits["train"].shards:
        for _, _, data, label in members(folder / shard.name):
            if label in found and len(found[label]) < wanted[label]:
                try:
                    found[label].append(_fitted(data, spec))
                except RejectError as error:
                    raise _differs(folder / shard.name, f"an image cannot be read ({error})") from None
        if all(len(found[i]) >= wanted[i] for i in found):
            break
    sheet = _draw(found, classes)
    try:
        sheet.save(file, "PNG")
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror or error}.") from None
    more = (
        f" ({len(classes)} of {len(manifest.classes)} classes)"
        if len(classes) < len(manifest.classes)
        else ""
    )
    return f"contact sheet{more}: {file}"


def _fitted(data: bytes, spec: ImageSpec) -> Image.Image:
    pixels = decode_image(data, spec)
    image = Image.fromarray(pixels[:, :, 0] if spec.channels == 1 else pixels).convert("RGB")
    scale = _CELL / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    small = scale > 1
    return image.resize(size, Image.Resampling.NEAREST if small else Image.Resampling.BOX)


def _draw(found: dict[int, list[Image.Image]], classes: tuple[str, ...]) -> Image.Image:
    step = _CELL + _GAP
    sheet = Image.new("RGB", (_LABEL + _PER_CLASS * step + _GAP, len(classes) * step + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(14)
    for row, name in enumerate(classes):
        top = _GAP + row * step
        text = name if len(name) <= 18 else name[:17] + "…"
        draw.text((_GAP + 4, top + _CELL / 2), text, fill="black", font=font, anchor="lm")
        for column, image in enumerate(found[row]):
            left = _LABEL + column * step
            sheet.paste(image, (left + (_CELL - image.width) // 2, top + (_CELL - image.height) // 2))
    return sheet
