"""A model that fails does so alone: the others end with the bits that they have without it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.fragile import variant
from support.process import Cli, command, on_cpu, run_process, set_keys, timeless

import hpc_mlp

# (phase, steps before); the digits have 45 steps an epoch.
CASES = {
    "construction": ("construction", 0),
    "first step": ("training", 0),
    "before a checkpoint": ("training", 10),
    "after a checkpoint": ("training", 50),
    "backward": ("backward", 60),
    "first evaluation": ("evaluation", 0),
    "second evaluation": ("evaluation", 60),
    "logits of another shape": ("shape", 0),
}
SETTINGS = ("train.epochs=2", "model.hidden=[16]", "train.checkpoint_every=20 steps")
SMALL = set_keys(*SETTINGS)
HEALTHY = "baseline,dropout_batchnorm"


@pytest.fixture(scope="module")
def alone(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two without a third."""
    runs = tmp_path_factory.mktemp("alone")
    hpc_mlp.train(digits, variants=HEALTHY, runs=runs, settings=SETTINGS, cpu=True)
    return runs


def check_same(alone: Path, runs: Path) -> None:
    for name in ("baseline-s0", "dropout_batchnorm-s0"):
        assert not (runs / name / "failed.json").exists()
        assert (runs / name / "best.safetensors").read_bytes() == (
            alone / name / "best.safetensors"
        ).read_bytes()
        assert (runs / name / "predictions.npz").read_bytes() == (
            alone / name / "predictions.npz"
        ).read_bytes()
        for one, other in zip(timeless(runs / name), timeless(alone / name), strict=True):
            # Processes that share batches sum it up in another order.
            assert one.pop("train_loss") == pytest.approx(other.pop("train_loss"), rel=1e-5)
            assert one == other


def failure(run: Path) -> str:
    record = json.loads((run / "failed.json").read_text())
    assert record["status"] == "failed" and not (run / "result.json").exists()
    assert "fragile.py" in record["traceback"] or "logits" in record["error"]
    error: str = record["error"]
    return error


@pytest.mark.parametrize("case", CASES)
def test_a_failing_member_fails_alone(
    digits: Path, alone: Path, tmp_path: Path, cli: Cli, case: str
) -> None:
    where, at = CASES[case]
    bad = variant(tmp_path, where, at)
    runs = tmp_path / "runs"
    done = cli("train", digits, "--runs", runs, "--variants", f"{HEALTHY},{bad}", *SMALL, "--cpu")
    assert done.exit_code == 1, done.output
    assert where in failure(runs / "bad-s0") or where == "shape"
    assert "bad-s0" in done.output and "failed" in done.output
    check_same(alone, runs)


def test_one_that_fails_at_its_test_fails_alone(
    digits: Path, alone: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hpc_mlp.bank.evaluate import evaluate as real_evaluate
    from hpc_mlp.training import finish

    def evaluate(module: Any, *arguments: Any) -> object:
        if type(module).__name__ == "Fragile":
            raise ValueError("it breaks in the test; fragile.py")
        return real_evaluate(module, *arguments)

    monkeypatch.setattr(finish, "evaluate", evaluate)
    bad = variant(tmp_path, "nowhere", 0)
    runs = tmp_path / "runs"
    done = cli("train", digits, "--runs", runs, "--variants", f"{HEALTHY},{bad}", *SMALL, "--cpu")
    assert done.exit_code == 1 and "in the test" in failure(runs / "bad-s0")
    check_same(alone, runs)
    monkeypatch.undo()
    again = cli("train", digits, "--runs", runs, "--variants", f"{HEALTHY},{bad}", *SMALL, "--cpu")
    assert again.exit_code == 0 and not (runs / "bad-s0" / "failed.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["members", "data"])
@pytest.mark.parametrize("case", ["first step", "backward", "first evaluation"])
def test_also_on_several_processes(
    digits: Path, alone: Path, tmp_path: Path, parallel: str, case: str
) -> None:
    bad = variant(tmp_path, *CASES[case])
    runs = tmp_path / "runs"
    processes = ("--processes", 2, "--parallel", parallel)
    variants = ("--variants", f"{HEALTHY},{bad}")
    done = run_process(
        command("train", digits, "--runs", runs, *variants, *SMALL, "--cpu", *processes)
    )
    assert done.returncode == 1, done.stderr
    assert CASES[case][0] in failure(runs / "bad-s0")
    check_same(alone, runs)


@pytest.mark.parametrize(
    "hidden", ["[10000000000]", "[100000,100000]", "[512,10000000000000000000]"]
)
def test_a_model_that_memory_cannot_hold_is_refused(
    digits: Path, tmp_path: Path, cli: Cli, hidden: str
) -> None:
    """Before anything is written, with what it would need."""
    runs = tmp_path / "runs"
    done = cli("train", digits, "--runs", runs, *on_cpu("baseline", f"model.hidden={hidden}"))
    assert done.exit_code == 2 and not runs.exists(), done.output
    assert "baseline-s0" in done.output or "model.hidden" in done.output
    assert "GiB" in done.output or len(hidden) > 20
    assert "Traceback" not in done.output
