"""Images out of the shards: the most confident mistakes, and samples of every class."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from hpc_mlp.data.decode import Pixels, decode_whole
from hpc_mlp.data.encode import as_image
from hpc_mlp.data.manifest import Manifest
from hpc_mlp.data.shards import OpenShard, open_shard
from hpc_mlp.data.sheets import first_of_each
from hpc_mlp.errors import RejectError, UserError
from hpc_mlp.reporting import figures
from hpc_mlp.reporting.figures import Drawn
from hpc_mlp.reporting.predictions import RunPredictions

# A browser shows these as they are.
MEDIA = {b"\x89PNG": "image/png", b"\xff\xd8": "image/jpeg"}
# Pixels of a side; larger images (shards may hold the original files) go into the page reduced.
LARGEST = 160
# Shards that are looked through for samples of every class: one may be all of one class.
MOST_SHARDS = 4


@dataclass(frozen=True)
class Sample:
    """One image of a shard. `pixels`: uint8 [H, W, 3], at most `LARGEST` high and wide; `file`: the
    image file where it has these very pixels, else empty."""

    label: int
    pixels: Pixels
    file: bytes

    def data_uri(self) -> str:
        """For an `img`: the file's own bytes where a browser shows them."""
        data = self.file
        media = next((media for magic, media in MEDIA.items() if data.startswith(magic)), None)
        if media is None:
            buffer = io.BytesIO()
            Image.fromarray(self.pixels).save(buffer, "PNG")
            media, data = "image/png", buffer.getvalue()
        return f"data:{media};base64,{base64.b64encode(data).decode()}"


def read_samples(
    folder: Path, manifest: Manifest, splits: Sequence[str], wanted: Iterable[int]
) -> dict[int, Sample]:
    """The samples with these places in the sequence of all images of the splits; shards without any
    of them are not opened. UserError where a shard is gone or not as the manifest says, or an image
    cannot be decoded."""
    indices, found, start = sorted(wanted), dict[int, Sample](), 0
    for shard in (shard for split in splits for shard in manifest.split(split).shards):
        here = [index for index in indices if start <= index < start + shard.num_images]
        if here:
            with closing(open_shard(folder, shard, len(manifest.classes), verify=False)) as opened:
                found |= {index: _sample(opened, manifest, index - start) for index in here}
        start += shard.num_images
    return found


def _sample(shard: OpenShard, manifest: Manifest, row: int) -> Sample:
    """Decoded as for training: a decoder that starts a program gets nothing to see."""
    file, label = shard.encoded(row), int(shard.index.labels[row])
    if manifest.encoding == "original":
        try:
            return Sample(label, decode_whole(file, LARGEST, manifest.max_pixels), b"")
        except RejectError as error:
            raise UserError(f"image {row} of {shard.name} cannot be decoded ({error}).") from None
    pixels = shard.image(row, manifest)
    image = as_image(pixels).convert("RGB")
    fits = max(image.size) <= LARGEST
    image.thumbnail((LARGEST, LARGEST))
    return Sample(label, np.asarray(image), file if fits else b"")


@dataclass(frozen=True)
class Mistake:
    """A test image taken for another class with this probability, and how many of the runs erred on
    it. `index`: its place in the sequence of images that the predictions are of."""

    index: int
    sample: Sample
    predicted: int
    probability: float
    wrong_runs: int
    num_runs: int


def confident_mistakes(
    folder: Path,
    manifest: Manifest,
    chosen: RunPredictions,
    others: Sequence[RunPredictions],
    most: int,
) -> list[Mistake]:
    """The wrong predictions of `chosen` with the highest probability. UserError where the shards
    are not those that the predictions were made on. `others`: all runs on these test images,
    `chosen` among them."""
    size = sum(manifest.split(split).num_images for split in chosen.splits)
    places = chosen.places
    if (chosen.rows is None and size != len(places)) or places.max(initial=0) >= size:
        own, predicted = f"{size:,}", f"{len(places):,}"
        raise UserError(f"{folder} has {own} test images, the predictions {predicted}.")
    labels, confidence = chosen.predicted, chosen.confidence
    each_wrong = [run.predicted != run.labels for run in others]
    wrong = np.flatnonzero(labels != chosen.labels)
    order = wrong[np.argsort(-confidence[wrong], kind="stable")][:most]
    samples = read_samples(folder, manifest, chosen.splits, places[order].tolist())
    mistakes = []
    for index in order.tolist():
        place = int(places[index])
        sample = samples.get(place)
        if sample is None or sample.label != chosen.labels[index]:
            raise UserError(f"the test images in {folder} are not in the order of the predictions.")
        erring = sum(bool(wrong[index]) for wrong in each_wrong)
        label, probability = int(labels[index]), float(confidence[index])
        mistakes.append(Mistake(place, sample, label, probability, erring, len(others)))
    return mistakes


def class_samples(folder: Path, manifest: Manifest, each: int, most: int) -> list[Sample]:
    """Up to `each` training images of a class, `most` in all, by class, out of the first shards."""
    num_classes = min(len(manifest.classes), most)
    each = max(1, min(each, most // max(1, num_classes)))
    picked = first_of_each(folder, manifest, num_classes, each, MOST_SHARDS)
    samples = [_sample(shard, manifest, row) for shard, row, _ in picked]
    return sorted(samples, key=lambda sample: sample.label)


def image_grid(
    samples: Sequence[Sample], captions: Sequence[str], folder: Path, name: str, title: str
) -> Drawn:
    """The gallery as one figure file, up to eight images in a row."""
    columns = min(8, len(samples))
    rows = -(-len(samples) // columns)
    axes = figures.new_axes(title, "", "", 1.1 * columns + 0.2, 0.4 + 1.45 * rows)
    for number, (sample, caption) in enumerate(zip(samples, captions, strict=True)):
        row, column = divmod(number, columns)
        height, width = sample.pixels.shape[:2]
        half_w, half_h = 0.46 * width / max(width, height), 0.46 * height / max(width, height)
        x, y = column, 1.35 * row
        extent = (x - half_w, x + half_w, y + half_h, y - half_h)
        axes.imshow(sample.pixels, extent=extent, interpolation="none")
        axes.text(x, y + 0.5, caption, ha="center", va="top", fontsize=6)
    axes.set(xlim=(-0.55, columns - 0.45), ylim=(1.35 * rows - 0.45, -0.55))
    axes.set_axis_off()
    return figures.save(axes, folder, name, title, wide=True)
