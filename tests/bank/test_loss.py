"""The bank's loss against torch.nn.CrossEntropyLoss, member by member."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hpc_mlp.bank.loss import BankLoss, Targets
from hpc_mlp.config.sections import TrainConfig

CPU = torch.device("cpu")
MEMBERS = st.lists(
    st.builds(
        TrainConfig,
        label_smoothing=st.sampled_from([0.0, 0.1, 0.5]),
        class_weights=st.sampled_from(["none", "balanced"]),
    ),
    min_size=1,
    max_size=4,
)


def balanced(counts: list[int]) -> torch.Tensor:
    images = torch.tensor(counts, dtype=torch.float64)
    weights = images.sum() / (len(counts) * images)
    return weights.nan_to_num(posinf=0.0).float()


@settings(max_examples=60, deadline=None)
@given(
    configs=MEMBERS,
    batch=st.integers(1, 20),
    counts=st.lists(st.integers(0, 50), min_size=2, max_size=6).filter(any),
    seed=st.integers(0, 10**6),
)
def test_each_member_has_torchs_loss_and_gradient(
    configs: list[TrainConfig], batch: int, counts: list[int], seed: int
) -> None:
    torch.manual_seed(seed)
    logits = torch.randn(len(configs), batch, len(counts), requires_grad=True)
    # Of classes that have images.
    known = torch.tensor(counts).nonzero()[:, 0]
    labels = known[torch.randint(0, len(known), (len(configs), batch))]
    losses = BankLoss(configs, [counts], CPU)(logits, Targets(labels), batch)
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    for v, config in enumerate(configs):
        weight = balanced(counts) if config.class_weights == "balanced" else None
        criterion = nn.CrossEntropyLoss(weight, label_smoothing=config.label_smoothing)
        mine = logits[v].detach().requires_grad_()
        expected = criterion(mine, labels[v])
        assert torch.allclose(losses[v], expected, rtol=1e-5, atol=1e-6)
        (wanted,) = torch.autograd.grad(expected, mine)
        assert torch.allclose(gradient[v], wanted, rtol=1e-4, atol=1e-6)


def test_smoothing_is_not_drawn_to_a_class_without_images() -> None:
    config = TrainConfig(class_weights="balanced", label_smoothing=0.1)
    logits = torch.zeros(1, 1, 3, requires_grad=True)
    loss = BankLoss([config], [[700, 700, 0]], CPU)(logits, Targets(torch.tensor([[0]])), 1)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert gradient[0, 0, 0] < 0 < gradient[0, 0, 2]


@pytest.mark.parametrize("weights", ["none", "balanced"])
def test_parts_of_a_batch_add_up_to_its_loss(weights: Literal["none", "balanced"]) -> None:
    """Two processes with 5 and 4 images: their shares sum to the loss of one process with nine."""
    config = TrainConfig(class_weights=weights, label_smoothing=0.1)
    counts = [3, 10, 40]
    logits, labels = torch.randn(1, 9, 3), torch.randint(0, 3, (1, 9))
    whole = BankLoss([config], [counts], CPU)(logits, Targets(labels), 9)
    total = balanced(counts)[labels].sum(1) if weights == "balanced" else torch.tensor([9.0])

    def share(part: slice) -> torch.Tensor:
        def reduce(tensor: torch.Tensor) -> None:
            tensor.copy_(total)

        loss = BankLoss([config], [counts], CPU, reduce)
        return loss(logits[:, part], Targets(labels[:, part]), 9)

    assert torch.allclose(share(slice(0, 5)) + share(slice(5, 9)), whole, rtol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_mixup_is_the_mixture_of_two_losses(smoothing: float) -> None:
    config = TrainConfig(label_smoothing=smoothing)
    logits = torch.randn(2, 6, 4)
    first, second = torch.randint(0, 4, (2, 2, 6))
    share = torch.rand(2, 6)
    mixed = BankLoss([config] * 2, [[1] * 4], CPU)(logits, Targets(first, second, share), 6)
    for v in range(2):
        one, other = (
            nn.functional.cross_entropy(
                logits[v], labels[v], reduction="none", label_smoothing=smoothing
            )
            for labels in (first, second)
        )
        assert torch.allclose(mixed[v], (share[v] * one + (1 - share[v]) * other).mean(), rtol=1e-5)


def test_mixup_with_class_weights_is_one_with_every_label_as_an_image_of_its_own() -> None:
    """Both labels of an image count by their share: as the weighted mean over twice as many
    images."""
    counts = [3, 10, 40, 0]
    logits, share = torch.randn(1, 6, 4), torch.rand(1, 6)
    first, second = torch.randint(0, 4, (2, 1, 6))
    loss = BankLoss([TrainConfig(class_weights="balanced")], [counts], CPU)(
        logits, Targets(first, second, share), 6
    )
    losses, weights = [], []
    for labels, part in ((first, share), (second, 1 - share)):
        weight = balanced(counts)[labels[0]] * part[0]
        losses.append(weight * nn.functional.cross_entropy(logits[0], labels[0], reduction="none"))
        weights.append(weight)
    assert torch.allclose(loss[0], torch.cat(losses).sum() / torch.cat(weights).sum(), rtol=1e-5)


@settings(max_examples=50, deadline=None)
@given(counts=st.lists(st.integers(1, 10**8), min_size=2, max_size=9))
def test_balanced_weights_are_n_over_k_n_k_rounded_once(counts: list[int]) -> None:
    weights = BankLoss([TrainConfig(class_weights="balanced")], [counts], CPU).weights
    assert weights is not None
    exact = [sum(counts) / (len(counts) * count) for count in counts]
    assert weights.tolist() == [torch.tensor(exact, dtype=torch.float64).float().tolist()]


def test_what_the_loss_needs_lies_on_the_device() -> None:
    loss = BankLoss(
        [TrainConfig(class_weights="balanced", label_smoothing=0.1)], [[1, 2]], torch.device("meta")
    )
    assert loss.weights is not None and loss.weights.device.type == "meta"
    assert loss.smoothing is not None and loss.smoothing.device.type == "meta"


def test_a_members_infinite_loss_stays_its_own() -> None:
    logits = torch.randn(2, 3, 4)
    logits[0, 1] = float("nan")
    losses = BankLoss([TrainConfig()] * 2, [[1] * 4], CPU)(
        logits, Targets(torch.zeros(2, 3, dtype=torch.int64)), 3
    )
    assert torch.isnan(losses[0]) and torch.isfinite(losses[1])
