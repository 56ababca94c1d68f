"""Learning rates as a function of the step, against torch's schedulers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim.lr_scheduler import LRScheduler

from hpc_mlp.bank.schedule import learning_rate
from hpc_mlp.config.sections import OptimConfig, ScheduleConfig

# An epoch.
STEPS = 40


def rates(epochs: int = 10, lr: float = 0.1, **schedule: object) -> list[float]:
    config = ScheduleConfig.model_validate(schedule)
    return [
        learning_rate(config, OptimConfig(lr=lr), s, STEPS, epochs) for s in range(epochs * STEPS)
    ]


def torch_rates(
    make: Callable[[torch.optim.Optimizer], LRScheduler], lr: float, steps: int
) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = make(optimizer)
    values = []
    for _ in range(steps):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return values


def test_constant() -> None:
    assert set(rates()) == {0.1}


@pytest.mark.parametrize("step_epochs, gamma", [(3, 0.1), (1, 0.5), (2.5, 0.3)])
def test_step_is_step_lr(step_epochs: float, gamma: float) -> None:
    size = round(step_epochs * STEPS)
    wanted = torch_rates(lambda o: torch.optim.lr_scheduler.StepLR(o, size, gamma), 0.1, 10 * STEPS)
    assert rates(name="step", step_epochs=step_epochs, gamma=gamma) == pytest.approx(wanted)


@pytest.mark.parametrize("final", [0.0, 0.25])
def test_cosine_is_cosine_annealing_that_ends_with_the_last_step(final: float) -> None:
    total = 10 * STEPS
    wanted = torch_rates(
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, total - 1, eta_min=0.1 * final),
        0.1,
        total,
    )
    mine = rates(name="cosine", final_fraction=final)
    assert mine == pytest.approx(wanted, abs=1e-9)
    assert mine[0] == 0.1 and mine[-1] == pytest.approx(0.1 * final, abs=1e-12)


def test_onecycle_rises_to_the_peak_and_falls_to_the_end() -> None:
    mine = rates(name="onecycle", peak_fraction=0.25)
    assert mine[0] == pytest.approx(0.1 / 25) and max(mine) == mine[100] == pytest.approx(0.1)
    assert mine[-1] == pytest.approx(0.0, abs=1e-12)
    assert mine[:101] == sorted(mine[:101]) and mine[100:] == sorted(mine[100:], reverse=True)
    # Torch's peak is one step earlier: its phase of n steps ends at n − 1.
    total = 10 * STEPS
    wanted = torch_rates(
        lambda o: torch.optim.lr_scheduler.OneCycleLR(
            o, 0.1, total_steps=total, pct_start=0.25, final_div_factor=1e9
        ),
        0.1,
        total,
    )
    assert max(abs(a - b) for a, b in zip(mine, wanted, strict=True)) < 0.1 * 0.02


@pytest.mark.parametrize("name", ["cosine", "onecycle"])
@pytest.mark.parametrize("steps, begin", [(400, 100), (12, 1), (3, 1), (2, 1)])
def test_a_rate_falls_as_cosine_annealing_that_ends_with_the_last_step(
    name: str, steps: int, begin: int
) -> None:
    """From the end of the rise, at step `begin`, to the last step, however short the run."""
    config = ScheduleConfig.model_validate(
        {
            "name": name,
            "peak_fraction": begin / steps,
            "warmup_epochs": begin / steps,
            "final_fraction": 0.25,
        }
    )
    mine = [learning_rate(config, OptimConfig(lr=0.1), s, steps, 1) for s in range(begin, steps)]
    left = max(1, steps - 1 - begin)
    wanted = torch_rates(
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, left, eta_min=0.1 * 0.25),
        0.1,
        steps - begin,
    )
    assert mine == pytest.approx(wanted, abs=1e-12)


def test_onecycle_begins_low_however_short_its_rise() -> None:
    mine = rates(epochs=1, name="onecycle", peak_fraction=0.001)
    assert mine[0] == pytest.approx(0.1 / 25) and mine[1] == pytest.approx(0.1)


@pytest.mark.parametrize("name", ["constant", "step", "cosine"])
def test_warm_up_is_linear_and_meets_the_schedule(name: str) -> None:
    mine = rates(name=name, warmup_epochs=2)
    warm = [0.1 * (s + 1) / 80 for s in range(80)]
    assert mine[:80] == pytest.approx(warm) and mine[80] == pytest.approx(0.1)
    assert all(0 <= rate <= 0.1 + 1e-12 for rate in mine)


@settings(max_examples=100, deadline=None)
@given(
    name=st.sampled_from(["constant", "step", "cosine", "onecycle"]),
    warmup=st.floats(0, 20),
    steps=st.integers(1, 50),
    epochs=st.integers(1, 12),
    final=st.floats(0, 1),
    gamma=st.floats(0.01, 1),
)
def test_rates_are_finite_and_never_above_the_peak(
    name: str, warmup: float, steps: int, epochs: int, final: float, gamma: float
) -> None:
    config = ScheduleConfig.model_validate(
        {"name": name, "warmup_epochs": warmup, "final_fraction": final, "gamma": gamma}
    )
    for step in range(steps * epochs):
        assert 0 <= learning_rate(config, OptimConfig(lr=0.5), step, steps, epochs) <= 0.5 + 1e-9
