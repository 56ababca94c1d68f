"""Somebody else's shards on the page: their images reach no decoder that starts programs, and none
without limits."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
import zlib
from pathlib import Path

import pytest
from support.archives import tar_members
from support.page import digits, write_run, write_shards
from support.process import Cli

from hpc_mlp.data.manifest import Manifest
from hpc_mlp.errors import UserError
from hpc_mlp.files.digest import file_sha256
from hpc_mlp.reporting.gallery import class_samples, read_samples

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"


def png_bomb() -> bytes:
    """30,000 × 30,000 pixels, by its header: who believes it needs 3 GB."""
    head = b"IHDR" + (30_000).to_bytes(4, "big") * 2 + bytes((8, 2, 0, 0, 0))
    chunk = (13).to_bytes(4, "big") + head + zlib.crc32(head).to_bytes(4, "big")
    return b"\x89PNG\r\n\x1a\n" + chunk + b"\0\0\0\0IDAT" + zlib.crc32(b"IDAT").to_bytes(4, "big")


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is there as soon as somebody starts Ghostscript."""
    marker, stand_in = tmp_path / "gs-was-started", tmp_path / "bin" / "gs"
    stand_in.parent.mkdir()
    stand_in.write_text(f"#!/bin/sh\ntouch {marker}\n")
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", f"{stand_in.parent}:{os.environ['PATH']}")
    assert shutil.which("gs") == str(stand_in)
    return marker


@pytest.mark.parametrize("encoding", ["png", "original", "npy"])
@pytest.mark.parametrize("image", [EPS, png_bomb()], ids=["eps", "bomb"])
def test_an_image_that_is_none_is_an_error(
    tmp_path: Path, started: Path, encoding: str, image: bytes
) -> None:
    write_shards(tmp_path / "shards", digits(100))
    manifest = with_images(tmp_path / "shards", image, encoding)
    with pytest.raises(UserError, match="cannot be decoded"):
        class_samples(tmp_path / "shards", manifest, each=2, most=20)
    with pytest.raises(UserError, match="cannot be decoded"):
        read_samples(tmp_path / "shards", manifest, ("test",), [0])
    assert not started.exists()


@pytest.mark.slow
def test_the_page_goes_without_it(tmp_path: Path, cli: Cli, started: Path) -> None:
    write_shards(tmp_path / "shards", digits(100))
    write_run(tmp_path / "runs", tmp_path / "shards", "baseline", 0, digits(100))
    with_images(tmp_path / "shards", EPS, "original")
    done = cli("report", tmp_path / "runs")
    assert done.exit_code == 0, done.output
    page = (tmp_path / "runs" / "report.html").read_text()
    assert (
        "The images cannot be shown" in page
        and "No sample images" in page
        and "cannot be decoded" in page
    )
    assert not started.exists()


def with_images(shards: Path, image: bytes, encoding: str) -> Manifest:
    """The shards with `image` in place of theirs, and a manifest that agrees with it."""
    manifest = json.loads((shards / "manifest.json").read_text())
    manifest["encoding"] = encoding
    for split in manifest["splits"].values():
        for shard in split["shards"]:
            path = shards / shard["name"]
            _replace_images(path, image)
            shard |= {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
    (shards / "manifest.json").write_text(json.dumps(manifest))
    return Manifest.load(shards)


def _replace_images(path: Path, image: bytes) -> None:
    members = tar_members(path)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members.items():
            content = image if name.endswith(".png") else data
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
