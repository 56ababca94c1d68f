"""Sums and counts per member, divided once: every image counts once, whatever the batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor


class MetricSums:
    """Loss sums [V] float64 and confusion counts [V, K, K] int64 (true row, predicted column) on
    the device."""

    def __init__(self, num_members: int, num_classes: int, device: torch.device) -> None:
        # MPS has no float64; there the sums stay float32.
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self.loss = torch.zeros(num_members, dtype=dtype, device=device)
        self.confusion = torch.zeros(
            num_members, num_classes, num_classes, dtype=torch.int64, device=device
        )

    def add(self, logits: Tensor, labels: Tensor, *, padded: bool = False) -> None:
        """Count a batch: logits float32 [V, B, K], labels int64 [B] or [V, B]. `padded`: some
        labels are −1, and count for nothing."""
        members, batch, classes = logits.shape
        if batch == 0:
            return
        expanded = labels.expand(members, batch)
        loss = F.cross_entropy(
            logits.flatten(0, 1), expanded.reshape(-1), reduction="none", ignore_index=-1
        )
        self.loss += loss.view(members, batch).sum(1, dtype=self.loss.dtype)
        cells = expanded.clamp(min=0) * classes if padded else expanded * classes
        cells = cells + logits.argmax(-1)
        ones = (expanded >= 0).long() if padded else torch.ones_like(cells)
        # Not bincount: it asks the device for the largest value, and waits for all that it was
        # given before.
        self.confusion.flatten(1).scatter_add_(1, cells, ones)

    def tensors(self) -> list[Tensor]:
        """What processes must sum before `losses` and `confusions` are read."""
        return [self.loss, self.confusion]

    def losses(self) -> list[float]:
        """Mean loss of each member."""
        count = self.confusion.sum((1, 2)).clamp(min=1)
        return [float(x) for x in (self.loss / count).tolist()]

    def accuracies(self) -> list[float]:
        correct = self.confusion.diagonal(dim1=1, dim2=2).sum(1)
        return [float(x) for x in (correct / self.confusion.sum((1, 2)).clamp(min=1)).tolist()]

    def confusions(self) -> NDArray[np.int64]:
        """Counts int64 [V, K, K] on the host."""
        counts: NDArray[np.int64] = self.confusion.cpu().numpy()
        return counts


@dataclass(frozen=True)
class Metrics:
    """Classification metrics from one confusion matrix, as scikit-learn computes them with
    zero_division=0.

    Macro averages run over the classes that occur in the labels or the predictions. `confusion`:
    counts [K, K], true row, predicted column."""

    loss: float
    confusion: NDArray[np.int64]

    @property
    def num_images(self) -> int:
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        return float(np.trace(self.confusion) / max(1, self.num_images))

    def per_class(self) -> tuple[NDArray[np.float64], ...]:
        """precision, recall, F1 (float64 [K]) and support (int64 [K])"""
        hits = np.diag(self.confusion).astype(np.float64)
        predicted, support = self.confusion.sum(0), self.confusion.sum(1)
        precision = hits / np.maximum(predicted, 1)
        recall = hits / np.maximum(support, 1)
        f1 = 2 * hits / np.maximum(predicted + support, 1)
        return precision, recall, f1, support

    def as_json(self, classes: Sequence[str]) -> dict[str, Any]:
        """The "test" part of result.json."""
        precision, recall, f1, support = self.per_class()
        present = (self.confusion.sum(0) + support) > 0

        def macro(values: NDArray[np.float64]) -> float:
            return float(values[present].mean()) if present.any() else 0.0

        return {
            "num_images": self.num_images,
            "loss": self.loss,
            "accuracy": self.accuracy,
            "precision": macro(precision),
            "recall": macro(recall),
            "f1": macro(f1),
            "per_class": [
                {
                    "class": name,
                    "precision": float(p),
                    "recall": float(r),
                    "f1": float(f),
                    "support": int(n),
                }
                for name, p, r, f, n in zip(classes, precision, recall, f1, support, strict=True)
            ],
            "confusion_matrix": self.confusion.tolist(),
        }
