"""Sums and counts per member, divided once: every image counts once, whatever the batches."""

from __future__ import annotations

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

    def macro_f1s(self) -> list[float]:
        """Mean F1 over all classes, with 0 for one that neither occurs nor is predicted."""
        hits = self.confusion.diagonal(dim1=1, dim2=2)
        both = self.confusion.sum(1) + self.confusion.sum(2)
        # On the host, row by row: its bits depend on no other member.
        hits, both = torch.stack([hits, both]).cpu().numpy()
        return [float(np.mean(row)) for row in 2 * hits / np.maximum(both, 1)]

    def confusions(self) -> NDArray[np.int64]:
        """Counts int64 [V, K, K] on the host."""
        counts: NDArray[np.int64] = self.confusion.cpu().numpy()
        return counts
