"""What a seed means is pinned: no release may change results unsaid.

When a value here changes on purpose: say so in CHANGELOG.md ("results of a seed differ from before:
…"), then write the new value, which the failing test prints. Draws come from integers and are the
same everywhere. Weights after training are sums of products, whose last bits depend on the CPU and
the library, so they are pinned to a tolerance."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from support.banks import FOUR, BankUnderTest, specs_of

from hpc_mlp.config.sections import AugmentConfig
from hpc_mlp.conversion import split
from hpc_mlp.conversion.convert import convert
from hpc_mlp.conversion.settings import Settings
from hpc_mlp.data.manifest import Manifest
from hpc_mlp.data.sheets import augmented_rows
from hpc_mlp.machine import randomness
from hpc_mlp.models.registry import build_module


def digest(values: Any) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()[:16]


DRAWS: dict[str, Callable[[], Any]] = {
    "order": lambda: randomness.epoch_order(3, 2, 1000),
    "dropout": lambda: randomness.dropout_draws(3, 2, 5, 1, 33, 17),
    "augmentation": lambda: randomness.augmentation_draws(3, 2, 5, 33, 7),
    "mixup": lambda: randomness.mixup_shares(3, 2, 5, 33, 0.4).round(5),
}
GOLDEN_DRAWS = {
    "augmentation": "5ccf9308951c4014",
    "dropout": "2bd74435c3a74f98",
    "mixup": "288c2233171bb0cf",
    "order": "e8ee89d289bc771d",
}


@pytest.mark.parametrize("name", sorted(DRAWS))
def test_draws(name: str) -> None:
    assert digest(DRAWS[name]()) == GOLDEN_DRAWS[name]


def test_split_and_order_of_conversion() -> None:
    places = np.arange(200, dtype=np.int64)
    labels = (places % 3).astype(np.int32)
    assigned = split.assign(labels, places, np.full(200, -1, np.int8), 3, 0.1, 0.1)
    assert digest(assigned) == "51a1c6501a84fef3"
    assert digest(split.shuffled(places, 3, 200)) == "ec63a13a39fcb639"


def test_initial_weights() -> None:
    (spec,) = specs_of("baseline", [3], "model.hidden=[48,24]")
    state = build_module(spec.config.model, (1, 8, 8), 10, 3).state_dict()
    assert {
        key: digest(tensor.numpy()) for key, tensor in state.items() if "weight" in key
    } == GOLDEN_INITIAL


GOLDEN_INITIAL = {
    "0.weight": "f10e22d35dbefa01",
    "2.weight": "c8fe329e386a43f5",
    "4.weight": "37ea3aabcd0574a1",
}


@pytest.mark.parametrize("variant", FOUR.split(","))
def test_weights_after_ten_steps(variant: str) -> None:
    """Sums and sums of squares of each layer's weights; the images are draws too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        bank = BankUnderTest(specs_of(variant, [3], "model.hidden=[48,24]"), 16, (1, 8, 8))
        draws = randomness.augmentation_draws(1, 1, 1, 160, 64).reshape(10, 1, 16, 1, 8, 8)
        labels = (randomness.epoch_order(1, 1, 160) % 5).reshape(10, 1, 16)
        data = [(torch.from_numpy(draws[t]) - 0.5, torch.from_numpy(labels[t])) for t in range(10)]
        with mock.patch.object(bank, "data", lambda t, size=None: data[t]):
            bank.train(10)
    finally:
        torch.set_num_threads(before)
    (state,) = bank.bank.member_states()
    found = [
        round(float(value), 6)
        for key, tensor in state.items()
        if key.endswith("weight")
        for value in (tensor.double().sum(), tensor.double().square().sum())
    ]
    assert found == pytest.approx(GOLDEN_TRAINED[variant], abs=2e-4), found


GOLDEN_TRAINED = {
    "baseline": [1.653337, 15.916827, -6.852902, 8.082091, -0.679089, 1.443209],
    "dropout": [1.855247, 15.905207, -6.896316, 8.067554, -0.734165, 1.440338],
    "batchnorm": [
        1.712513,
        15.936658,
        -6.588523,
        8.102074,
        -0.625096,
        1.427006,
        48.000757,
        48.002265,
        23.940702,
        23.881956,
    ],
    "dropout_batchnorm": [
        1.680265,
        15.953285,
        -6.502892,
        8.111071,
        -0.688547,
        1.417034,
        47.99012,
        47.981083,
        23.928278,
        23.857043,
    ],
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 PNG of 12 × 10 pixels in three classes, converted to 8 × 8."""
    folder = tmp_path_factory.mktemp("golden")
    with zipfile.ZipFile(folder / "images.zip", "w") as file:
        for i in range(60):
            pixels = (np.arange(12 * 10 * 3).reshape(12, 10, 3) * (i + 3) % 251).astype(np.uint8)
            png = io.BytesIO()
            Image.fromarray(pixels).save(png, "PNG")
            file.writestr(zipfile.ZipInfo(f"{'abc'[i % 3]}/{i:02}.png"), png.getvalue())
    convert([folder / "images.zip"], folder / "shards", Settings(height=8, width=8, workers=1))
    return folder / "shards"


def test_shards(shards: Path) -> None:
    """Split, order, resizing, encoding and statistics, to the byte (Pillow resizes)."""
    manifest = Manifest.load(shards)
    found = {
        shard.name: shard.sha256[:16]
        for split in manifest.splits.values()
        for shard in split.shards
    }
    assert found == {
        "train-000000.tar": "86bcd2b60392dd10",
        "val-000000.tar": "4957fb98ffaae5ed",
        "test-000000.tar": "fde31f2efad7651b",
    }
    assert manifest.digest[:16] == "71e8a862c7012930"
    assert manifest.mean == (0.48344439338235295, 0.4910424325980392, 0.48733915441176473)
    assert manifest.std == (0.13067340600187935, 0.12767208211231595, 0.12919053055494933)


def test_augmented_images(shards: Path) -> None:
    """Sums of the pixels, the first of each row as it is; rounding may differ by one of 255 for
    some pixels."""
    config = AugmentConfig(horizontal_flip=0.5, rotation=20, shift=0.1, brightness=0.3, erasing=0.5)
    rows = augmented_rows(shards, Manifest.load(shards), config, 3, images=2, copies=4)
    sums = np.array(rows).sum((2, 3, 4), dtype=np.int64)
    expected = [[23909, 27031, 17829, 17356], [23976, 26066, 23030, 22045]]
    assert np.abs(sums - expected).max() <= 20, sums
