"""Augmentation of a whole batch on its device, for training only.

Order: flip, rotation, shift and crop as one affine resampling (edges continued outwards); then
brightness, contrast, saturation and hue, with the meaning they have in torchvision; then erasing;
then those of the user's own.
What happens to an image depends on (seed, epoch, step, its place in the global batch) alone:
neither on how the batch is split over processes nor on what was drawn before."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from hpc_mlp.config.sections import AugmentConfig
from hpc_mlp.data.own_augment import Broken, augment_own
from hpc_mlp.machine.device import send
from hpc_mlp.machine.randomness import augmentation_draws

# Name → uniform in [0, 1), one for each image.
Draws = dict[str, NDArray[np.float32]]

# One column of draws each. New ones go to the end, so that old ones stay what they are.
_NAMES = (
    "flip angle shift_x shift_y crop_area crop_aspect crop_x crop_y brightness contrast saturation "
    "hue erase erase_area erase_aspect erase_x erase_y"
).split()

_CROP_ASPECT = 4 / 3
_ERASED_AREA = (0.02, 0.33)
_ERASED_ASPECT = 3.3


def is_active(config: AugmentConfig) -> bool:
    """Whether `augment` would change anything."""
    return config != AugmentConfig()


def augment(
    images: Tensor,
    config: AugmentConfig,
    *,
    seeds: Sequence[int],
    epoch: int,
    step: int,
    positions: slice | Tensor,
    broken: Broken | None = None,
) -> Tensor:
    """uint8, or float32 in [0, 1], [S·B, C, H, W] → float32 [S·B, C, H, W] in [0, 1]: B images for
    each of the seeds.

    `positions` (a slice without step, or int64 [B]): the images' places in each's global batch.
    `broken`: as of `augment_own`."""
    pixels = images / 255 if images.dtype == torch.uint8 else images
    if not is_active(config) or not len(images):
        return pixels
    height, width = images.shape[-2:]
    tables = [
        parameters(config, draw(seed, epoch, step, positions), height, width) for seed in seeds
    ]
    amounts = _Amounts(np.concatenate(tables), pixels.device)
    pixels = move(pixels, config, amounts)
    pixels = recolour(pixels, config, amounts)
    pixels = erase(pixels, amounts.box) if config.erasing > 0 else pixels
    if not config.custom:
        return pixels
    rows = _rows(positions)
    # Each seed's images by themselves: a function may look at its whole batch.
    own = [
        augment_own(
            part, config.custom, seed=seed, epoch=epoch, step=step, rows=rows, broken=broken
        )
        for seed, part in zip(seeds, pixels.chunk(len(seeds)), strict=True)
    ]
    return own[0] if len(own) == 1 else torch.cat(own)


def _rows(positions: slice | Tensor) -> NDArray[np.int64]:
    if isinstance(positions, slice):
        return np.arange(positions.start or 0, positions.stop)
    return positions.cpu().numpy()


class _Amounts:
    """`parameters` on the device: sent in one piece."""

    def __init__(self, table: NDArray[np.float32], device: torch.device) -> None:
        sent = send(torch.from_numpy(table), device)
        self.matrix = sent[:, :6].view(-1, 2, 3)
        self.flipped = sent[:, 6].view(-1, 1, 1, 1) > 0
        self.brightness, self.contrast, self.saturation, self.hue = (
            sent[:, 7:11].view(-1, 4, 1, 1, 1).unbind(1)
        )
        self.box = sent[:, 11:]


def draw(seed: int, epoch: int, step: int, positions: slice | Tensor) -> Draws:
    """The random numbers of these images: row i of a table that only (seed, epoch, step) decide."""
    rows = _rows(positions)
    table = augmentation_draws(seed, epoch, step, int(rows.max()) + 1, len(_NAMES))
    return dict(zip(_NAMES, table[rows].T, strict=True))


def parameters(config: AugmentConfig, draws: Draws, height: int, width: int) -> NDArray[np.float32]:
    """float32 [B, 15]: what is done to each image. Computed on the host, where small things are
    quick.

    Columns: the affine matrix (6); flipped or not; the factors of brightness, contrast and
    saturation; turns of hue; the box to erase (first row, first column, rows, columns)."""
    flipped = draws["flip"] < config.horizontal_flip

    def between(name: str, strength: float) -> NDArray[np.float32]:
        return strength * (2 * draws[name] - 1)

    columns = [
        *affine_matrices(config, draws, flipped, height / width).reshape(-1, 6).T,
        flipped,
        1 + between("brightness", config.brightness),
        1 + between("contrast", config.contrast),
        1 + between("saturation", config.saturation),
        between("hue", config.hue),
        *_erased_boxes(config.erasing, draws, height, width),
    ]
    return np.stack(columns, axis=1, dtype=np.float32, casting="unsafe")


def move(pixels: Tensor, config: AugmentConfig, amounts: _Amounts) -> Tensor:
    """Flip, rotate, shift and crop: one resampling for all of them, none for flips alone."""
    if config.rotation or config.shift or config.min_crop < 1:
        grid = F.affine_grid(amounts.matrix, list(pixels.shape), align_corners=False)
        return F.grid_sample(
            pixels, grid, mode="bilinear", padding_mode="border", align_corners=False
        )
    return (
        torch.where(amounts.flipped, pixels.flip(-1), pixels) if config.horizontal_flip else pixels
    )


def affine_matrices(
    config: AugmentConfig, draws: Draws, flipped: NDArray[np.bool_], tallness: float
) -> NDArray[np.float32]:
    """float32 [B, 2, 3]: from places in the output to places in the input, both axes from −1 to 1.

    Seen from the input the image is flipped, turned counter-clockwise, shifted, and cropped; the
    matrices go back the same way. `tallness` is height over width: a turn is one of pixels, not of
    the unit square."""
    angle = np.deg2rad(config.rotation) * (2 * draws["angle"] - 1)
    cos, sin = np.cos(angle), np.sin(angle)
    sign = np.where(flipped, -1.0, 1.0)
    width, height, x, y = _crop_boxes(config.min_crop, draws)
    x = x - 2 * config.shift * (2 * draws["shift_x"] - 1)
    y = y - 2 * config.shift * (2 * draws["shift_y"] - 1)
    turn = np.array([[sign * cos, -sign * sin * tallness], [sin / tallness, cos]]).transpose(
        2, 0, 1
    )
    box = np.array([[width, 0 * x, x], [0 * y, height, y]]).transpose(2, 0, 1)
    return np.ascontiguousarray(turn @ box, dtype=np.float32)


def _crop_boxes(min_crop: float, draws: Draws) -> tuple[NDArray[np.float32], ...]:
    """Width, height and centre of a box within the image, as parts of it (centre: −1 to 1).

    Its area is uniform in [min_crop, 1], its aspect log-uniform in as much of [3/4, 4/3] as fits.
    """
    area = 1 - (1 - min_crop) * draws["crop_area"]
    low, high = (
        np.log(np.maximum(1 / _CROP_ASPECT, area)),
        np.log(np.minimum(_CROP_ASPECT, 1 / area)),
    )
    aspect = np.exp(low + (high - low) * draws["crop_aspect"])
    width, height = np.sqrt(area * aspect), np.sqrt(area / aspect)
    return (
        width,
        height,
        (1 - width) * (2 * draws["crop_x"] - 1),
        (1 - height) * (2 * draws["crop_y"] - 1),
    )


def recolour(pixels: Tensor, config: AugmentConfig, amounts: _Amounts) -> Tensor:
    """Brightness, contrast, saturation and hue. The last two do nothing to gray images."""
    colour = pixels.shape[1] == 3
    if config.brightness:
        pixels = (pixels * amounts.brightness).clamp_(0, 1)
    if config.contrast:
        mean = _gray(pixels).mean(dim=(-3, -2, -1), keepdim=True)
        pixels = torch.lerp(mean, pixels, amounts.contrast).clamp_(0, 1)
    if config.saturation and colour:
        pixels = torch.lerp(_gray(pixels), pixels, amounts.saturation).clamp_(0, 1)
    return turn_hue(pixels, amounts.hue) if config.hue and colour else pixels


def turn_hue(pixels: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue of RGB [B, 3, H, W] by parts of the full circle [B, 1, 1, 1], as in HSV."""
    red, green, blue = pixels.unbind(1)
    value, low = pixels.amax(1), pixels.amin(1)
    chroma = value - low
    divisor = torch.where(chroma > 0, chroma, 1.0)
    sixths = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    offset = torch.arange(5, 0, -2, device=pixels.device).view(1, 3, 1, 1)
    place = offset + sixths.unsqueeze(1) + 6 * turns
    # `%` takes five times as long
    place = place - 6 * (place / 6).floor_()
    return value.unsqueeze(1) - chroma.unsqueeze(1) * torch.minimum(place, 4 - place).clamp_(0, 1)


def _erased_boxes(
    probability: float, draws: Draws, height: int, width: int
) -> tuple[NDArray[np.float32], ...]:
    """First row, first column, rows, columns of a box as torchvision's, or of none."""
    smallest, largest = _ERASED_AREA
    area = (smallest + (largest - smallest) * draws["erase_area"]) * height * width
    aspect = np.exp(np.log(_ERASED_ASPECT) * (2 * draws["erase_aspect"] - 1))
    rows = np.minimum(np.rint(np.sqrt(area * aspect)), height) * (draws["erase"] < probability)
    columns = np.minimum(np.rint(np.sqrt(area / aspect)), width)
    top = np.floor(draws["erase_y"] * (height - rows + 1))
    left = np.floor(draws["erase_x"] * (width - columns + 1))
    return top, left, rows, columns


def erase(pixels: Tensor, boxes: Tensor) -> Tensor:
    """Fill a box [B, 4] (first row, first column, rows, columns) with the image's mean colour."""
    top, left, rows, columns = boxes.view(-1, 4, 1, 1).unbind(1)
    y = torch.arange(pixels.shape[-2], device=pixels.device).view(1, -1, 1)
    x = torch.arange(pixels.shape[-1], device=pixels.device).view(1, 1, -1)
    inside = (y >= top) & (y < top + rows) & (x >= left) & (x < left + columns)
    return torch.where(inside.unsqueeze(1), pixels.mean(dim=(-2, -1), keepdim=True), pixels)


def _gray(pixels: Tensor) -> Tensor:
    """[B, 1, H, W]"""
    if pixels.shape[1] != 3:
        return pixels
    red, green, blue = pixels.unbind(1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue).unsqueeze(1)
