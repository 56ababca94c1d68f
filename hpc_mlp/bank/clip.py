"""Gradients clipped by member: one norm and one product for each stacked tensor, whatever the
number of members."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from hpc_mlp.bank.bank import Bank
from hpc_mlp.bank.parts import slices_of_equal
from hpc_mlp.machine.device import branch

# Floats that torch sums up by one thread, for a norm.
_PIECE = 8192


@dataclass(frozen=True)
class _NormGroup:
    """The parameters of v members that are stacked, or of one that is not."""

    # Of all members.
    common: list[str]
    # Of members `rows` alone.
    normed: list[str]
    # int64
    rows: Tensor
    # [v]
    clips: Tensor
    # Bool [v]: not clipped.
    free: Tensor


class Clipping:
    """Scales each member's gradient to a norm of at most its `clip_norm`, as
    `torch.nn.utils.clip_grad_norm_` does.

    A member's norms are taken over the same numbers in the same order whatever stands beside it: so
    are its bits."""

    def __init__(self, bank: Bank, parameters: Collection[str], device: torch.device) -> None:
        self.blocks: list[_NormGroup] = []
        rows = [row for row in bank.tensor_slots() if row.tensor in parameters]
        for _, part in slices_of_equal(bank.block_of[row.tensor] for row in rows):
            block = rows[part]
            members = sorted({row.member for row in block})
            clips = [bank.specs[member].config.optim.clip_norm for member in members]
            if not any(clips):
                continue
            places: dict[str, list[int]] = {}
            for row in block:
                places.setdefault(row.tensor, []).append(row.member - members[0])
            common = [name for name, found in places.items() if len(found) == len(members)]
            normed = [name for name in places if name not in common]
            where = torch.tensor(
                places[normed[0]] if normed else [], dtype=torch.int64, device=device
            )
            limits = torch.tensor([clip or 0.0 for clip in clips], device=device)
            free = torch.tensor([clip is None for clip in clips], device=device)
            self.blocks.append(_NormGroup(common, normed, where, limits, free))

    def __call__(self, gradients: dict[str, Tensor]) -> None:
        """In place; of stacked parameters [v, …]."""
        for block in self.blocks:
            members = len(block.clips)
            common = [gradients[name] for name in block.common]
            normed = [gradients[name] for name in block.normed]
            parts = torch.stack([member_norms(gradient, members) for gradient in common], 1)
            norms = torch.linalg.vector_norm(parts, dim=1)
            if normed:
                more = torch.stack(
                    [member_norms(gradient, len(block.rows)) for gradient in normed], 1
                )
                parts = torch.cat([parts.index_select(0, block.rows), more], 1)
                norms.index_copy_(0, block.rows, torch.linalg.vector_norm(parts, dim=1))
            # As torch divides a number by a tensor.
            scales = (norms + 1e-6).reciprocal_().mul_(block.clips)
            scales = scales.clamp_(max=1.0).masked_fill_(block.free, 1.0)
            if members == 1:
                torch._foreach_mul_(common, scales[0])
                continue
            own = scales.index_select(0, block.rows)
            for gradient, scale in [(g, scales) for g in common] + [(g, own) for g in normed]:
                gradient.mul_(scale.view(-1, *[1] * (gradient.dim() - 1)))


def member_norms(x: Tensor, members: int) -> Tensor:
    """The norm of each member's part of x → [members]. Of pieces on a CPU: a single large sum is
    divided among the threads, which shows."""
    flat = x.reshape(members, x.numel() // members)
    size = flat.shape[1]
    cut = size - size % _PIECE
    if branch(flat) != "cpu" or size <= _PIECE:
        whole: Tensor = torch.linalg.vector_norm(flat, dim=1)
        return whole
    pieces = torch.linalg.vector_norm(flat[:, :cut].view(members, -1, _PIECE), dim=2)
    rest = torch.linalg.vector_norm(flat[:, cut:], dim=1, keepdim=True)
    norms: Tensor = torch.linalg.vector_norm(torch.cat([pieces, rest], 1), dim=1)
    return norms
