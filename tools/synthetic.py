"""Shards of the benchmarks' shapes without their data: as many images, classes and pixels, drawn at
random.

    python tools/synthetic.py FOLDER
        FOLDER/photos (4,844 RGB of 64 px) and FOLDER/fashion (70,000 gray of 28 px)

For speed alone: each class is a colour in noise, which says nothing about accuracy.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hpc_mlp.conversion.convert import convert
from hpc_mlp.conversion.settings import Settings

# Images, pixels of a side, channels.
SETS = {"photos": (4844, 64, 3), "fashion": (70000, 28, 1)}


def write_zip(path: Path, num_images: int, size: int, channels: int) -> None:
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        for i in range(num_images):
            noise = rng.integers(0, 64, (size, size, channels)) + 18 * (i % 10)
            pixels = noise.astype(np.uint8)
            data = io.BytesIO()
            Image.fromarray(pixels if channels == 3 else pixels[:, :, 0]).save(
                data, "PNG", compress_level=1
            )
            file.writestr(f"{i % 10}/{i:05d}.png", data.getvalue())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, (num_images, size, channels) in SETS.items():
        with tempfile.TemporaryDirectory() as temporary:
            source = Path(temporary) / f"{name}.zip"
            write_zip(source, num_images, size, channels)
            # Fashion-MNIST's own test split is a seventh of it; the photographs take the default
            # shares.
            shares = (6000 / 70000, 10000 / 70000) if name == "fashion" else (0.1, 0.1)
            settings = Settings(
                height=size, width=size, grayscale=channels == 1, val=shares[0], test=shares[1]
            )
            convert([source], folder / name, settings)


if __name__ == "__main__":
    main()
