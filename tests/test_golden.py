"""What a seed means is pinned: no release may change results unsaid.

When a value here changes on purpose: say so in CHANGELOG.md ("results of a seed differ from before: …"), then write the
new value, which the failing test prints. Draws come from integers and are the same everywhere. Weights after training
are sums of products, whose last bits depend on the CPU and the library, so they are pinned to a tolerance.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
import torch
from test_bank import FOUR, BankUnderTest, specs_of

from hpc_mlp import randomness
from hpc_mlp.data import split
from hpc_mlp.models.registry import build_module


def digest(values: Any) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()[:16]


DRAWS = {
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
    assert {key: digest(tensor.numpy()) for key, tensor in state.items() if "weight" in key} == GOLDEN_INITIAL


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
        bank.data = lambda t, size=None: (torch.from_numpy(draws[t]) - 0.5, torch.from_numpy(labels[t]))  # type: ignore[method-assign]
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
