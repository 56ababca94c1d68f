"""Archives of small pictures, `convert` on them, and what came out."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import webdataset
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from PIL import Image

from hpc_mlp.cli import main
from hpc_mlp.data.manifest import Manifest
from hpc_mlp.data.shards import check_shard


def picture(seed: int, size: tuple[int, int] = (24, 20), mode: str = "RGB") -> Image.Image:
    """Smooth noise, so that JPEG and resizing keep it recognisable. `size` is (width, height)."""
    noise = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).convert(mode)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def make_zip(path: Path, files: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def make_tar(path: Path, files: Mapping[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def two_classes(count: int = 10, prefix: str = "") -> dict[str, bytes]:
    return {
        f"{prefix}{name}/{i}.png": encoded(picture(seed * 1000 + i))
        for seed, name in enumerate(("cat", "dog"), 1)
        for i in range(count)
    }


def convert(*arguments: object) -> Result:
    """In this process and with one worker, unless the arguments say otherwise."""
    words = [str(a) for a in arguments]
    if "--workers" not in words:
        words += ["--workers", "1"]
    return CliRunner().invoke(main, ["convert", *words], catch_exceptions=False)


def converted(*arguments: object) -> Manifest:
    result = convert(*arguments)
    assert result.exit_code == 0, result.output
    folder = Path(str([a for a in arguments if isinstance(a, Path)][-1]))
    manifest = Manifest.load(folder)
    for split in manifest.splits.values():
        for shard in split.shards:
            check_shard(folder, shard)
    return manifest


def samples(folder: Path, split: str) -> list[dict[str, Any]]:
    """Through webdataset itself."""
    shards = [str(path) for path in sorted(folder.glob(f"{split}-*.tar"))]
    if not shards:
        return []
    data = webdataset.WebDataset(shards, shardshuffle=False, empty_check=False).decode("rgb8")
    return list(data)


def tar_members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {member.name: file.read() for member in tar if (file := tar.extractfile(member))}


def pixels(folder: Path, split: str) -> NDArray[np.uint8]:
    return np.stack([s["png"] for s in samples(folder, split)])


def rejects(folder: Path) -> dict[str, str]:
    lines = (folder / "rejects.jsonl").read_text().splitlines()
    return {line["name"]: line["reason"] for line in map(json.loads, lines)}


def refused(result: Result, *words: str, code: int = 2) -> None:
    assert result.exit_code == code, result.output
    assert result.stderr.startswith("hpc-mlp: ") and result.stderr.count("\n") == 1, result.stderr
    assert "Traceback" not in result.output
    for word in words:
        assert word in result.stderr


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
