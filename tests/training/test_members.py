"""When a run of a bank stops, which epoch was its best, and what its result says."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_mlp.config.plan import make_specs
from hpc_mlp.runs.folder import RunFolder
from hpc_mlp.training.members import Member


def member(*sets: str) -> Member:
    (spec,) = make_specs("baseline", sets=sets)
    return Member(spec, RunFolder(Path("nowhere")))


def line(
    epoch: int, val_loss: float, train_loss: float = 1.0, accuracy: float = 0.5
) -> dict[str, Any]:
    return {
        "epoch": epoch,
        "val_loss": val_loss,
        "train_loss": train_loss,
        "val_accuracy": accuracy,
        "seconds": 2.0,
    }


def train(run: Member, losses: list[float], **others: float) -> list[bool]:
    """Epochs until it stops; whether each was the best so far."""
    best = []
    for epoch, loss in enumerate(losses, 1):
        best.append(run.finish_epoch(line(epoch, loss, **others), 10))
        if run.stopped:
            break
    return best


@settings(max_examples=100, deadline=None)
@given(
    losses=st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.4, 0.5]), min_size=12, max_size=12),
    epochs=st.integers(1, 10),
    patience=st.integers(1, 4),
    early=st.booleans(),
)
def test_a_run_stops_at_its_last_epoch_or_once_patience_is_spent(
    losses: list[float], epochs: int, patience: int, early: bool
) -> None:
    run = member(
        f"train.epochs={epochs}",
        f"train.patience={patience}",
        f"train.early_stopping={str(early).lower()}",
    )
    best = train(run, losses)
    count = len(best)
    seen = [losses[: n + 1] for n in range(count)]
    assert best == [part[-1] < min(part[:-1], default=math.inf) for part in seen]
    assert (
        run.best_epoch == losses.index(min(losses[:count])) + 1
        and run.best == run.history[run.best_epoch - 1]
    )
    # how long ago the best was, after each epoch
    waited = [len(part) - 1 - part.index(min(part)) for part in seen]
    assert all(n < patience for n in waited[:-1]) or not early
    if run.stopped == "epochs":
        assert count == epochs
    else:
        assert run.stopped == "early" and early and waited[-1] >= patience and count < epochs
    assert len(run.history) == count and run.images == 10 * count


@pytest.mark.parametrize(
    "val_loss, train_loss", [(math.nan, 1.0), (1.0, math.nan), (math.inf, 1.0), (1.0, math.inf)]
)
def test_a_loss_that_is_not_finite_ends_the_run(val_loss: float, train_loss: float) -> None:
    run = member()
    assert run.finish_epoch(line(1, 0.5), 10)
    assert not run.finish_epoch(line(2, val_loss, train_loss), 10)
    assert run.stopped == "diverged" and run.best_epoch == 1
    result = run.result({}, 5, "cpu", 1)
    assert (result["status"], result["stopped"], result["best_val_loss"]) == (
        "diverged",
        "diverged",
        0.5,
    )


def test_a_run_that_diverges_at_once_has_no_best_epoch() -> None:
    run = member()
    run.finish_epoch(line(1, math.nan), 10)
    result = run.result({}, 5, "cpu", 1)
    assert run.best is None and (
        result["best_epoch"],
        result["best_val_loss"],
        result["best_val_accuracy"],
    ) == (0, None, None)
    assert result["images_per_second"] == 0.0


def test_the_monitor_decides_what_is_best() -> None:
    lines = [
        line(1, 0.3, accuracy=0.7),
        line(2, 0.1, accuracy=0.6),
        line(3, 0.2, accuracy=0.7),
        line(4, 0.4, accuracy=0.1),
    ]
    for monitor, wanted in (("loss", 2), ("accuracy", 3), ("last", 4)):
        run = member(f"train.monitor={monitor}", "train.patience=4")
        for one in lines:
            run.finish_epoch(one, 10)
        assert run.best_epoch == wanted


def test_time_that_is_up_ends_a_run_after_its_epoch() -> None:
    run = member("train.max_seconds=10")
    assert run.seconds_left == 10 and math.isinf(member().seconds_left)
    run.seconds = 9.5
    assert run.finish_epoch(line(1, 0.5), 10) and run.stopped is None and run.seconds_left == 0.5
    assert run.epoch_seconds == 7.5
    run.seconds = 10
    assert not run.finish_epoch(line(2, 0.5), 10) and run.stopped == "max_seconds"
    unlimited = member()
    unlimited.seconds = 1e9
    unlimited.finish_epoch(line(1, 0.5), 10)
    assert unlimited.stopped is None


def test_an_epoch_that_was_cut_is_the_last_and_may_be_the_best() -> None:
    run = member("train.max_seconds=10")
    run.finish_epoch(line(1, 0.5), 10)
    assert (
        run.finish_epoch(line(2, 0.4), 5, cut=True)
        and run.stopped == "max_seconds"
        and run.images == 15
    )


def test_the_result_says_what_happened() -> None:
    run = member("train.epochs=3")
    run.seconds = 8.0
    train(run, [0.5, 0.3, 0.4], accuracy=0.75)
    assert run.result({"test": {"accuracy": 0.9}}, 123, "cpu", 4, 1.5) == {
        "status": "done",
        "stopped": "epochs",
        "epochs_run": 3,
        "best_epoch": 2,
        "best_val_loss": 0.3,
        "best_val_accuracy": 0.75,
        "best_val_f1": None,
        "test": {"accuracy": 0.9},
        "temperature": 1.5,
        "num_parameters": 123,
        "seconds": 8.0,
        "images_per_second": 30 / 8,
        "device": "cpu",
        "bank_size": 4,
    }


def test_a_run_goes_on_from_its_state_as_if_nothing_had_happened() -> None:
    whole, first = member("train.patience=2"), member("train.patience=2")
    first.seconds = whole.seconds = 5.0
    train(first, [0.5, 0.3, 0.4])
    train(whole, [0.5, 0.3, 0.4])
    rest = member("train.patience=2")
    rest.restore(json.loads(json.dumps(first.state())))
    assert rest.state() == first.state() and rest.best_epoch == 2
    for run in (whole, rest):
        run.finish_epoch(line(4, 0.6), 10)
    assert rest.stopped == whole.stopped == "early"
    assert rest.state() == whole.state()
    assert rest.result({}, 1, "cpu", 1) == whole.result({}, 1, "cpu", 1)
    again = member()
    again.restore(whole.state())
    assert again.stopped == "early"


def test_the_state_says_how_the_images_were_read() -> None:
    run = member()
    run.data_mode = "streaming"
    assert run.state()["data_mode"] == "streaming"
