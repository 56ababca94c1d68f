"""Images out of the shards: the most confident mistakes, and samples of every class."""

from __future__ import annotations

import base64
import io
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, ImageOps

from hpc_mlp.data.manifest import Manifest, Split
from hpc_mlp.errors import UserError
from hpc_mlp.report import figures
from hpc_mlp.report.answers import Predictions
from hpc_mlp.report.figures import Drawn

MEDIA = {"png": "image/png", "jpg": "image/jpeg", "jpeg": "image/jpeg"}  # a browser shows these as they are
LARGEST = 160  # pixels; larger images (shards may hold the original files) go into the page reduced


@dataclass(frozen=True)
class Sample:
    """One image as it lies in a shard. `index` counts the split's samples in shard order."""

    index: int
    key: str
    label: int
    data: bytes
    extension: str

    def image(self) -> Image.Image:
        """The image in RGB, at most `LARGEST` pixels wide and high. UserError where it cannot be decoded."""
        try:
            if self.extension == "npy":
                array = np.load(io.BytesIO(self.data), allow_pickle=False)
                image = Image.fromarray(array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array)
            else:
                image = ImageOps.exif_transpose(Image.open(io.BytesIO(self.data)))
            image = image.convert("RGB")
        except (OSError, ValueError, TypeError, Image.DecompressionBombError) as error:
            raise UserError(f"sample {self.key} cannot be decoded ({error}).") from None
        image.thumbnail((LARGEST, LARGEST))
        return image

    def data_uri(self) -> str:
        """For an `img`: the file's own bytes where they are small and a browser shows them."""
        media, data = MEDIA.get(self.extension), self.data
        if media is None or max(Image.open(io.BytesIO(data)).size) > LARGEST:
            buffer = io.BytesIO()
            self.image().save(buffer, "PNG")
            media, data = "image/png", buffer.getvalue()
        return f"data:{media};base64,{base64.b64encode(data).decode()}"


def read_samples(folder: Path, split: Split, wanted: Iterable[int]) -> dict[int, Sample]:
    """The samples of `split` with these indices; shards without any of them are not opened. UserError where a
    shard is gone or cannot be read."""
    indices, found, start = set(wanted), {}, 0
    for shard in split.shards:
        here = {index - start for index in indices if start <= index < start + shard.num_images}
        if here:
            for sample in _shard_samples(folder / shard.name, here, start):
                found[sample.index] = sample
        start += shard.num_images
    return found


def _shard_samples(path: Path, wanted: set[int], start: int) -> Iterator[Sample]:
    """Samples number `wanted` (from 0) of one shard: consecutive members with the same key are one sample."""
    try:
        with tarfile.open(path, "r:") as tar:
            number, key, parts = -1, None, dict[str, bytes]()
            for member in tar:
                stem, _, extension = PurePosixPath(member.name).name.partition(".")
                if not member.isfile():
                    continue
                if stem != key:
                    if parts and key is not None:
                        yield _sample(path, start + number, key, parts)
                    number, key, parts = number + 1, stem, {}
                    if number > max(wanted):
                        return
                if number in wanted:
                    file = tar.extractfile(member)
                    parts[extension.lower()] = file.read() if file else b""
            if parts and key is not None:
                yield _sample(path, start + number, key, parts)
    except (OSError, tarfile.TarError) as error:
        raise UserError(f"{path} cannot be read ({error}).") from None


def _sample(path: Path, index: int, key: str, parts: dict[str, bytes]) -> Sample:
    image = next((extension for extension in parts if extension != "cls"), None)
    try:
        label = int(parts["cls"])
    except (KeyError, ValueError):
        raise UserError(f"{path}: sample {key} has no class.") from None
    if image is None:
        raise UserError(f"{path}: sample {key} has no image.")
    return Sample(index, key, label, parts[image], image)


@dataclass(frozen=True)
class Mistake:
    """A test image taken for another class with this probability, and how many of the runs erred on it."""

    sample: Sample
    predicted: int
    probability: float
    wrong_runs: int
    num_runs: int


def confident_mistakes(
    folder: Path, manifest: Manifest, chosen: Predictions, others: Sequence[Predictions], most: int
) -> list[Mistake]:
    """The wrong predictions of `chosen` with the highest probability. UserError where the shards are not
    those that the predictions were made on. `others`: all runs on these test images, `chosen` among them."""
    split = manifest.split("test")
    if split.num_images != len(chosen.labels):
        raise UserError(
            f"{folder} has {split.num_images:,} test images, the predictions {len(chosen.labels):,}."
        )
    wrong = np.flatnonzero(chosen.predicted != chosen.labels)
    order = wrong[np.argsort(-chosen.confidence[wrong], kind="stable")][:most]
    samples = read_samples(folder, split, order.tolist())
    mistakes = []
    for index in order.tolist():
        sample = samples.get(index)
        if sample is None or sample.label != chosen.labels[index]:
            raise UserError(f"the test images in {folder} are not in the order of the predictions.")
        erring = sum(bool(run.predicted[index] != run.labels[index]) for run in others)
        mistakes.append(
            Mistake(
                sample, int(chosen.predicted[index]), float(chosen.confidence[index]), erring, len(others)
            )
        )
    return mistakes


def class_samples(folder: Path, manifest: Manifest, each: int, most: int) -> list[Sample]:
    """Up to `each` training images of a class, `most` in all, by class, out of the first shards."""
    split = manifest.split("train")
    num_classes = min(len(manifest.classes), most)
    each = max(1, min(each, most // max(1, num_classes)))
    found: dict[int, list[Sample]] = {label: [] for label in range(num_classes)}
    start = 0
    for shard in split.shards[:4]:
        for sample in _shard_samples(folder / shard.name, set(range(min(shard.num_images, 2000))), start):
            if len(found.get(sample.label, range(each))) < each:
                found[sample.label].append(sample)
            if all(len(samples) == each for samples in found.values()):
                break
        start += shard.num_images
        if all(len(samples) == each for samples in found.values()):
            break
    return [sample for samples in found.values() for sample in samples]


def image_grid(
    samples: Sequence[Sample], captions: Sequence[str], folder: Path, name: str, title: str
) -> Drawn:
    """The gallery as one figure file, up to eight images in a row."""
    columns = min(8, len(samples))
    rows = -(-len(samples) // columns)
    axes = figures.new_axes(title, "", "", 1.1 * columns + 0.2, 0.4 + 1.45 * rows)
    for number, (sample, caption) in enumerate(zip(samples, captions, strict=True)):
        row, column = divmod(number, columns)
        pixels = np.asarray(sample.image())
        height, width = pixels.shape[:2]
        half_w, half_h = 0.46 * width / max(width, height), 0.46 * height / max(width, height)
        x, y = column, 1.35 * row
        axes.imshow(pixels, extent=(x - half_w, x + half_w, y + half_h, y - half_h), interpolation="none")
        axes.text(x, y + 0.5, caption, ha="center", va="top", fontsize=6)
    axes.set(xlim=(-0.55, columns - 0.45), ylim=(1.35 * rows - 0.45, -0.55))
    axes.set_axis_off()
    return figures.save(axes, folder, name, title, wide=True)
