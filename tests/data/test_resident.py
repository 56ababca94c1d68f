"""Resident data: pixels, order, normalisation, and what is refused."""

from __future__ import annotations

import ast
import io
import tracemalloc
import zipfile
import zlib
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.shards import random_arrays, write_shards

from hpc_mlp.cli.data import convert
from hpc_mlp.data.manifest import Manifest, Split, resident_bytes
from hpc_mlp.data.normalise import normaliser
from hpc_mlp.data.npy import decode_npy, encode_npy
from hpc_mlp.data.png import decode_plain
from hpc_mlp.data.resident import load_resident
from hpc_mlp.data.shards import decode, index_shard, open_shard
from hpc_mlp.errors import UserError

CPU = torch.device("cpu")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("encoding", ["png", "npy"])
def test_lossless_encodings_come_back_in_shard_order(
    tmp_path: Path, encoding: str, channels: int
) -> None:
    images, labels = random_arrays(23, size=9, channels=channels)
    manifest = write_shards(tmp_path, {"train": (images, labels)}, encoding=encoding, shard_size=7)
    split = load_resident(tmp_path, manifest, "train", CPU)
    assert len(split) == 23
    assert split.images.dtype == torch.uint8 and split.labels.dtype == torch.int64
    assert np.array_equal(split.images.numpy(), images.transpose(0, 3, 1, 2))
    assert np.array_equal(split.labels.numpy(), labels)
    assert resident_bytes(manifest) == images.size


def test_jpeg_comes_back_nearly(tmp_path: Path) -> None:
    ramp = (
        np.arange(16, dtype=np.uint8)[None, :, None, None]
        * np.ones((5, 1, 16, 3), dtype=np.uint8)
        * 15
    )
    manifest = write_shards(tmp_path, {"train": (ramp, np.zeros(5, np.int64))}, encoding="jpeg")
    split = load_resident(tmp_path, manifest, "train", CPU)
    assert np.abs(split.images.numpy().transpose(0, 2, 3, 1).astype(int) - ramp).mean() < 2


def png_chunk(name: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big")


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 4),
    st.sampled_from([1, 3]),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(0, 99),
)
def test_png_of_any_filter_decodes_as_pillow_does(
    kind: int, channels: int, height: int, width: int, seed: int
) -> None:
    """Files written by hand with one filter for all rows, which Pillow itself does not write."""
    rows = np.random.default_rng(seed).integers(
        0, 256, (height, 1 + width * channels), dtype=np.uint8
    )
    rows[:, 0] = kind
    head = (
        width.to_bytes(4, "big")
        + height.to_bytes(4, "big")
        + bytes((8, 2 if channels == 3 else 0, 0, 0, 0))
    )
    packed = zlib.compress(rows.tobytes())
    half = len(packed) // 2
    chunks = {
        b"IHDR": [head],
        b"tEXt": [b"a\0b"],
        b"IDAT": [packed[:half], packed[half:]],
        b"IEND": [b""],
    }
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        png_chunk(k, body) for k, bodies in chunks.items() for body in bodies
    )
    nothing = Split(num_images=0, class_counts=(0,), shards=())
    manifest = Manifest(
        digest="",
        classes=("a",),
        image_size=(height, width),
        channels=3 if channels == 3 else 1,
        encoding="png",
        mean=(0.0,) * channels,
        std=(1.0,) * channels,
        splits=dict.fromkeys(("train", "val", "test"), nothing),
        layout="",
        source={},
        settings={},
    )
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(image).reshape(height, width, channels)
    assert np.array_equal(decode(data, manifest, "here"), expected)


@pytest.mark.parametrize("extra", [-1, 1, 1 << 27])
def test_a_png_with_other_pixels_than_it_says_is_refused(extra: int) -> None:
    """And one that would inflate to 128 MB is not inflated."""
    head = (8).to_bytes(4, "big") * 2 + bytes((8, 0, 0, 0, 0))
    packer = zlib.compressobj(1)
    rows = packer.compress(bytes(8 * 9 + min(extra, 1))) + b"".join(
        packer.compress(bytes(1 << 20)) for _ in range(extra >> 20)
    )
    chunks = {b"IHDR": head, b"IDAT": rows + packer.flush(), b"IEND": b""}
    data = b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(kind, body) for kind, body in chunks.items())
    tracemalloc.start()
    with pytest.raises(ValueError, match="more or fewer pixels"):
        decode_plain(data, 8, 8, 1)
    assert tracemalloc.get_traced_memory()[1] < 30e6
    tracemalloc.stop()


@pytest.mark.parametrize("encoding", ["png", "jpeg", "npy", "original"])
def test_what_convert_wrote_comes_back_with_its_statistics(tmp_path: Path, encoding: str) -> None:
    """Also on the photos of `original`, which are resized only now."""
    rng = np.random.default_rng(0)
    archive = tmp_path / "photos.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for i in range(30):
            coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
            for kind in ("jpeg", "png"):
                content = io.BytesIO()
                coarse.resize((50 + i, 40), Image.Resampling.BICUBIC).save(content, kind)
                file.writestr(f"{'ab'[i % 2]}/{i}.{kind}", content.getvalue())
    done = CliRunner().invoke(
        convert, [str(archive), str(tmp_path / "out"), "--size", "16x20", "--encoding", encoding]
    )
    assert done.exit_code == 0, done.output
    manifest = Manifest.load(tmp_path / "out")
    split = load_resident(tmp_path / "out", manifest, "train", CPU)
    assert split.images.shape[1:] == (3, 16, 20)
    pixels = split.images.numpy() / 255.0
    assert np.allclose(pixels.mean(axis=(0, 2, 3)), manifest.mean, atol=1e-9)
    assert np.allclose(pixels.std(axis=(0, 2, 3)), manifest.std, atol=1e-9)
    assert tuple(split.labels.bincount().tolist()) == manifest.splits["train"].class_counts


def test_an_npy_that_convert_writes_is_read_without_a_parser(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two threads in Python's parser at once can fail (CPython 3.11). Other headers still do."""
    pixels = random_arrays(1)[0][0]
    shape = pixels.shape
    fortran = io.BytesIO()
    np.save(fortran, np.asfortranarray(pixels))
    assert np.array_equal(decode_npy(fortran.getvalue(), shape), pixels)
    assert decode_npy(encode_npy(pixels), (1, 1, 1)).shape == shape
    for damaged in (encode_npy(pixels)[:-1], encode_npy(pixels) + b"\0"):
        with pytest.raises(ValueError, match="reshape"):
            decode_npy(damaged, shape)
    monkeypatch.setattr(ast, "parse", None)
    assert np.array_equal(decode_npy(encode_npy(pixels), shape), pixels)


def test_normaliser_gives_zero_mean_and_unit_deviation(tmp_path: Path) -> None:
    images, labels = random_arrays(50)
    # A channel without any spread is only centred.
    images[..., 1] = 77
    manifest = write_shards(tmp_path, {"train": (images, labels)})
    split = load_resident(tmp_path, manifest, "train", CPU)
    pixels = normaliser(manifest, CPU)(split.images)
    assert pixels.dtype == torch.float32 and pixels.shape == split.images.shape
    expected = (images / 255.0 - manifest.mean) / np.where(
        np.array(manifest.std) > 1e-7, manifest.std, 1.0
    )
    assert np.allclose(pixels.numpy(), expected.transpose(0, 3, 1, 2), atol=1e-5)
    assert pixels[:, 1].abs().max() < 1e-5
    rows = torch.tensor([3, 3, 0])
    assert torch.equal(split.gather(rows)[0], split.images[rows])


def test_a_flipped_byte_anywhere_is_refused(tmp_path: Path) -> None:
    manifest = write_shards(tmp_path, {"train": random_arrays(20)})
    path = tmp_path / "train-000000.tar"
    whole = path.read_bytes()
    for position in np.random.default_rng(0).integers(0, len(whole), 10):
        damaged = bytearray(whole)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"train-000000\.tar is damaged"):
            load_resident(tmp_path, manifest, "train", CPU)
    path.write_bytes(whole[:-1024])
    with pytest.raises(UserError, match="damaged"):
        load_resident(tmp_path, manifest, "train", CPU)
    path.unlink()
    with pytest.raises(UserError, match="missing"):
        load_resident(tmp_path, manifest, "train", CPU)


@pytest.mark.parametrize("size", [b"-0000001000", b"77777777777", b"zzzzzzzzzzz"])
def test_a_tar_whose_sizes_lie_is_refused(tmp_path: Path, size: bytes) -> None:
    """A negative size led back to the same header, again and again."""
    manifest = write_shards(tmp_path, {"train": random_arrays(4)})
    data = bytearray((tmp_path / "train-000000.tar").read_bytes())
    data[124:135] = size
    with pytest.raises(UserError, match=r"train-000000\.tar cannot be used"):
        index_shard(bytes(data), manifest.split("train").shards[0], 3)


def test_unverified_damage_is_never_a_traceback(tmp_path: Path) -> None:
    manifest = write_shards(tmp_path, {"train": random_arrays(4)})
    path = tmp_path / "train-000000.tar"
    whole = path.read_bytes()

    @settings(deadline=None, max_examples=60)
    @given(
        st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255)), max_size=4),
        st.booleans(),
    )
    def damage(changes: list[tuple[int, int]], cut: bool) -> None:
        damaged = bytearray(whole)
        for position, value in changes:
            damaged[position] = value
        path.write_bytes(damaged[: changes[0][0]] if cut and changes else damaged)
        try:
            shard = manifest.split("train").shards[0]
            with closing(open_shard(tmp_path, shard, 3, verify=False)) as opened:
                labels = opened.index.labels
                assert all(opened.image(row, manifest).size for row in range(4))
        except UserError:
            return
        assert len(labels) == 4 and labels.min() >= 0 and labels.max() < 3

    damage()


def test_counts_labels_and_encoding_are_checked(tmp_path: Path) -> None:
    manifest = write_shards(tmp_path, {"train": random_arrays(6)})
    tree = manifest.model_dump()
    tree["splits"]["train"]["shards"][0]["num_images"] = 7
    tree["splits"]["train"]["num_images"] = 7
    tree["splits"]["train"]["class_counts"] = (7, 0, 0)
    with pytest.raises(UserError, match="6 images, the manifest says 7"):
        load_resident(tmp_path, Manifest.model_validate(tree), "train", CPU)
    tree = manifest.model_dump()
    tree["splits"]["train"]["class_counts"] = (6, 0, 0)
    with pytest.raises(UserError, match="do not hold the classes"):
        load_resident(tmp_path, Manifest.model_validate(tree), "train", CPU)
    with pytest.raises(UserError, match="class index below 1"):
        load_resident(tmp_path, manifest.model_copy(update={"classes": ("a",)}), "train", CPU)
    with pytest.raises(UserError, match="Known: png, jpeg, npy"):
        load_resident(tmp_path, manifest.model_copy(update={"encoding": "jxl"}), "train", CPU)
    arrays = write_shards(tmp_path / "npy", {"train": random_arrays(6)}, encoding="npy")
    with pytest.raises(UserError, match="the manifest says uint8"):
        load_resident(
            tmp_path / "npy", arrays.model_copy(update={"image_size": (4, 4)}), "train", CPU
        )
    with pytest.raises(UserError, match="no further split"):
        load_resident(tmp_path, manifest, "further", CPU)
