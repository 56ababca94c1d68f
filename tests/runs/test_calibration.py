"""Temperature scaling and calibration error, beside scipy's own minimisation and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from hpc_mlp.runs.calibration import (
    HIGHEST,
    LOWEST,
    UNCHANGED,
    calibrated,
    calibration_error,
    fit_temperature,
    is_fitted,
)


def drawn(seed: int, classes: int, temperature: float, n: int = 400) -> tuple[np.ndarray, ...]:
    """Logits whose labels follow softmax(logits / temperature)."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 4, (n, classes)).astype(np.float32)
    shares = softmax(logits.astype(float) / temperature, axis=1)
    return logits, np.array([rng.choice(classes, p=row) for row in shares])


def loss(logits: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    shares = softmax(logits.astype(float) / temperature, axis=1)
    return float(log_loss(labels, shares, labels=range(logits.shape[1])))


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 1000), classes=st.integers(2, 12), temperature=st.sampled_from([0.5, 1, 4])
)
def test_the_fit_is_the_lowest_loss_that_scipy_finds(
    seed: int, classes: int, temperature: float
) -> None:
    logits, labels = drawn(seed, classes, temperature)
    found = fit_temperature(logits, labels)
    assert found is not None and is_fitted(found)
    best = minimize_scalar(
        lambda log: loss(logits, labels, np.exp(log)),
        bounds=(np.log(LOWEST), np.log(HIGHEST)),
        method="bounded",
        options={"xatol": 1e-9},
    )
    assert found == pytest.approx(np.exp(best.x), rel=1e-4)
    assert loss(logits, labels, found) <= best.fun + 1e-12
    # What is added to all logits of an image changes nothing, and the order of images hardly.
    moved = fit_temperature(logits + np.float32(8), labels)
    assert moved == pytest.approx(found, rel=1e-5)
    assert fit_temperature(logits[::-1], labels[::-1]) == pytest.approx(found, rel=1e-9)


def test_it_finds_the_temperature_that_the_labels_were_drawn_with() -> None:
    logits, labels = drawn(0, 5, 2.5, n=20_000)
    assert fit_temperature(logits, labels) == pytest.approx(2.5, rel=0.03)


def test_two_classes_are_a_logistic_regression_without_penalty() -> None:
    logits, labels = drawn(3, 2, 1.7)
    model = LogisticRegression(C=1e12, fit_intercept=False, tol=1e-10)
    model.fit(np.diff(logits.astype(float)), labels)
    assert fit_temperature(logits, labels) == pytest.approx(1 / model.coef_[0, 0], rel=1e-4)


def test_what_has_no_best_temperature_stays_or_ends_at_the_limit() -> None:
    labels = np.arange(12) % 3
    right = np.eye(3, dtype=np.float32)[labels]
    assert fit_temperature(right, labels) == UNCHANGED and not is_fitted(UNCHANGED)
    assert fit_temperature(-right, labels) == HIGHEST and not is_fitted(HIGHEST)
    assert fit_temperature(np.ones((12, 3), np.float32), labels) == 1.0
    assert fit_temperature(np.where(right > 0, np.float32(np.inf), right), labels) is None
    assert fit_temperature(right[:0], labels[:0]) is None


def test_loss_and_error_with_a_temperature() -> None:
    logits, labels = drawn(1, 4, 2.0)
    shares = softmax(logits.astype(float) / 2, axis=1)
    found = calibrated(logits, labels, 2.0)
    assert found["calibrated_loss"] == pytest.approx(loss(logits, labels, 2.0), rel=1e-12)
    confidence, right = shares.max(1), shares.argmax(1) == labels
    bins = [np.flatnonzero(np.minimum((confidence * 15).astype(int), 14) == k) for k in range(15)]
    gaps = [abs(right[b].mean() - confidence[b].mean()) * len(b) for b in bins if len(b)]
    assert found["calibrated_ece"] == pytest.approx(sum(gaps) / len(labels))
    over = softmax(logits.astype(float), axis=1).max(1)
    assert calibration_error(over, right) > found["calibrated_ece"]
    # No logit is too large for it.
    assert (
        calibrated(np.array([[3e38, -3e38]], np.float32), np.array([0]), 1)["calibrated_loss"] == 0
    )
