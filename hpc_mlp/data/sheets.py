"""Training images drawn on one PNG: some of each class, or as they are and augmented."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from hpc_mlp.config.sections import AugmentConfig
from hpc_mlp.data.decode import Pixels
from hpc_mlp.data.encode import as_image
from hpc_mlp.data.manifest import Manifest
from hpc_mlp.data.shards import OpenShard, open_shard
from hpc_mlp.errors import UserError, printable

# Pixels: of a class's images, between images, of the names beside them.
_CELL, _GAP, _LABEL = 72, 4, 150
_MAX_CLASSES, _PER_CLASS = 60, 12
# Pixels of an augmented image's side, at least.
_AUGMENTED = 96


def contact_sheet(folder: Path, manifest: Manifest, file: Path) -> str:
    """`draw_contact_sheet` as a PNG."""
    _save(draw_contact_sheet(folder, manifest), file)
    all_of = len(manifest.classes)
    more = f" ({_MAX_CLASSES} of {all_of} classes)" if all_of > _MAX_CLASSES else ""
    return f"contact sheet{more}: {file}"


def draw_contact_sheet(folder: Path, manifest: Manifest) -> Image.Image:
    """A row of training images for each class."""
    classes = manifest.classes[:_MAX_CLASSES]
    rows: list[list[Pixels]] = [[] for _ in classes]
    for shard, row, label in first_of_each(folder, manifest, len(classes), _PER_CLASS):
        rows[label].append(shard.image(row, manifest))
    return _draw(rows, _CELL, classes)


def augmented_sheet(folder: Path, manifest: Manifest, config: AugmentConfig, file: Path) -> str:
    """A PNG of eight training images, each in a row: as it is, then seven times augmented."""
    rows = augmented_rows(folder, manifest, config)
    side = max(manifest.image_size)
    _save(_draw(rows, side * max(1, _AUGMENTED // side)), file)
    return f"augmented training images, the first of each row as it is: {file}"


def augmented_rows(
    folder: Path,
    manifest: Manifest,
    config: AugmentConfig,
    seed: int = 0,
    images: int = 8,
    copies: int = 8,
) -> list[list[Pixels]]:
    """`copies` of each of the first training images: as it is, then augmented."""
    import torch

    from hpc_mlp.data.augment import augment
    from hpc_mlp.data.streaming import StreamingSplit

    split = StreamingSplit(folder, manifest, "train", workers=0, device=torch.device("cpu"))
    with closing(split.in_order(images)) as batches:
        original = next(batches).images
    columns = [original]
    for step in range(copies - 1):
        places = slice(0, len(original))
        pixels = augment(original, config, seeds=[seed], epoch=0, step=step, positions=places)
        columns.append((pixels.clamp(0, 1) * 255).round().to(torch.uint8))
    return [list(row) for row in torch.stack(columns, 1).permute(0, 1, 3, 4, 2).numpy()]


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


def _save(image: Image.Image, file: Path) -> None:
    """UserError where the file cannot be written."""
    try:
        image.save(file, "PNG")
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror or error}.") from None


def _draw(rows: Sequence[Sequence[Pixels]], cell: int, names: Sequence[str] = ()) -> Image.Image:
    """Each image fills a cell as far as its proportions let it; `names` stand before the rows."""
    step, label = cell + _GAP, _LABEL if names else _GAP
    width, height = label + max(map(len, rows)) * step, len(rows) * step + _GAP
    sheet = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for row, images in enumerate(rows):
        top = _GAP + row * step
        if names:
            name = printable(names[row])
            text = name if len(name) <= 18 else name[:17] + "…"
            draw.text((2 * _GAP, top + cell / 2), text, fill="black", font=font, anchor="lm")
        for column, pixels in enumerate(images):
            image = _fitted(as_image(pixels), cell)
            left = label + column * step
            sheet.paste(image, (left + (cell - image.width) // 2, top + (cell - image.height) // 2))
    return sheet


def _fitted(image: Image.Image, cell: int) -> Image.Image:
    scale = cell / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX)
