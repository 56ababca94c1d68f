"""Unusual images, each by its rule; encodings; how near the quick JPEG decoding is to the full
one."""

from __future__ import annotations

import io
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_image
from support.archives import (
    converted,
    encoded,
    make_zip,
    picture,
    pixels,
    rejects,
    samples,
    tar_members,
    two_classes,
)
from support.process import command, environment

from hpc_mlp.data import decode
from hpc_mlp.data.decode import ImageSpec, decode_image
from hpc_mlp.errors import RejectError

RGB, GRAY = ImageSpec(20, 24, 3), ImageSpec(20, 24, 1)


def same(data: bytes, expected: Image.Image, tolerance: int = 0, spec: ImageSpec = RGB) -> None:
    found = decode_image(data, spec)
    wanted = np.asarray(expected.convert("RGB" if spec.channels == 3 else "L")).reshape(found.shape)
    assert np.abs(found.astype(int) - wanted).max() <= tolerance


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000"])
def test_formats_without_loss_give_their_pixels(kind: str) -> None:
    image = picture(1)
    options = {"WEBP": {"lossless": True}, "JPEG2000": {"irreversible": False}}.get(kind, {})
    same(
        encoded(image.quantize(64) if kind == "GIF" else image, kind, **options),
        image.quantize(64) if kind == "GIF" else image,
    )


def test_gray_becomes_rgb_and_rgb_becomes_gray() -> None:
    image = picture(2)
    same(encoded(image.convert("L")), image.convert("L"))
    same(encoded(image), image.convert("L"), spec=GRAY)
    same(encoded(image, "JPEG", quality=100), image.convert("L"), 8, GRAY)
    same(encoded(image.convert("L"), "JPEG", quality=100), image.convert("L"), 8)


def test_one_and_sixteen_bits() -> None:
    image = picture(3).convert("1")
    same(encoded(image), image.convert("L"))
    deep = (np.asarray(picture(3, mode="L")).astype(np.uint16) << 8) + 77
    same(encoded(Image.fromarray(deep)), picture(3, mode="L"))
    same(encoded(Image.fromarray(deep), "TIFF"), picture(3, mode="L"))


def test_pixels_without_an_agreed_range_are_rejected() -> None:
    for values in (np.zeros((4, 4), np.float32), np.zeros((4, 4), np.int32)):
        with pytest.raises(RejectError, match="no agreed range"):
            decode_image(encoded(Image.fromarray(values), "TIFF"), RGB)


def test_transparency_is_laid_over_white() -> None:
    image = picture(4)
    clear = image.copy()
    clear.putalpha(0)
    white = Image.new("RGB", image.size, "white")
    same(encoded(clear), white)
    same(encoded(clear, "WEBP", lossless=True, exact=True), white)
    same(encoded(image.convert("LA")), image.convert("L"))
    half = image.copy()
    half.putalpha(128)
    same(encoded(half), Image.blend(white, image, 128 / 255), 1)
    palette = image.quantize(16)
    colours = palette.getpalette() or []
    see_through = [
        (255, 255, 255) if i == 3 else tuple(colours[3 * i : 3 * i + 3]) for i in range(16)
    ]
    expected = Image.fromarray(np.array(see_through, np.uint8)[np.asarray(palette)])
    same(encoded(palette, "PNG", transparency=3), expected)


def test_cmyk_jpeg() -> None:
    image = picture(5)
    same(encoded(image.convert("CMYK"), "JPEG", quality=100, subsampling=0), image, 6)


def test_ycck_jpeg() -> None:
    """The same bytes with Adobe's marker: inverted, and with its colours as YCC."""
    image = picture(6).convert("YCbCr")
    planes = [*image.split(), Image.new("L", image.size, 0)]
    plain = encoded(Image.merge("CMYK", planes), "JPEG", quality=100, subsampling=0)
    # Pillow writes CMYK with an Adobe marker whose last byte is the transform: 0 is CMYK, 2 is
    # YCCK.
    at = plain.index(b"\xff\xee") + 4
    assert plain[at : at + 5] == b"Adobe"
    ycck = plain[: at + 11] + b"\2" + plain[at + 12 :]
    expected = Image.open(io.BytesIO(ycck)).convert("RGB")
    same(ycck, expected, 0)
    assert np.asarray(expected).std() > 10


def test_the_first_frame_of_an_animation_is_taken() -> None:
    first, second = picture(7).quantize(32), picture(8).quantize(32)
    same(encoded(first, "GIF", save_all=True, append_images=[second]), first)
    frames = [f.convert("RGB") for f in (first, second)]
    same(encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True), first)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_rotations(kind: str, turn: int) -> None:
    image = picture(9, (24, 20) if turn < 5 else (20, 24))
    exif = Image.Exif()
    exif[0x0112] = turn
    upright = {
        1: image,
        2: image.transpose(Image.Transpose(0)),
        3: image.transpose(Image.Transpose(3)),
        4: image.transpose(Image.Transpose(1)),
        5: image.transpose(Image.Transpose(5)),
        6: image.transpose(Image.Transpose(4)),
        7: image.transpose(Image.Transpose(6)),
        8: image.transpose(Image.Transpose(2)),
    }[turn]
    lossless: dict[str, Any] = {
        "JPEG": {"quality": 100, "subsampling": 0},
        "WEBP": {"lossless": True},
    }
    options = lossless.get(kind, {})
    same(encoded(image, kind, exif=exif, **options), upright, 8 if kind == "JPEG" else 0)


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (3000, 1), (2000, 1500)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_odd_sizes(size: tuple[int, int], kind: str) -> None:
    pixel = decode_image(encoded(Image.new("RGB", size, (10, 200, 90)), kind, quality=100), RGB)
    assert pixel.shape == (20, 24, 3)
    assert np.abs(pixel.reshape(-1, 3).astype(int) - (10, 200, 90)).max() <= 4


def test_more_pixels_than_allowed_are_rejected_before_they_are_decoded() -> None:
    for kind in ("PNG", "JPEG", "GIF"):
        with pytest.raises(RejectError, match="--max-pixels"):
            decode_image(
                encoded(Image.new("L", (200, 300)), kind), ImageSpec(8, 8, 3, max_pixels=59_999)
            )
        decode_image(
            encoded(Image.new("L", (200, 300)), kind), ImageSpec(8, 8, 3, max_pixels=60_000)
        )


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damaged_bytes_are_decoded_or_rejected_and_nothing_else(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM"]))
    content = bytearray(encoded(picture(1, (40, 30)), kind))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(1, len(content)))
    try:
        assert decode_image(bytes(content[:cut]), RGB).shape == (20, 24, 3)
    except RejectError as error:
        assert str(error)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_the_quick_way_of_plain_png_is_pillows(data: st.DataObject) -> None:
    """Whole or damaged: the same pixels, or rejected for the same reason."""
    size = data.draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    mode = data.draw(st.sampled_from(("L", "RGB", "P", "LA", "I;16", "1")))
    image = picture(data.draw(st.integers(0, 9)), size).convert("L" if mode == "I;16" else mode)
    png = bytearray(encoded(image.convert(mode), compress_level=data.draw(st.integers(0, 9))))
    for place in data.draw(st.lists(st.integers(0, len(png) - 1), max_size=2)):
        png[place] ^= 1 << data.draw(st.integers(0, 7))
    content = bytes(png[: data.draw(st.integers(0, len(png))) or None])
    with pytest.MonkeyPatch.context() as without:
        without.setattr(decode, "packed_rows", lambda data: None)
        expected = outcome(content)
    assert outcome(content) == expected


def outcome(data: bytes) -> bytes | str:
    try:
        return decode_image(data, RGB).tobytes()
    except RejectError as error:
        return str(error)


@pytest.mark.parametrize("name", ["china.jpg", "flower.jpg"])
@pytest.mark.parametrize("scale", [1, 2, 4, 8])
def test_quick_jpeg_decoding_is_near_to_the_full_one(name: str, scale: int) -> None:
    """Mean absolute difference at most 1.5 of 255 on photographs, at every scale that libjpeg
    uses."""
    # 640×427
    photograph = Image.fromarray(load_sample_image(name))
    data = encoded(photograph.resize((100 * scale, 97 * scale)), "JPEG", quality=90)
    full = Image.open(io.BytesIO(data)).resize((64, 64), Image.Resampling.BILINEAR)
    quick = decode_image(data, ImageSpec(64, 64, 3))
    assert np.abs(quick.astype(int) - np.asarray(full)).mean() <= 1.5


# ── encodings
# ───────────────────────────────────────────────────────────────────────────────────────────


def test_every_lossless_encoding_stores_the_same_pixels(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", two_classes(8))
    plain = converted(archive, tmp_path / "png", "--size", 16)
    small = converted(archive, tmp_path / "small", "--size", 16, "--compress")
    raw = converted(archive, tmp_path / "npy", "--size", 16, "--encoding", "npy")
    expected = pixels(tmp_path / "png", "train")
    assert (pixels(tmp_path / "small", "train") == expected).all()
    assert (np.stack([s["npy"] for s in samples(tmp_path / "npy", "train")]) == expected).all()
    assert (
        plain.mean == small.mean == raw.mean and len({plain.digest, small.digest, raw.digest}) == 3
    )


def test_jpeg_statistics_are_those_of_the_stored_pixels(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", two_classes(8))
    manifest = converted(archive, tmp_path / "out", "--size", 32, "--encoding", "jpeg")
    stored = np.stack([s["jpg"] for s in samples(tmp_path / "out", "train")])
    assert np.allclose(manifest.mean, stored.reshape(-1, 3).mean(0) / 255, atol=1e-9, rtol=0)


def test_original_keeps_the_bytes(tmp_path: Path) -> None:
    kinds = [("jpg", "JPEG"), ("png", "PNG"), ("webp", "WEBP")] * 4
    files = {
        f"{c}/{i}.{suffix}": encoded(picture(i + 50 * (c == "a")), kind)
        for c in "ab"
        for i, (suffix, kind) in enumerate(kinds)
    }
    archive = make_zip(tmp_path / "a.zip", files)
    manifest = converted(archive, tmp_path / "out", "--size", 8, "--encoding", "original")
    stored: dict[str, bytes] = {}
    for path in (tmp_path / "out").glob("*.tar"):
        stored |= tar_members(path)
    images = {name: data for name, data in stored.items() if not name.endswith(".cls")}
    assert sorted(images.values()) == sorted(files.values())
    assert {name.rsplit(".", 1)[1] for name in images} == {"jpg", "png", "webp"}
    assert manifest.encoding == "original"


def test_a_wrong_suffix_does_not_matter(tmp_path: Path) -> None:
    files = two_classes(4) | {"cat/really.jpg": encoded(picture(99))}
    converted(
        make_zip(tmp_path / "a.zip", files, zipfile.ZIP_STORED), tmp_path / "out", "--size", 8
    )
    assert not rejects(tmp_path / "out")


def test_odd_metadata_is_no_warning_to_the_user(tmp_path: Path) -> None:
    """Pillow warns about such EXIF blocks; the images are whole."""
    exif = Image.Exif()
    exif[0x010E] = "a description that is cut off in the file"
    block = exif.tobytes()[:-20]
    files = {
        f"{c}/{i}.jpg": encoded(picture(i), "JPEG", exif=block) for c in "ab" for i in range(3)
    }
    archive = make_zip(tmp_path / "a.zip", files)
    words = command("convert", archive, tmp_path / "out", "--size", 8)
    done = subprocess.run(words, capture_output=True, text=True, env=environment())
    assert done.returncode == 0 and "arning" not in done.stderr
    with (
        pytest.warns(UserWarning, match="Truncated"),
        Image.open(io.BytesIO(files["a/0.jpg"])) as image,
    ):
        image.getexif()


@pytest.mark.parametrize(
    "mode", ["RGBA", "LA", "P", "see-through", "1", "I;16", "CMYK", "RGB", "L"]
)
def test_large_images_are_converted_in_bands_to_the_same_pixels(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = (157, 203)
    image = Image.fromarray(np.random.default_rng(3).integers(0, 256, (*size[::-1], 4), np.uint8))
    options: dict[str, object] = {}
    if mode in ("P", "see-through"):
        image = image.convert("RGB").quantize(64)
        options = {"transparency": 3} if mode == "see-through" else {}
    elif mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) << 8)
    else:
        image = image.convert(mode)
    data = encoded(image, "TIFF" if mode == "CMYK" else "PNG", **options)
    for spec in (RGB, GRAY, ImageSpec(203, 157, 3), ImageSpec(7, 150, 3), ImageSpec(100, 3, 1)):
        whole = decode_image(data, spec)
        with monkeypatch.context() as patched:
            patched.setattr("hpc_mlp.data.decode._LARGE", 1)
            patched.setattr("hpc_mlp.data.decode._BAND", 2000)
            assert (decode_image(data, spec) == whole).all()


def test_an_image_that_takes_too_much_memory_is_rejected_before_it_is_decoded() -> None:
    """What 8 bytes a pixel or more take to decode has a smaller limit than --max-pixels."""
    data = encoded(Image.new("RGB", (5000, 5000)), "WEBP", lossless=True, method=0)
    with pytest.raises(
        RejectError, match=r"5000×5000 pixels of WEBP take 425 MB to decode; with --max-pixels"
    ):
        decode_image(data, ImageSpec(8, 8, 3, max_pixels=60_000_000))
    assert decode_image(data, ImageSpec(8, 8, 3)).shape == (8, 8, 3)
