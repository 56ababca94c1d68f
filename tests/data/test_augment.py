"""Augmentation: each operation against torchvision's, and randomness that only the place
decides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.shards import random_arrays, write_shards
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from hpc_mlp.config.sections import AugmentConfig
from hpc_mlp.data.augment import affine_matrices, augment, draw, is_active, turn_hue
from hpc_mlp.data.sheets import augmented_rows

EVERYTHING: dict[str, Any] = {
    "horizontal_flip": 0.5,
    "rotation": 20.0,
    "shift": 0.1,
    "min_crop": 0.6,
    "brightness": 0.3,
    "contrast": 0.3,
    "saturation": 0.3,
    "hue": 0.1,
    "erasing": 0.5,
}


def photos(count: int = 6, height: int = 48, width: int = 64, channels: int = 3) -> Tensor:
    """Smooth random uint8 images [count, channels, height, width]."""
    coarse = torch.rand(count, channels, 5, 5, generator=torch.Generator().manual_seed(0)) * 255
    size = (height, width)
    return (
        torch.nn.functional.interpolate(coarse, size, mode="bicubic").clamp(0, 255).to(torch.uint8)
    )


def run(images: Tensor, step: int = 0, first: int = 0, **config: Any) -> Tensor:
    positions = slice(first, first + len(images))
    return augment(
        images, AugmentConfig(**config), seeds=[7], epoch=2, step=step, positions=positions
    )


def drawn(count: int) -> dict[str, np.ndarray]:
    return draw(7, 2, 0, slice(0, count))


def test_without_augmentation_images_are_divided_by_255_exactly() -> None:
    images = photos()
    assert torch.equal(run(images), images.float() / 255)
    assert torch.equal(run(images.float() / 255), images.float() / 255)
    assert not is_active(AugmentConfig()) and is_active(AugmentConfig(hue=0.1))
    assert run(images[:0], **EVERYTHING).shape == (0, 3, 48, 64)


def test_flip() -> None:
    images = photos(200)
    out = run(images, horizontal_flip=0.3)
    flipped = (out == images.flip(-1) / 255).flatten(1).all(1)
    kept = (out == images / 255).flatten(1).all(1)
    assert bool((flipped ^ kept).all()) and 30 < flipped.sum() < 90
    # The other way to do it.
    resampled = run(images, horizontal_flip=0.3, rotation=1e-6)
    assert torch.allclose(out, resampled, atol=1e-4)


def test_rotation_turns_as_torchvision_does() -> None:
    images = photos()
    out = run(images, rotation=30.0)
    for image, result, u in zip(images, out, drawn(6)["angle"], strict=True):
        angle = 30.0 * (2 * float(u) - 1)
        options = {"interpolation": tv.InterpolationMode.BILINEAR}
        expected = tv.rotate(image / 255, angle, **options)
        # Inside the turned image.
        known = tv.rotate(torch.ones(1, 48, 64), angle, **options)[0] > 0.999
        assert known.float().mean() > 0.6
        assert (result - expected)[:, known].abs().max() < 2e-3


def test_shift_moves_as_torchvision_does_and_continues_the_edge() -> None:
    images = photos()
    out = run(images, shift=0.25)
    draws = drawn(6)
    for i, (image, result) in enumerate(zip(images, out, strict=True)):
        dx = 0.25 * (2 * float(draws["shift_x"][i]) - 1) * 64
        dy = 0.25 * (2 * float(draws["shift_y"][i]) - 1) * 48
        padded = tv.pad(image / 255, [20, 20, 20, 20], padding_mode="edge")
        options = {"interpolation": tv.InterpolationMode.BILINEAR}
        # torchvision shifts by whole pixels: blend the four neighbours
        expected = torch.zeros_like(result)
        for x, wx in ((np.floor(dx), 1 - dx % 1), (np.floor(dx) + 1, dx % 1)):
            for y, wy in ((np.floor(dy), 1 - dy % 1), (np.floor(dy) + 1, dy % 1)):
                moved = tv.affine(padded, 0.0, [int(x), int(y)], 1.0, [0.0, 0.0], **options)
                expected += wx * wy * moved[:, 20:-20, 20:-20]
        assert (result - expected).abs().max() < 2e-3


def test_crop_is_torchvisions_resized_crop() -> None:
    """Boxes of whole pixels, so that torchvision can cut the same ones."""
    images = photos(6, 48, 48)
    for top, left, height, width in (
        (0, 0, 48, 48),
        (4, 10, 30, 24),
        (0, 24, 24, 24),
        (20, 0, 28, 36),
    ):
        area = height * width / 48**2
        low, high = np.log(max(3 / 4, area)), np.log(min(4 / 3, 1 / area))
        numbers = {
            "crop_area": (1 - area) / 0.8 if area < 1 else 0.0,
            "crop_aspect": (np.log(width / height) - low) / (high - low) if high > low else 0.0,
            "crop_x": left / (48 - width) if width < 48 else 0.5,
            "crop_y": top / (48 - height) if height < 48 else 0.5,
        }
        draws = {name: np.full(6, 0.5, np.float32) for name in drawn(1)} | {
            name: np.full(6, value, np.float32) for name, value in numbers.items()
        }
        matrix = torch.from_numpy(
            affine_matrices(AugmentConfig(min_crop=0.2), draws, np.zeros(6, bool), 1.0)
        )
        grid = torch.nn.functional.affine_grid(matrix, [6, 3, 48, 48], align_corners=False)
        out = torch.nn.functional.grid_sample(
            images / 255, grid, padding_mode="border", align_corners=False
        )
        expected = tv.resized_crop(
            images / 255, top, left, height, width, [48, 48], antialias=False
        )
        assert (out - expected)[:, :, 2:-2, 2:-2].abs().max() < 2e-3


def test_crops_have_the_areas_and_aspects_that_were_asked_for() -> None:
    draws = draw(0, 0, 0, slice(0, 4000))
    matrix = affine_matrices(AugmentConfig(min_crop=0.25), draws, np.zeros(4000, bool), 1.0)
    width, height, x, y = matrix[:, 0, 0], matrix[:, 1, 1], matrix[:, 0, 2], matrix[:, 1, 2]
    area = width * height
    assert area.min() > 0.2499 and area.max() < 1.0001 and abs(area.mean() - 0.625) < 0.02
    assert (np.abs(np.log(width / height)) < np.log(4 / 3) + 1e-4).all()
    assert (np.abs(x) + width < 1.0001).all() and (np.abs(y) + height < 1.0001).all()


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_colours_change_as_torchvision_changes_them(name: str) -> None:
    images = photos(12)
    strength: dict[str, Any] = {name: 0.4}
    out = run(images, **strength)
    assert (out - images / 255).abs().amax(dim=(1, 2, 3)).median() > 0.02
    adjust = getattr(tv, f"adjust_{name}")
    for image, result, u in zip(images, out, drawn(12)[name], strict=True):
        amount = 0.4 * (2 * float(u) - 1)
        expected = adjust(image / 255, amount if name == "hue" else 1 + amount)
        assert torch.allclose(result, expected, atol=1e-4)


def test_hue_of_grays_and_pure_colours() -> None:
    colours = torch.tensor(
        [[0.0, 0, 0], [1, 1, 1], [0.5, 0.5, 0.5], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]]
    )
    for turn in (-0.5, -1 / 3, -0.1, 0.0, 0.1, 1 / 3, 0.5):
        out = turn_hue(colours.T.reshape(1, 3, 1, 7), torch.full((1, 1, 1, 1), turn))
        expected = tv.adjust_hue(colours.T.reshape(1, 3, 1, 7), turn)
        assert torch.allclose(out, expected, atol=1e-5)


def test_erasing_fills_one_box_with_the_mean() -> None:
    images = photos(300, 32, 40)
    out = run(images, erasing=0.6)
    pixels = images / 255
    changed = (out != pixels).any(1)
    erased = changed.flatten(1).any(1)
    assert 150 < erased.sum() < 210
    for image, result, where in zip(pixels[erased], out[erased], changed[erased], strict=True):
        rows, columns = where.any(1).nonzero().flatten(), where.any(0).nonzero().flatten()
        top, left = int(rows[0]), int(columns[0])
        height, width = int(rows[-1]) - top + 1, int(columns[-1]) - left + 1
        assert 0.01 < height * width / (32 * 40) < 0.36
        mean = image.mean(dim=(1, 2), keepdim=True).expand(3, height, width)
        assert torch.allclose(result, tv.erase(image, top, left, height, width, mean), atol=1e-6)


def test_gray_images_have_neither_saturation_nor_hue() -> None:
    gray = photos(5, channels=1)
    assert torch.equal(run(gray, saturation=0.9, hue=0.5), gray / 255)
    out = run(gray, **EVERYTHING)
    assert out.shape == gray.shape and not torch.allclose(out, gray / 255)
    contrast = run(gray, contrast=0.4)
    for image, result, u in zip(gray, contrast, drawn(5)["contrast"], strict=True):
        assert torch.allclose(
            result, tv.adjust_contrast(image / 255, 1 + 0.4 * (2 * float(u) - 1)), atol=1e-4
        )


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 20),
    st.integers(1, 5),
    st.integers(0, 2**40),
    st.integers(0, 2**40),
    st.sampled_from([1, 3]),
)
def test_any_split_of_a_batch_gives_the_same_images(
    size: int, parts: int, seed: int, step: int, channels: int
) -> None:
    images = photos(size, 12, 10, channels)
    config = AugmentConfig(**EVERYTHING)

    def go(which: Tensor, positions: slice | Tensor) -> Tensor:
        return augment(which, config, seeds=[seed], epoch=1, step=step, positions=positions)

    whole = go(images, slice(0, size))
    assert whole.dtype == torch.float32 and whole.min() >= 0 and whole.max() <= 1
    pieces, first = [], 0
    for piece in torch.tensor_split(images, parts):
        pieces.append(go(piece, slice(first, first + len(piece))))
        first += len(piece)
    assert torch.allclose(torch.cat(pieces), whole, atol=1e-6)
    order = torch.randperm(size, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(go(images[order], order), whole[order], atol=1e-6)


def test_every_seed_epoch_and_step_draws_anew() -> None:
    tables = [
        np.stack(list(draw(seed, epoch, step, slice(0, 3)).values()))
        for seed in (0, 1)
        for epoch in (0, 1)
        for step in (0, 1)
    ]
    assert all(not np.intersect1d(a, b).size for i, a in enumerate(tables) for b in tables[:i])


def test_a_sheet_begins_with_the_originals(tmp_path: Path) -> None:
    images, labels = random_arrays(20, size=16)
    manifest = write_shards(tmp_path, {"train": (images, labels)}, shard_size=6)
    rows = augmented_rows(tmp_path, manifest, AugmentConfig(**EVERYTHING), images=5, copies=4)
    assert np.shape(rows) == (5, 4, 16, 16, 3) and np.asarray(rows).dtype == np.uint8
    assert np.array_equal([row[0] for row in rows], images[:5])
    assert len({pixels.tobytes() for pixels in rows[0]}) == 4
    every = augmented_rows(tmp_path, manifest, AugmentConfig(), images=50)
    assert np.shape(every) == (20, 8, 16, 16, 3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_makes_the_same_images() -> None:
    images = photos(16)
    here, there = run(images, **EVERYTHING), run(images.cuda(), **EVERYTHING)
    assert there.is_cuda and torch.allclose(there.cpu(), here, atol=1e-3)
