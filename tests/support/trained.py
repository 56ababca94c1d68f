"""Small real runs for tests of what uses them: photographs and digits of scikit-learn, as files of
many kinds."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.optimize import linear_sum_assignment

import hpc_mlp
from hpc_mlp.runs.folder import Run

# Height, width.
SIZE = (10, 12)
# Images of a class.
SPLITS = {"train": 24, "val": 6, "test": 12}


def image_bytes(pixels: Any, kind: str) -> bytes:
    """The image as a file of this kind."""
    image, options = Image.fromarray(pixels), dict[str, Any]()
    suffix = "PNG"
    # Stored lying, with the EXIF flag that says so.
    if kind == "turned":
        exif = Image.Exif()
        exif[0x0112] = 6
        image, suffix, options = image.transpose(Image.Transpose.ROTATE_90), "JPEG", {"exif": exif}
    elif kind in ("jpeg", "cmyk"):
        image, suffix = image.convert("CMYK") if kind == "cmyk" else image, "JPEG"
    elif kind == "palette":
        image = image.quantize(32)
    elif kind == "alpha":
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    elif kind == "gray16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    elif kind == "gif":
        suffix = "GIF"
    file = io.BytesIO()
    image.save(file, suffix, **options)
    return file.getvalue()


KINDS = ("png", "jpeg", "turned", "cmyk", "palette", "alpha", "gray16", "gif")


def class_images() -> dict[str, list[Any]]:
    """42 images uint8 [h, w, 3] of several sizes of each of three classes."""
    from sklearn.datasets import load_digits, load_sample_images

    rng = np.random.default_rng(0)
    china, flower = load_sample_images().images
    images: dict[str, list[Any]] = {"china": [], "digit": [], "flower": []}
    for i in range(sum(SPLITS.values())):
        height, width = (int(side) for side in rng.integers(16, 70, 2))
        for name, photo in (("china", china), ("flower", flower)):
            top, left = (int(rng.integers(0, photo.shape[k] - 70)) for k in (0, 1))
            images[name].append(photo[top : top + height, left : left + width])
        digit = Image.fromarray((load_digits().images[i] * 15).astype(np.uint8)).resize(
            (width, height)
        )
        images["digit"].append(np.asarray(digit.convert("RGB")))
    return images


def write_zip(path: Path, splits: Sequence[str] = tuple(SPLITS)) -> Path:
    """`test/china/3.jpg` and so on, the kinds of file in turn."""
    first = dict(zip(SPLITS, np.cumsum([0, *SPLITS.values()]).tolist(), strict=False))
    with zipfile.ZipFile(path, "w") as archive:
        for name, images in class_images().items():
            for split in splits:
                for i in range(first[split], first[split] + SPLITS[split]):
                    kind = KINDS[i % len(KINDS)]
                    suffix = {"jpeg": "jpg", "turned": "jpg", "cmyk": "jpg", "gif": "gif"}.get(
                        kind, "png"
                    )
                    archive.writestr(f"{split}/{name}/{i}.{suffix}", image_bytes(images[i], kind))
    return path


@dataclass(frozen=True)
class Trained:
    root: Path

    @property
    def images(self) -> Path:
        """A ZIP of the test images alone."""
        return self.root / "test.zip"

    @property
    def shards(self) -> Path:
        return self.root / "shards"

    def run(self, name: str) -> Path:
        return self.root / "runs" / name

    def predictions(self, name: str) -> Any:
        """float32 [N, K], of the test images in shard order."""
        return np.load(self.run(name) / "predictions.npz")["probabilities"]


def every_kind(base: Path) -> Trained:
    """One run of every kind of model, and a second seed of one; made once for all test files."""
    root = base / "every-kind"
    if not root.exists():
        root.mkdir()
        write_zip(root / "all.zip")
        write_zip(root / "test.zip", ["test"])
        hpc_mlp.convert(root / "all.zip", root / "shards", size=SIZE, workers=1)
        train(root, "batchnorm,dropout,cnn,resnet18")
        (root / "residual.toml").write_text(
            '[model]\nkind = "residual_mlp"\nblocks = 1\ndropout = 0.1\n'
        )
        train(root, str(root / "residual.toml"))
        train(root, "batchnorm", "1")
    return Trained(root)


def train(root: Path, variants: str, seeds: str = "0") -> list[Run]:
    """For one epoch."""
    small = ["train.epochs=1", "train.batch_size=8", "model.hidden=[16, 8]"]
    return hpc_mlp.train(
        root / "shards",
        variants=variants,
        seeds=seeds,
        runs=root / "runs",
        settings=small,
        cpu=True,
    )


def same_rows(a: Any, b: Any) -> bool:
    """Whether the rows of `a` are those of `b` in another order, within float rounding."""
    if len(a) != len(b):
        return False
    distances = np.abs(a[:, None] - b[None]).max(2)
    # Two images may have all but the same probabilities: the nearest row alone would not tell them
    # apart.
    pairs = linear_sum_assignment(distances)
    return bool(distances[pairs].max() < 2e-6)
