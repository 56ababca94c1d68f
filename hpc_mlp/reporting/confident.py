"""Confident learning (Northcutt, Jiang & Chuang 2021, arXiv 1911.00068): which labels a model that
has not seen them speaks against, and which it would have given."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hpc_mlp.reporting.predictions import Array


@dataclass(frozen=True)
class Doubts:
    """`places` int64 [D] of the images whose label is doubtful, the most doubtful first;
    `suggested` int64 [D], the class that each is likely of; `margins` float64 [D], from -1 to 0:
    the probability of the label less that of the most probable class."""

    places: Array
    suggested: Array
    margins: Array


def find_doubtful(probabilities: Array, labels: Array) -> Doubts:
    """Of out-of-fold probabilities [N, K] and labels int [N] (K ≥ 2).

    A class is confident of an image where its probability is at least its mean over the images with
    this label (equation 2). An image's likely class is the most probable of those (equation 1); its
    label is doubtful where that is another, as off the diagonal of the confident joint, and where
    the label is not the most probable class all the same. Order: by margin."""
    probabilities = np.asarray(probabilities, np.float64)
    every = np.arange(labels.size)
    own, highest = probabilities[every, labels], probabilities.max(axis=1)
    counts = np.bincount(labels, minlength=probabilities.shape[1])
    sums = np.bincount(labels, own, minlength=probabilities.shape[1])
    # A class without images is confident of none.
    thresholds = np.divide(sums, counts, out=np.full(counts.size, np.inf), where=counts > 0)
    confident = np.where(probabilities >= thresholds, probabilities, -1.0)
    likely = confident.argmax(axis=1)
    doubtful = (confident.max(axis=1) >= 0) & (likely != labels) & (own < highest)
    places = np.flatnonzero(doubtful)
    margins = (own - highest)[places]
    order = np.argsort(margins, kind="stable")
    return Doubts(places[order], likely[places][order], margins[order])
