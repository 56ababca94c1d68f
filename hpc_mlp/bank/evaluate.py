"""The final word on a run: its best weights, in the plain module, on the test split."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hpc_mlp.bank.metrics import MetricSums
from hpc_mlp.runs.metrics import Metrics

# Images of a batch where nothing is trained.
EVAL_BATCH = 512


@torch.no_grad()
def evaluate(
    module: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device
) -> tuple[Metrics, NDArray[np.float32], NDArray[np.int64]]:
    """→ metrics, probabilities [N, K] and labels [N], in the order of `batches` (normalised images,
    labels)."""
    module.eval()
    sums: MetricSums | None = None
    probabilities, labels = [], []
    for images, truth in batches:
        logits = module(images).float()
        sums = sums or MetricSums(1, logits.shape[1], device)
        sums.add(logits.unsqueeze(0), truth)
        probabilities.append(logits.softmax(1).cpu())
        labels.append(truth.cpu())
    assert sums is not None, "an empty split"
    metrics = Metrics(sums.losses()[0], sums.confusions()[0])
    return metrics, torch.cat(probabilities).numpy(), torch.cat(labels).numpy()
