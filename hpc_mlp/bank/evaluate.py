"""The final word on a run: its best weights, in the plain module, on a split."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hpc_mlp.bank.metrics import MetricSums
from hpc_mlp.runs.metrics import Metrics

# Images of a batch where nothing is trained.
EVAL_BATCH = 512


class Evaluation(NamedTuple):
    """`logits` and `probabilities` [N, K] and `labels` [N], in the order of the images."""

    metrics: Metrics
    logits: NDArray[np.float32]
    probabilities: NDArray[np.float32]
    labels: NDArray[np.int64]


@torch.no_grad()
def evaluate(
    module: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device
) -> Evaluation:
    """`batches`: normalised images, labels."""
    module.eval()
    sums: MetricSums | None = None
    logits, probabilities, labels = [], [], []
    for images, truth in batches:
        scores = module(images).float()
        sums = sums or MetricSums(1, scores.shape[1], device)
        sums.add(scores.unsqueeze(0), truth)
        logits.append(scores.cpu())
        probabilities.append(scores.softmax(1).cpu())
        labels.append(truth.cpu())
    assert sums is not None, "an empty split"
    metrics = Metrics(sums.losses()[0], sums.confusions()[0])
    return Evaluation(
        metrics, *(torch.cat(parts).numpy() for parts in (logits, probabilities, labels))
    )
