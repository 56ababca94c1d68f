"""The training loss of every member of a bank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hpc_mlp.bank.parts import slices_of_equal
from hpc_mlp.config.registry import CROSS_ENTROPY, call
from hpc_mlp.config.sections import TrainConfig
from hpc_mlp.errors import OwnCodeError


@dataclass(frozen=True)
class Targets:
    """Labels int64 [V, B]; with mixup also those of the partner images and the share [V, B] of the
    first."""

    labels: Tensor
    partners: Tensor | None = None
    share: Tensor | None = None


class BankLoss:
    """Cross entropy with label smoothing and class weights, per member, as
    `torch.nn.CrossEntropyLoss` defines it; or a registered loss, class weights as there.

    `class_counts`: training images of each class, [V][K], or [1][K] of all members; 'balanced'
    weighs class k by N / (K n_k). `reduce` sums a tensor over the processes of data-parallel
    training, in place. `runs`: the members' names."""

    def __init__(
        self,
        configs: Sequence[TrainConfig],
        class_counts: Sequence[Sequence[int]],
        device: torch.device,
        reduce: Callable[[Tensor], None] | None = None,
        runs: Sequence[str] = (),
    ) -> None:
        self.reduce, self.runs = reduce, runs
        names = [config.loss for config in configs]
        # Neighbours of one loss, where one is not the cross entropy.
        self.parts = slices_of_equal(names) if set(names) != {CROSS_ENTROPY} else []
        # [V]: a registered loss was not finite where the logits were; asked for now and then, as
        # a GPU's answer would be waited for.
        self.broken = torch.zeros(len(configs), dtype=torch.bool, device=device)
        smoothing = [config.label_smoothing for config in configs]
        self.smoothing = (
            torch.tensor(smoothing, device=device).unsqueeze(1) if any(smoothing) else None
        )
        # [V, K]
        self.weights: Tensor | None = None
        if any(config.class_weights == "balanced" for config in configs):
            counts = torch.tensor(class_counts, dtype=torch.float64)
            balanced = counts.sum(1, keepdim=True) / (counts.shape[1] * counts.clamp(min=1))
            # Else label smoothing would have every image be of a class that has none.
            balanced = torch.where(counts > 0, balanced, 0.0).float()
            wanted = torch.tensor([[c.class_weights == "balanced"] for c in configs])
            self.weights = torch.where(wanted, balanced, 1.0).to(device)

    def __call__(self, logits: Tensor, targets: Targets, batch_size: int) -> Tensor:
        """logits float32 [V, B, K] of this process's part of a global batch of `batch_size` → [V]:
        this part's share of each member's mean loss (the sum over processes is the mean)."""
        plain = self.smoothing is None and self.weights is None and not self.parts
        if plain and targets.partners is None:
            flat = F.cross_entropy(logits.flatten(0, 1), targets.labels.flatten(), reduction="none")
            return flat.view(targets.labels.shape).sum(1) / batch_size
        scores = logits if self.parts else logits.log_softmax(-1)
        weighted = self._weighted_by_part if self.parts else self._weighted
        loss, weight = weighted(scores, targets.labels)
        if targets.partners is not None and targets.share is not None:
            other, other_weight = weighted(scores, targets.partners)
            loss = targets.share * loss + (1 - targets.share) * other
            weight = targets.share * weight + (1 - targets.share) * other_weight
        if self.weights is None:
            return loss.sum(1) / batch_size
        total = weight.sum(1)
        if self.reduce is not None:
            self.reduce(total)
        return loss.sum(1) / total

    def _weighted(
        self, log_p: Tensor, labels: Tensor, rows: slice = slice(None)
    ) -> tuple[Tensor, Tensor]:
        """Loss and weight of every image of the members `rows`, both [V, B]."""
        loss = -log_p.gather(2, labels.unsqueeze(2)).squeeze(2)
        weight = torch.ones_like(loss)
        smooth = log_p
        if self.weights is not None:
            weight = self.weights[rows].gather(1, labels)
            loss = loss * weight
            smooth = log_p * self.weights[rows].unsqueeze(1)
        if self.smoothing is not None:
            smoothing = self.smoothing[rows]
            loss = (1 - smoothing) * loss - smoothing * smooth.mean(2)
        return loss, weight

    def _weighted_by_part(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """As `_weighted`, each member by its own loss: one call for each, so that company makes no
        difference."""
        losses: list[Tensor] = []
        weights: list[Tensor] = []
        sizes = [rows.stop - rows.start for _, rows in self.parts]
        for (name, rows), part in zip(self.parts, torch.split(logits, sizes), strict=True):
            truth = labels[rows]
            if name == CROSS_ENTROPY:
                loss, weight = self._weighted(part.log_softmax(-1), truth, rows)
            else:
                one_by_one = zip(part.unbind(), truth.unbind(), strict=True)
                loss = torch.stack(
                    [
                        self._registered(name, rows.start + i, *one)
                        for i, one in enumerate(one_by_one)
                    ]
                )
                weight = torch.ones_like(loss)
                if self.weights is not None:
                    weight = self.weights[rows].gather(1, truth)
                    loss = loss * weight
            losses.append(loss)
            weights.append(weight)
        return torch.cat(losses), torch.cat(weights)

    def _registered(self, name: str, member: int, logits: Tensor, labels: Tensor) -> Tensor:
        loss = registered_loss(name, logits, labels, self.runs[member : member + 1])
        finite = loss.detach().isfinite().all() | ~logits.detach().isfinite().all()
        self.broken[member].logical_or_(~finite)
        return loss


def registered_loss(name: str, logits: Tensor, labels: Tensor, runs: Sequence[str]) -> Tensor:
    """logits float32 [n, K] of one member, labels int64 [n] → losses float32 [n]. OwnCodeError of
    `runs` where the function fails, or gives something else."""
    loss = call("loss", name, (logits, labels), runs)
    where = f"train.loss {name!r} gives"
    if not isinstance(loss, Tensor) or loss.shape != labels.shape:
        found = list(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise OwnCodeError(
            f"{where} {found} for {len(labels)} images; one loss for each, [{len(labels)}], is "
            "needed (without a mean).",
            runs,
        )
    if not loss.is_floating_point() or loss.device != logits.device:
        raise OwnCodeError(
            f"{where} {loss.dtype} on {loss.device}; floats on {logits.device} are needed.", runs
        )
    if logits.requires_grad and not loss.requires_grad:
        raise OwnCodeError(
            f"{where} what has no gradient: compute it from the logits by torch's operators.", runs
        )
    return loss.float()
