"""scikit-learn's handwritten digits as a ZIP of images: real data without a download."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np

from hpc_mlp.files.atomic import write_bytes


def write_digits_zip(path: Path) -> None:
    """1,797 grayscale PNG of 8×8 pixels in `digits/<0-9>/`; the same bytes every time."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for i, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
            png = io.BytesIO()
            Image.fromarray((image * (255 / 16)).astype(np.uint8)).save(png, "PNG")
            entry = zipfile.ZipInfo(f"digits/{label}/{i:04d}.png", (2020, 1, 1, 0, 0, 0))
            archive.writestr(entry, png.getvalue())
    write_bytes(path, buffer.getvalue())
