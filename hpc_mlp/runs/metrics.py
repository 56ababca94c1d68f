"""Classification metrics of counted images, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


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
