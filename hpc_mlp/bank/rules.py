"""Updates that torch has no fused kernel for: Lion and Muon, of members' rows of stacked tensors.

Nothing asks a device for an answer: the step is captured as a CUDA graph.

Legend: V members, H outputs, D inputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hpc_mlp.bank import matmul
from hpc_mlp.bank.clip import member_norms
from hpc_mlp.config.sections import OptimConfig

# A number, or where a step is captured a tensor of the device.
Rate = float | Tensor

# The quintic of Newton–Schulz, its steps and the least norm: Jordan's, as in torch.optim.Muon.
QUINTIC = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5
LEAST_NORM = 1e-7


def lion(
    parameters: list[Tensor],
    gradients: list[Tensor],
    momenta: list[Tensor],
    optim: OptimConfig,
    decay: float,
    rate: Rate,
) -> None:
    """Chen et al. 2023, arXiv 2302.06675, algorithm 2, in place; decay is decoupled:
    θ ← θ − rate (sign(β₁ m + (1 − β₁) g) + decay θ), then m ← β₂ m + (1 − β₂) g"""
    first, second = optim.betas
    steps = [momentum.clone() for momentum in momenta]
    _descend(steps, gradients, first - 1, -1.0)
    torch._foreach_sign_(steps)
    _descend(parameters, steps, rate, decay)
    _descend(momenta, gradients, second - 1, -1.0)


def _descend(tensors: list[Tensor], gradients: list[Tensor], rate: Rate, decay: float) -> None:
    """x ← x − rate (g + decay x) in one pass, by torch's kernel; so rate β − 1 and decay −1 give
    β x + (1 − β) g"""
    torch._fused_sgd_(
        tensors,
        gradients,
        [],
        weight_decay=decay,
        momentum=0.0,
        lr=rate,
        dampening=0.0,
        nesterov=False,
        maximize=False,
        is_first_step=False,
    )


def muon(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    momenta: Sequence[Tensor],
    optim: OptimConfig,
    decay: float,
    rate: Rate,
) -> None:
    """Jordan 2024, https://kellerjordan.github.io/posts/muon/, as torch.optim.Muon does it, of
    matrices [V, H, D] in place: m ← μ m + (1 − μ) g,
    θ ← θ − rate (0.2 √max(H, D) · orthogonal(m, or with Nesterov (1 − μ) g + μ m) + decay θ)

    0.2 √max(H, D) gives the update the size that AdamW's has, so that one rate serves both (Liu et
    al. 2025, arXiv 2502.16982, section 2.2; torch calls it "match_rms_adamw").

    Products and sums are rounded one by one: where a kernel multiplies and adds at once (`lerp`,
    `alpha`), what does not fill a vector is rounded differently, and a member's bits would depend
    on its neighbours and on the threads."""
    for parameter, gradient, momentum in zip(parameters, gradients, momenta, strict=True):
        # Of a convolution: all that belongs to an output is a row.
        fresh = gradient.reshape(momentum.shape) * (1 - optim.momentum)
        momentum.mul_(optim.momentum).add_(fresh)
        update = fresh.add_(momentum * optim.momentum) if optim.nesterov else momentum
        size = 0.2 * max(parameter.shape[1:]) ** 0.5
        if decay:
            parameter.mul_(1 - rate * decay)
        parameter.sub_(orthogonal(update).mul_(rate * size))


def orthogonal(matrices: Tensor) -> Tensor:
    """About U Vᵀ of each matrix U S Vᵀ, float32 [V, H, D], by Newton–Schulz: singular values come
    to lie between 0.5 and 1.5, those of 0 stay. In float32; torch's own is in bfloat16."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    norms = member_norms(matrices, len(matrices)).clamp(min=LEAST_NORM)
    x = (x / norms.view(-1, 1, 1)).contiguous()
    a, b, c = QUINTIC
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = matmul.product(x, x.mT)
        polynomial = matmul.product(gram, gram).mul_(c).add_(gram.mul_(b))
        x = matmul.product(polynomial, x).add_(x.mul_(a))
    return x.mT if tall else x
