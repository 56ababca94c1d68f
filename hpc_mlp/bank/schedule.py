"""The learning rate as a function of the step: no state, nothing to save or to step twice."""

from __future__ import annotations

import math

from hpc_mlp.config.sections import OptimConfig, ScheduleConfig


def learning_rate(
    schedule: ScheduleConfig, optim: OptimConfig, step: int, steps_per_epoch: int, epochs: int
) -> float:
    """The rate of global step `step` (from 0). Steps are counted on the global batch, so the rate
    does not depend on the number of processes. Linear warm-up from 1/n of the peak over
    `warmup_epochs`, then the schedule:

    - constant: lr
    - step: lr · gamma^⌊epochs since warm-up / step_epochs⌋
    - cosine: from lr to lr · final_fraction (SGDR without restarts, arXiv 1608.03983)
    - onecycle: half-cosine up from lr/25 over `peak_fraction` of the run, then down to
      lr · final_fraction (arXiv 1708.07120); it has its own warm-up"""
    total = steps_per_epoch * epochs
    warmup = round(schedule.warmup_epochs * steps_per_epoch)
    if schedule.name == "onecycle":
        peak = max(1, round(schedule.peak_fraction * total))
        if step < peak:
            return _cosine(optim.lr / 25, optim.lr, step / peak)
        return _cosine(
            optim.lr, optim.lr * schedule.final_fraction, (step - peak) / max(1, total - 1 - peak)
        )
    if step < warmup:
        return optim.lr * (step + 1) / warmup
    if schedule.name == "step":
        epochs_since = (step - warmup) / steps_per_epoch
        return optim.lr * schedule.gamma ** math.floor(epochs_since / schedule.step_epochs + 1e-9)
    if schedule.name == "cosine":
        done = (step - warmup) / max(1, total - 1 - warmup)
        return _cosine(optim.lr, optim.lr * schedule.final_fraction, done)
    return optim.lr


def _cosine(start: float, end: float, fraction: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * fraction))
