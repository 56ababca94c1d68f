"""On a CUDA device: the captured step equals the eager one, results are a CPU's, resuming keeps
every bit."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import pytest
import torch
from support.banks import BankUnderTest, specs_of
from support.interrupted import VARIANTS, Guillotine, Killed, specs, tensors
from support.process import metrics, num_correct, result, timeless

from hpc_mlp.bank.bank import Bank, BatchStream
from hpc_mlp.bank.dropout import BatchPosition
from hpc_mlp.bank.loss import BankLoss
from hpc_mlp.bank.optim import BankOptimizer
from hpc_mlp.bank.step import StepBatch, TrainStep
from hpc_mlp.config.assignments import parse_set
from hpc_mlp.config.plan import TrainOptions, parse_variants, plan_runs
from hpc_mlp.config.sections import AugmentConfig
from hpc_mlp.data.remote import load_manifest
from hpc_mlp.machine.processes import Processes
from hpc_mlp.training.batches import ResidentBatchLoader
from hpc_mlp.training.session import train_specs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def cuda_bank(variants: str, *sets: str, graph: bool) -> BankUnderTest:
    test = BankUnderTest(specs_of(variants, [0, 1], *sets), batch=32)
    device = torch.device("cuda")
    test.bank = Bank(test.specs, (1, 4, 4), 5).to(device)
    test.optimizer = BankOptimizer(test.bank)
    loss = BankLoss([spec.config.train for spec in test.specs], [[1] * 5], device)
    test.step = TrainStep(test.bank, test.optimizer, loss, "fp32", graph=graph)
    return test


def on_the_device(runs: Path) -> None:
    """A training that fell back to the CPU would pass, too."""
    assert {result(run)["device"].split(":")[0] for run in runs.iterdir()} == {"cuda"}


def train(test: BankUnderTest, steps: int, *, last: int = 32) -> list[dict[str, torch.Tensor]]:
    """The rate changes from step to step, and the last batch is smaller: neither is part of the
    graph."""
    for t in range(steps):
        size = last if t == steps - 1 else 32
        images, labels = (part.cuda() for part in test.data(t, size))
        position = BatchPosition(0, t, 0, size, size)
        rates = [param_group.optim.lr / (t + 1) for param_group in test.optimizer.param_groups]
        test.step(StepBatch(position, images, labels, full=size == 32), rates)
    torch.cuda.synchronize()
    return [
        {key: tensor.cpu() for key, tensor in state.items()} for state in test.bank.member_states()
    ]


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("optim.name=adamw", "optim.weight_decay=0.1"),
        ("optim.name=sgd", "optim.nesterov=true"),
        ("optim.clip_norm=0.1",),
        ("train.label_smoothing=0.1", "train.class_weights=balanced"),
    ],
    ids=str,
)
def test_the_captured_step_equals_the_eager_one(settings: tuple[str, ...]) -> None:
    captured, eager = (
        train(
            cuda_bank("all,dropout_l2", "model.hidden=[24,16]", *settings, graph=graph), 8, last=9
        )
        for graph in (True, False)
    )
    for one, other in zip(captured, eager, strict=True):
        for key in one:
            assert torch.allclose(one[key].double(), other[key].double(), atol=2e-4), key


def test_the_captured_step_is_one_graph() -> None:
    test = cuda_bank("all", "model.hidden=[24,16]", graph=True)
    train(test, 3)
    assert test.step.graph is not None and test.step.graph.graph is not None


def test_capturing_leaves_no_trace() -> None:
    """Warm-up steps before the capture must not count: one step of either kind from the same
    start."""
    captured, eager = (
        train(cuda_bank("all", "model.hidden=[24]", graph=graph), 1) for graph in (True, False)
    )
    for one, other in zip(captured, eager, strict=True):
        for key in one:
            assert torch.allclose(one[key].double(), other[key].double(), atol=1e-5), key


def test_no_host_round_trips_in_a_step() -> None:
    test = cuda_bank("all", "model.hidden=[24]", graph=True)
    train(test, 2)
    images, labels = (part.cuda() for part in test.data(2))
    torch.cuda.set_sync_debug_mode("error")
    try:
        test.step(
            StepBatch(BatchPosition(0, 2, 0, 32, 32), images, labels),
            [1e-3 for _ in test.optimizer.param_groups],
        )
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_no_host_round_trips_in_feeding_augmented_and_mixed_images(digits: Path) -> None:
    device = torch.device("cuda")
    source = ResidentBatchLoader(digits, load_manifest(digits), device)
    moved = AugmentConfig(horizontal_flip=0.5, rotation=20, shift=0.1, brightness=0.3, erasing=0.5)
    streams = [BatchStream(seed, moved, mixup=0.2) for seed in range(3)]
    batches = source.epoch(streams, 0, 0, 32, Processes())
    first = next(batches)
    torch.cuda.set_sync_debug_mode("error")
    try:
        second = next(batches)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert first.images.shape == second.images.shape and not torch.equal(
        first.images, second.images
    )


@pytest.mark.parametrize("variants", ["all", "baseline,cnn"])
def test_results_are_close_to_those_of_a_cpu(digits: Path, tmp_path: Path, variants: str) -> None:
    sets = parse_set(["model.hidden=[64,32]", "train.epochs=2", "model.channels=[8,16]"])
    runs = plan_runs(parse_variants(variants), [0], (), sets)
    assert train_specs(digits, runs, tmp_path / "cpu", TrainOptions(cpu=True)) == 0
    assert train_specs(digits, runs, tmp_path / "cuda") == 0
    on_the_device(tmp_path / "cuda")
    for spec in runs:
        cpu, cuda = tmp_path / "cpu" / spec.name, tmp_path / "cuda" / spec.name
        for one, other in zip(metrics(cpu), metrics(cuda), strict=True):
            assert one["val_loss"] == pytest.approx(other["val_loss"], rel=1e-2)
        assert abs(num_correct(cpu) - num_correct(cuda)) <= 3


def test_bf16(digits: Path, tmp_path: Path) -> None:
    sets = parse_set(["model.hidden=[64,32]", "train.epochs=2", "train.precision=bf16"])
    runs = plan_runs(parse_variants("all"), [0], (), sets)
    assert train_specs(digits, runs, tmp_path) == 0
    on_the_device(tmp_path)
    for spec in runs:
        lines = metrics(tmp_path / spec.name)
        assert lines[-1]["val_loss"] < lines[0]["val_loss"] < 2.5


def test_killed_and_resumed_the_bits_are_the_same(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With a CNN, since cuDNN has gradients that add up in any order.
    runs_of = functools.partial(specs, "train.keep_checkpoint=true", variants=f"{VARIANTS},cnn")
    assert train_specs(digits, runs_of(), tmp_path / "whole") == 0
    on_the_device(tmp_path / "whole")
    for number in (20, 35, 50, 75):
        runs = tmp_path / f"{number}"
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", Guillotine(os.replace, number, after=False))
            with pytest.raises(Killed):
                train_specs(digits, runs_of(), runs)
        assert train_specs(digits, runs_of(), runs) == 0
        for folder in (tmp_path / "whole").iterdir():
            assert tensors(runs / folder.name / "last.ckpt") == tensors(folder / "last.ckpt")
            assert timeless(runs / folder.name) == timeless(folder)
