"""Bytes of an image file → pixels. One place for every rule about unusual images.

Rules: the EXIF rotation is applied; transparency is laid over white; 16 bits become 8 by their high
byte; CMYK and palettes become RGB; of an animation the first frame is taken. A JPEG is decoded at
the smallest of the scales 1, 1/2, 1/4, 1/8 (for which libjpeg has vector code) that leaves 1.5
times the wanted size, then resized, like the rest, with antialiasing."""

from __future__ import annotations

import io
import warnings
import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import ExifTags, Image, UnidentifiedImageError

from hpc_mlp.data.encode import encode_jpeg
from hpc_mlp.data.limits import MAX_PIXELS
from hpc_mlp.data.png import packed_rows
from hpc_mlp.errors import RejectError

# [H, W, C]
Pixels = npt.NDArray[np.uint8]

# Formats are named, so that hostile bytes reach no decoder that starts programs (EPS) or is seldom
# tested. Pillow knows these without importing further modules.
_USUAL = ("PNG", "JPEG", "GIF", "BMP", "PPM")
_OTHER = ("WEBP", "TIFF", "DIB", "MPO", "JPEG2000", "AVIF")
SUFFIXES = {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tiff", "JPEG2000": "jp2", "DIB": "bmp"}
# A triangle as wide as the scale: antialiased.
FILTER = Image.Resampling.BILINEAR
# First a quick box filter by a whole number, as far as it goes.
GAP = 1.0
_MIN_BYTES = 64 << 20
# Larger images (in pixels) are watched and converted in bands; smaller ones take little memory
# anyhow.
_LARGE, _BAND = 1 << 22, 1 << 20
# Bytes for each pixel that a decoder takes at its peak, the image itself included (measured with 67
# megapixels); others than these take 4. A progressive JPEG keeps all coefficients, of 2 bytes.
_PER_PIXEL = {"WEBP": 17, "JPEG2000": 21, "AVIF": 17, "PPM": 11, "TIFF": 8, "GIF": 5}

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Our own limit is checked before any pixel is decoded.
Image.MAX_IMAGE_PIXELS = None
# Pillow warns about odd metadata; the pixels are what counts. Once here and for the whole process:
# decoding runs in threads, between which `warnings.catch_warnings` is not safe.
warnings.filterwarnings("ignore", module=r"PIL\.")


@dataclass(frozen=True)
class ImageSpec:
    height: int
    width: int
    # 3: RGB, 1: gray
    channels: int
    max_pixels: int = MAX_PIXELS

    @property
    def max_bytes(self) -> int:
        """So much may one image take in memory while it is decoded, its file included: 436 MB by
        default, so that a process of ours, which takes 60 MB for itself, stays below 512 MB."""
        return max(_MIN_BYTES, self.max_pixels * 13 // 2)


def decode_image(data: bytes, spec: ImageSpec) -> Pixels:
    """uint8 [height, width, channels]. RejectError, with the reason, where it is none."""
    if data[:2] == b"\xff\xd8" and (pixels := _decode_jpeg(data, spec)) is not None:
        return pixels
    if (plain := packed_rows(data)) and (pixels := _decode_png(data, *plain, spec)) is not None:
        return pixels
    if not data:
        raise RejectError("empty")
    if data.startswith(b"version https://git-lfs"):
        raise RejectError("a Git LFS pointer, and no image: git lfs pull fetches it")
    try:
        return _decode_any(data, spec)
    except RejectError:
        raise
    except UnidentifiedImageError:
        raise RejectError("not an image") from None
    # Hostile bytes make decoders raise anything, from struct.error to KeyError.
    except Exception as error:
        raise RejectError(f"damaged: {str(error) or type(error).__name__}"[:200]) from None


def decode_whole(data: bytes, largest: int, max_pixels: int) -> Pixels:
    """uint8 [H, W, 3] in the image's proportions, each at most `largest`. RejectError."""
    try:
        with _open(data) as image:
            width, height = image.size
            turned = _orientation_of(image) >= 5
    except Exception as error:
        raise RejectError(f"not an image: {str(error) or type(error).__name__}"[:200]) from None
    if turned:
        width, height = height, width
    scale = min(1.0, largest / max(width, height, 1))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    return decode_image(data, ImageSpec(*size, 3, max_pixels))


def training_pixels(data: bytes, spec: ImageSpec, encoding: str) -> Pixels:
    """The pixels that training sees of this image file on a dataset of `encoding`: uint8 [height,
    width, channels]. Only JPEG changes pixels on their way into a shard. RejectError as
    `decode_image`."""
    pixels = decode_image(data, spec)
    return decode_image(encode_jpeg(pixels), spec) if encoding == "jpeg" else pixels


def image_suffix(data: bytes) -> str:
    """The customary suffix of an image file with these bytes, which `decode_image` has accepted."""
    if data[:2] == b"\xff\xd8":
        return "jpg"
    with _open(data) as image:
        kind = image.format or "PNG"
    return SUFFIXES.get(kind, kind.lower())


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=_USUAL)
    except UnidentifiedImageError:
        Image.init()
        return Image.open(io.BytesIO(data), formats=[kind for kind in _OTHER if kind in Image.OPEN])


def _decode_jpeg(data: bytes, spec: ImageSpec) -> Pixels | None:
    """The quick way, for the usual JPEG; None where Pillow should have a look."""
    turn = _orientation(data) if data.find(b"Exif\0\0", 0, 4096) >= 0 else 1
    width, height = _wanted(turn, spec)
    try:
        full_height, full_width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        _check_size(full_width, full_height, spec)
        if full_width * full_height > _LARGE:
            with _open(data) as image:
                _check_memory(image, len(data), spec)
        if colorspace not in ("YCbCr", "RGB", "Gray"):
            return None
        gray = spec.channels == 1 or colorspace == "Gray"
        room = min(full_height // _margin(height), full_width // _margin(width))
        scale = next((scale for scale in (8, 4, 2) if scale <= room), 1)
        raw = simplejpeg.decode_jpeg(
            data,
            "GRAY" if gray else "RGB",
            min_height=-(-full_height // scale),
            min_width=-(-full_width // scale),
        )
    # Damaged, or a kind of JPEG that it does not know: Pillow says which.
    except ValueError:
        return None
    image = Image.frombytes("L" if gray else "RGB", (raw.shape[1], raw.shape[0]), raw)
    return _finish(image.resize((width, height), FILTER, reducing_gap=GAP), turn, spec)


def _decode_png(
    data: bytes, shape: tuple[int, int, int], rows: bytes, spec: ImageSpec
) -> Pixels | None:
    """The quick way, for the usual PNG: Pillow's decoder without its reader of files, which on 28 ×
    28 pixels takes 60 % of the time. None where the whole of Pillow should have a look."""
    height, width, channels = shape
    if not 0 < height * width <= min(_LARGE, spec.max_pixels):
        return None
    if zlib.crc32(data[12:29]) != int.from_bytes(data[29:33], "big"):
        return None
    mode = "L" if channels == 1 else "RGB"
    try:
        image = Image.frombytes(mode, (width, height), rows, "zip", mode, 0)
    except ValueError:
        return None
    return _finish(_resized(image, (spec.width, spec.height)), 1, spec)


def _decode_any(data: bytes, spec: ImageSpec) -> Pixels:
    with _open(data) as image:
        _check_size(*image.size, spec)
        _check_memory(image, len(data), spec)
        if image.format == "JPEG":
            width, height = _wanted(_orientation_of(image), spec)
            image.draft(None, (_margin(width), _margin(height)))
        image.load()
        # Only now: Pillow itself turns a TIFF when it loads it.
        turn = _orientation_of(image)
        return _finish(_resized(image, _wanted(turn, spec)), turn, spec)


def _resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """As L or RGB of this (width, height). A large image that must be converted first is so in
    bands, each reduced at once: the same pixels as in one piece, without a second large image
    beside the first."""
    width, height = image.size
    across, down = (
        max(1, int(length / wanted / GAP)) for length, wanted in zip(image.size, size, strict=True)
    )
    if width * height <= _LARGE or across * down == 1 or _is_plain(image):
        plain = _to_8_bits(image)
        return plain if plain.size == size else plain.resize(size, FILTER, reducing_gap=GAP)
    rows = max(1, _BAND // (width * down)) * down
    reduced: Image.Image | None = None
    for top in range(0, height, rows):
        band = _to_8_bits(image.crop((0, top, width, min(height, top + rows)))).reduce(
            (across, down)
        )
        reduced = reduced or Image.new(band.mode, (-(-width // across), -(-height // down)))
        reduced.paste(band, (0, top // down))
    assert reduced is not None
    return reduced.resize(size, FILTER, box=(0, 0, width / across, height / down))


def _wanted(turn: int, spec: ImageSpec) -> tuple[int, int]:
    """Width and height before the EXIF rotation."""
    return (spec.width, spec.height) if turn < 5 else (spec.height, spec.width)


def _margin(length: int) -> int:
    return -(-length * 3 // 2)


def _check_size(width: int, height: int, spec: ImageSpec) -> None:
    if width * height > spec.max_pixels:
        raise RejectError(f"{width}×{height} pixels are more than --max-pixels {spec.max_pixels}")


def _check_memory(image: Image.Image, file_bytes: int, spec: ImageSpec) -> None:
    """RejectError for an image whose pixels and file would take more memory than allowed. `image`
    is not loaded yet."""
    if image.format == "JPEG":
        weight = 2 * len(image.getbands()) if image.info.get("progressive") else 1
    else:
        weight = _PER_PIXEL.get(image.format or "", 4)
    needed = file_bytes + image.width * image.height * weight
    if needed > spec.max_bytes:
        raise RejectError(
            f"{image.width}×{image.height} pixels of {image.format} take {needed / 1e6:,.0f} MB to "
            f"decode; with --max-pixels {spec.max_pixels} at most {spec.max_bytes / 1e6:,.0f} MB"
        )


def _orientation(data: bytes) -> int:
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            return _orientation_of(image)
    # An unreadable EXIF block says nothing about the pixels.
    except Exception:
        return 1


def _orientation_of(image: Image.Image) -> int:
    try:
        turn = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:
        return 1
    return turn if turn in _TURNS else 1


def _is_plain(image: Image.Image) -> bool:
    return image.mode in ("L", "RGB") and "transparency" not in image.info


def _to_8_bits(image: Image.Image) -> Image.Image:
    """As L or RGB."""
    mode = image.mode
    if _is_plain(image):
        return image
    if mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if mode in ("I", "F"):
        raise RejectError(
            f"{'32-bit integers' if mode == 'I' else 'floats'} as pixels have no agreed range"
        )
    if mode == "1":
        return image.convert("L")
    if mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _finish(image: Image.Image, turn: int, spec: ImageSpec) -> Pixels:
    if turn in _TURNS:
        image = image.transpose(_TURNS[turn])
    mode = "RGB" if spec.channels == 3 else "L"
    if image.mode != mode:
        image = image.convert(mode)
    return np.asarray(image).reshape(spec.height, spec.width, spec.channels)
