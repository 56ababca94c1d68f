"""Doubtful labels are those of confident learning, and planted wrong labels are among them."""

from __future__ import annotations

import numpy as np
import pytest
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict

from hpc_mlp.reporting.confident import find_doubtful


# Thirty steps do.
@pytest.mark.filterwarnings("ignore:lbfgs failed to converge")
@pytest.mark.parametrize(("seed", "share"), [(1, 0.05), (2, 0.2)])
def test_digits_with_wrong_labels_as_cleanlab_finds_them(seed: int, share: float) -> None:
    pixels, truth = load_digits(return_X_y=True)
    rng = np.random.default_rng(seed)
    wrong = rng.permutation(truth.size)[: round(share * truth.size)]
    labels = truth.copy()
    labels[wrong] = (truth[wrong] + rng.integers(1, 10, wrong.size)) % 10
    model = LogisticRegression(max_iter=30)
    probabilities = cross_val_predict(model, pixels / 16, labels, cv=5, method="predict_proba")
    found = find_doubtful(probabilities, labels)
    theirs = find_label_issues(labels, probabilities, filter_by="low_self_confidence", n_jobs=1)
    assert {*found.tolist()} == {*np.flatnonzero(theirs).tolist()}
    scores = get_label_quality_scores(labels, probabilities, method="self_confidence")
    assert (np.diff(scores[found]) >= 0).all()
    planted = np.isin(found, wrong)
    # Recall and precision.
    assert planted.sum() / wrong.size > 0.75 and planted.mean() > 0.9


def test_the_threshold_is_that_of_each_class() -> None:
    """Class 2 is never told surely (mean 0.4), so that 0.4 is much for it; class 0 always is."""
    probabilities = np.array(
        [
            [0.9, 0.1, 0.0],
            [0.9, 0.0, 0.1],
            [0.1, 0.6, 0.3],
            [0.3, 0.3, 0.4],
            # Labelled 1: class 0 is the most probable, but not by its own measure; class 2 is.
            [0.5, 0.1, 0.4],
            # Labelled 2: class 1 is (mean 0.35). Of both, the more probable one counts.
            [0.0, 0.6, 0.4],
        ]
    )
    labels = np.array([0, 0, 1, 2, 1, 2])
    assert find_doubtful(probabilities, labels).tolist() == [4, 5]
    # Not likely of another class by any measure: one label fewer is doubtful, the less probable.
    probabilities[5] = [0.34, 0.34, 0.32]
    assert find_doubtful(probabilities, labels).tolist() == [4]


def test_no_label_is_doubtful_where_the_model_agrees_or_knows_nothing() -> None:
    labels = np.array([0, 1, 1, 0])
    assert find_doubtful(np.eye(3)[labels], labels).size == 0
    assert find_doubtful(np.full((4, 3), 1 / 3), labels).size == 0
