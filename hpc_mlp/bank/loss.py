"""The training loss of every member of a bank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hpc_mlp.config.sections import TrainConfig


@dataclass(frozen=True)
class Targets:
    """Labels int64 [V, B]; with mixup also those of the partner images and the share [V, B] of the
    first."""

    labels: Tensor
    partners: Tensor | None = None
    share: Tensor | None = None


class BankLoss:
    """Cross entropy with label smoothing and class weights, per member, as
    `torch.nn.CrossEntropyLoss` defines it.

    `class_counts`: images of each class in the training split; 'balanced' weighs class k by N / (K
    n_k). `reduce` sums a tensor over the processes of data-parallel training, in place."""

    def __init__(
        self,
        configs: Sequence[TrainConfig],
        class_counts: Sequence[int],
        device: torch.device,
        reduce: Callable[[Tensor], None] | None = None,
    ) -> None:
        self.reduce = reduce
        smoothing = [config.label_smoothing for config in configs]
        self.smoothing = (
            torch.tensor(smoothing, device=device).unsqueeze(1) if any(smoothing) else None
        )
        self.weights: Tensor | None = None
        if any(config.class_weights == "balanced" for config in configs):
            counts = torch.tensor(class_counts, dtype=torch.float64).clamp(min=1)
            balanced = (counts.sum() / (len(counts) * counts)).float()
            rows = [
                balanced if c.class_weights == "balanced" else torch.ones_like(balanced)
                for c in configs
            ]
            self.weights = torch.stack(rows).to(device)  # [V, K]

    def __call__(self, logits: Tensor, targets: Targets, batch_size: int) -> Tensor:
        """logits float32 [V, B, K] of this process's part of a global batch of `batch_size` → [V]:
        this part's share of each member's mean loss (the sum over processes is the mean)."""
        if self.smoothing is None and self.weights is None and targets.partners is None:
            flat = F.cross_entropy(logits.flatten(0, 1), targets.labels.flatten(), reduction="none")
            return flat.view(targets.labels.shape).sum(1) / batch_size
        log_p = logits.log_softmax(-1)
        loss, weight = self._weighted(log_p, targets.labels)
        if targets.partners is not None and targets.share is not None:
            other, other_weight = self._weighted(log_p, targets.partners)
            loss = targets.share * loss + (1 - targets.share) * other
            weight = targets.share * weight + (1 - targets.share) * other_weight
        if self.weights is None:
            return loss.sum(1) / batch_size
        total = weight.sum(1)
        if self.reduce is not None:
            self.reduce(total)
        return loss.sum(1) / total

    def _weighted(self, log_p: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and weight of every image, both [V, B]."""
        loss = -log_p.gather(2, labels.unsqueeze(2)).squeeze(2)
        weight = torch.ones_like(loss)
        smooth = log_p
        if self.weights is not None:
            weight = self.weights.gather(1, labels)
            loss = loss * weight
            smooth = log_p * self.weights.unsqueeze(1)
        if self.smoothing is not None:
            loss = (1 - self.smoothing) * loss - self.smoothing * smooth.mean(2)
        return loss, weight
