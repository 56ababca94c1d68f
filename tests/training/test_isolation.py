"""A model that fails does so alone: the others end with the bits that they have without it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.process import Cli, command, run_process, timeless

# A linear model that raises in the phase `where`, once it has taken so many steps: its state remembers them.
PLUGIN = """
import torch
from torch import nn
from hpc_mlp.models.registry import register

class Breaks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, module):
        ctx.module = module
        return x.view_as(x)

    @staticmethod
    def backward(ctx, dy):
        ctx.module.reach("backward")
        return dy, None

class Fragile(nn.Module):
    def __init__(self, features, classes, where, at):
        super().__init__()
        self.linear = nn.Linear(features, classes)
        self.where, self.at = where, at
        self.register_buffer("steps", torch.zeros(()))

    def reach(self, place):
        if place == self.where and self.steps >= self.at:
            raise ValueError(f"it breaks in {place}")

    def forward(self, images):
        self.reach("training" if self.training else "evaluation")
        if self.training:
            self.steps += 1
        y = self.linear(images.flatten(1))
        if self.where == "shape":
            y = y[:, :-1]
        return Breaks.apply(y, self) if self.training else y

@register("fragile")
def fragile(config, shape, classes):
    if config.options["where"] == "construction":
        raise KeyError("it breaks in construction")
    return Fragile(shape[0] * shape[1] * shape[2], classes, config.options["where"], config.options["at"])
"""

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
SMALL = ("--set", "train.epochs=2", "--set", "model.hidden=[16]", "--set", "train.checkpoint_every=20 steps")
HEALTHY = "baseline,dropout_batchnorm"


def variant(folder: Path, where: str, at: int) -> Path:
    (folder / "fragile.py").write_text(PLUGIN)
    options = f'options = {{ where = "{where}", at = {at} }}'
    (folder / "bad.toml").write_text(f'plugins = ["fragile.py"]\n[model]\nkind = "fragile"\n{options}\n')
    return folder / "bad.toml"


def same_as_alone(digits: Path, cli: Cli, folder: Path, runs: Path) -> None:
    alone = folder / "alone"
    assert cli("train", digits, "--runs", alone, "--variants", HEALTHY, *SMALL, "--cpu").exit_code == 0
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
def test_a_failing_member_fails_alone(digits: Path, tmp_path: Path, cli: Cli, case: str) -> None:
    where, at = CASES[case]
    bad = variant(tmp_path, where, at)
    runs = tmp_path / "runs"
    done = cli("train", digits, "--runs", runs, "--variants", f"{HEALTHY},{bad}", *SMALL, "--cpu")
    assert done.exit_code == 1, done.output
    assert where in failure(runs / "bad-s0") or where == "shape"
    assert "bad-s0" in done.output and "failed" in done.output
    same_as_alone(digits, cli, tmp_path, runs)


def test_one_that_fails_at_its_test_fails_alone(
    digits: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hpc_mlp.training import finish

    real = finish.evaluate

    def evaluate(module: object, *arguments: object) -> object:
        if type(module).__name__ == "Fragile":
            raise ValueError("it breaks in the test; fragile.py")
        return real(module, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(finish, "evaluate", evaluate)
    bad = variant(tmp_path, "nowhere", 0)
    runs = tmp_path / "runs"
    done = cli("train", digits, "--runs", runs, "--variants", f"{HEALTHY},{bad}", *SMALL, "--cpu")
    assert done.exit_code == 1 and "in the test" in failure(runs / "bad-s0")
    same_as_alone(digits, cli, tmp_path, runs)
    monkeypatch.undo()
    again = cli("train", digits, "--runs", runs, "--variants", f"{HEALTHY},{bad}", *SMALL, "--cpu")
    assert again.exit_code == 0 and not (runs / "bad-s0" / "failed.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["members", "data"])
@pytest.mark.parametrize("case", ["first step", "backward", "first evaluation"])
def test_also_on_several_processes(digits: Path, tmp_path: Path, cli: Cli, parallel: str, case: str) -> None:
    bad = variant(tmp_path, *CASES[case])
    runs = tmp_path / "runs"
    processes = ("--processes", 2, "--parallel", parallel)
    variants = ("--variants", f"{HEALTHY},{bad}")
    done = run_process(command("train", digits, "--runs", runs, *variants, *SMALL, "--cpu", *processes))
    assert done.returncode == 1, done.stderr
    assert CASES[case][0] in failure(runs / "bad-s0")
    same_as_alone(digits, cli, tmp_path, runs)


@pytest.mark.parametrize("hidden", ["[10000000000]", "[100000,100000]", "[512,10000000000000000000]"])
def test_a_model_that_memory_cannot_hold_is_refused(
    digits: Path, tmp_path: Path, cli: Cli, hidden: str
) -> None:
    """Before anything is written, with what it would need."""
    runs = tmp_path / "runs"
    done = cli(
        "train", digits, "--runs", runs, "--variants", "baseline", "--set", f"model.hidden={hidden}", "--cpu"
    )
    assert done.exit_code == 2 and not runs.exists(), done.output
    assert "baseline-s0" in done.output or "model.hidden" in done.output
    assert "GiB" in done.output or len(hidden) > 20
    assert "Traceback" not in done.output
