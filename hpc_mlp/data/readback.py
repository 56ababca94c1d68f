"""Reading shards back: `inspect --verify` and the contact sheet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hpc_mlp.data.cache import are_counted
from hpc_mlp.data.decode import Pixels
from hpc_mlp.data.manifest import NAME, Manifest
from hpc_mlp.data.shards import OpenShard, open_shard
from hpc_mlp.errors import UserError, printable
from hpc_mlp.terminal.text import count

_CELL, _GAP, _LABEL = 72, 4, 150  # pixels
_MAX_CLASSES, _PER_CLASS = 60, 12


def verify(folder: Path, manifest: Manifest) -> str:
    """Check every shard's bytes, keys and classes against the manifest, and read it by webdataset's
    own pipeline as well. UserError at the first difference."""
    keys: set[str] = set()
    shards = 0
    for name, split in manifest.splits.items():
        labels = [np.empty(0, np.int64)]
        for shard in split.shards:
            with closing(open_shard(folder, shard, len(manifest.classes), verify=True)) as opened:
                keys.update(opened.keys())
                labels.append(opened.index.labels)
                _check_with_webdataset(folder / shard.name, opened)
                opened.check_unchanged()
            shards += 1
        if not are_counted(np.concatenate(labels), manifest, name):
            raise _differs(folder, f"the classes of {name} are not counted right")
    total = sum(split.num_images for split in manifest.splits.values())
    if len(keys) != total:
        raise _differs(folder, f"{len(keys)} different keys for {total} images")
    return (
        f"verified: {count(shards, 'shard')}, {count(total, 'image')}, every byte as it was "
        "written; webdataset reads the same"
    )


def _check_with_webdataset(path: Path, opened: OpenShard) -> None:
    """UserError where webdataset reads other samples (keys, classes, image files) than we do."""
    # Late: it imports torch.
    import webdataset

    # In a list, since braces in a lone path would be a pattern.
    shards = webdataset.SimpleShardList([str(path.absolute())])
    theirs = iter(webdataset.DataPipeline(shards, webdataset.tarfile_to_samples()))
    try:
        for row, (key, label) in enumerate(
            zip(opened.keys(), opened.index.labels.tolist(), strict=True)
        ):
            sample = next(theirs)
            if (sample["__key__"], int(sample["cls"])) != (key, label) or opened.encoded(
                row
            ) not in sample.values():
                raise ValueError(f"sample {row} is another")
        if next(theirs, None) is not None:
            raise ValueError("there are more samples")
    # On what is no tar it raises anything.
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise _differs(path, f"webdataset does not read the same ({reason})") from None


def _differs(path: Path, what: str) -> UserError:
    return UserError(
        f"{printable(path)} does not agree with {NAME}: {printable(what)}. Convert the ZIP again."
    )


def contact_sheet(folder: Path, manifest: Manifest, file: Path) -> str:
    """`draw_contact_sheet` as a PNG."""
    save_png(draw_contact_sheet(folder, manifest), file)
    all_of = len(manifest.classes)
    more = f" ({_MAX_CLASSES} of {all_of} classes)" if all_of > _MAX_CLASSES else ""
    return f"contact sheet{more}: {file}"


def draw_contact_sheet(folder: Path, manifest: Manifest) -> Image.Image:
    """A row of training images for each class."""
    classes = manifest.classes[:_MAX_CLASSES]
    found: list[list[Image.Image]] = [[] for _ in classes]
    for shard, row, label in first_of_each(folder, manifest, len(classes), _PER_CLASS):
        found[label].append(_fitted(shard.image(row, manifest)))
    return _draw(found, classes)


def first_of_each(
    folder: Path, manifest: Manifest, num_classes: int, each: int, most_shards: int | None = None
) -> Iterator[tuple[OpenShard, int, int]]:
    """(shard, row, label) of the first `each` training images of every one of the first
    `num_classes` classes, in shard order; no shard is opened after the last of them. UserError
    where one is gone."""
    split = manifest.split("train")
    left = [min(each, count) for count in split.class_counts[:num_classes]]
    for shard in split.shards[:most_shards]:
        if not any(left):
            break
        with closing(open_shard(folder, shard, len(manifest.classes), verify=False)) as opened:
            for row, label in enumerate(opened.index.labels.tolist()):
                if label < num_classes and left[label]:
                    left[label] -= 1
                    yield opened, row, label


def save_png(image: Image.Image, file: Path) -> None:
    """UserError where the file cannot be written."""
    try:
        image.save(file, "PNG")
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror or error}.") from None


def _fitted(pixels: Pixels) -> Image.Image:
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).convert("RGB")
    scale = _CELL / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    small = scale > 1
    return image.resize(size, Image.Resampling.NEAREST if small else Image.Resampling.BOX)


def _draw(found: list[list[Image.Image]], classes: tuple[str, ...]) -> Image.Image:
    step = _CELL + _GAP
    sheet = Image.new(
        "RGB", (_LABEL + _PER_CLASS * step + _GAP, len(classes) * step + _GAP), "white"
    )
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(14)
    for row, name in enumerate(classes):
        top = _GAP + row * step
        name = printable(name)
        text = name if len(name) <= 18 else name[:17] + "…"
        draw.text((_GAP + 4, top + _CELL / 2), text, fill="black", font=font, anchor="lm")
        for column, image in enumerate(found[row]):
            left = _LABEL + column * step
            sheet.paste(
                image, (left + (_CELL - image.width) // 2, top + (_CELL - image.height) // 2)
            )
    return sheet
