"""Steps captured and replayed, without a GPU: the GPU's branches on the CPU's tensors
(tests/taped.py)."""

from __future__ import annotations

import gc
import itertools
import weakref
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from support.banks import BankUnderTest, specs_of
from support.fragile import variant
from support.matrix import FAULTS, REAL_COMPUTE, worst_difference
from support.process import result, timeless
from support.taped import gpu_branch
from torch import Tensor

from hpc_mlp.bank.step import TrainStep
from hpc_mlp.config.plan import TrainOptions
from hpc_mlp.data.remote import load_manifest
from hpc_mlp.errors import HpcMlpWarning
from hpc_mlp.training import session, trainer
from hpc_mlp.training.state import BankState
from hpc_mlp.training.trial import member_bytes

SMALL = "model.hidden=[24,16]"
# Eight steps an epoch, the last of which is smaller and not captured.
SHORT = "train.batch_size=200"


@pytest.mark.parametrize(
    ("name", "banks"),
    [
        ("optimizers side by side", 1),
        ("lion and muon", 1),
        ("clipped, averaged weights", 1),
        ("mixup, smoothing, class weights", 1),
        ("members that leave", 3),
        ("a cnn beside MLPs", 1),
        ("residual with dropout", 1),
    ],
)
def test_a_captured_step_is_a_function_of_its_buffers(
    name: str, banks: int, digits: Path, tmp_path: Path
) -> None:
    """Replayed with other images, draws and rates, and captured anew when members leave, it trains
    as the CPU does."""
    counts = dict[str, int]()
    assert worst_difference(name, digits, tmp_path, gpu_branch(counts), SHORT, cpu=True) < 3e-6
    assert counts == {"captures": banks, "replays": 7 * max(2, banks)}


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_capture_that_fails_leaves_no_trace(failing: int, digits: Path, tmp_path: Path) -> None:
    """In one of the two steps before it, or itself: the run goes on without, as if there had been
    none."""
    calls = itertools.count()

    def compute(self: Any, *arguments: Any) -> None:
        REAL_COMPUTE(self, *arguments)
        if next(calls) == failing:
            raise RuntimeError("planted")

    counts = dict[str, int]()
    with pytest.warns(HpcMlpWarning, match="not captured .planted"):
        device = gpu_branch(counts, (TrainStep, "compute", compute))
        assert worst_difference("adamw, cosine", digits, tmp_path, device, SHORT, cpu=True) < 3e-6
    assert counts["replays"] == 0


def test_where_memory_runs_out_a_bank_goes_on_in_halves(digits: Path, tmp_path: Path) -> None:
    """Should more be asked for than was estimated."""

    def compute(self: Any, *arguments: Any) -> None:
        if len(self.bank) > 1:
            raise torch.OutOfMemoryError("planted")
        REAL_COMPUTE(self, *arguments)

    specs = specs_of("all", [0], SMALL, SHORT, "train.epochs=1")
    with (
        gpu_branch(None, (TrainStep, "compute", compute)),
        pytest.warns(HpcMlpWarning, match="planted"),
    ):
        assert session.train_specs(digits, specs, tmp_path, TrainOptions(cpu=True)) == 0
    assert {result(tmp_path / spec.name)["bank_size"] for spec in specs} == {1}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_seen(fault: str, digits: Path, tmp_path: Path) -> None:
    """Else the comparison above would say nothing."""
    with FAULTS[fault]:
        assert (
            worst_difference("adamw, cosine", digits, tmp_path, gpu_branch(), SHORT, cpu=True)
            > 1e-3
        )


def test_a_bank_that_was_left_is_freed_without_the_collector() -> None:
    """A bank is rebuilt at each departure of a member; what kept the old one would keep the
    device's memory."""
    gc.collect()
    gc.disable()
    try:
        with gpu_branch() as counts:
            test = BankUnderTest(specs_of("all", [0], SMALL), batch=8, graph=True)
            test.train(2)
            held = [weakref.ref(x) for x in (test.bank, test.optimizer, *test.bank.parameters())]
            assert counts["replays"] == 2
            del test
            assert not [x() for x in held if x() is not None]
    finally:
        gc.enable()


def test_a_bank_is_let_go_before_the_next_is_built(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When members leave it: the two do not fit the device beside each other."""
    seen, alive = list[weakref.ref[Any]](), list[int]()

    class Seen(BankState):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            alive.append(sum(state() is not None for state in seen))
            super().__init__(*arguments, **options)
            seen.append(weakref.ref(self.bank))

    monkeypatch.setattr(trainer, "BankState", Seen)
    gc.disable()
    try:
        with gpu_branch():
            specs = specs_of("baseline", [0], SMALL, SHORT, "train.epochs=1:3:1")
            assert session.train_specs(digits, specs, tmp_path, TrainOptions(cpu=True)) == 0
    finally:
        gc.enable()
    assert alive == [0, 0, 0]


def test_a_model_that_is_not_captured_leaves_the_others_their_graph(
    digits: Path, tmp_path: Path
) -> None:
    """And their bits: it trains in a bank of its own, but on a CPU, where nothing is captured, with
    them."""
    own = variant(tmp_path, "nowhere", 0)
    both = specs_of(f"baseline,{own},dropout", [0], SMALL, SHORT, "train.epochs=2")
    assert session.train_specs(digits, both, tmp_path / "cpu", TrainOptions(cpu=True)) == 0
    with gpu_branch() as counts:
        assert session.train_specs(digits, both, tmp_path / "both", TrainOptions(cpu=True)) == 0
        assert counts == {"captures": 1, "replays": 14}
        for kind in ("mlp", "fragile"):
            specs = [spec for spec in both if spec.config.model.kind == kind]
            assert (
                session.train_specs(digits, specs, tmp_path / "apart", TrainOptions(cpu=True)) == 0
            )
    for spec in both:
        name = spec.name
        assert result(tmp_path / "cpu" / name)["bank_size"] == 3
        assert result(tmp_path / "both" / name)["bank_size"] == (1 if name == "bad-s0" else 2)
        assert timeless(tmp_path / "both" / name) == timeless(tmp_path / "apart" / name)


def test_a_bank_is_as_large_as_the_memory_of_the_device(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU. One that does not fit by itself is tried all the same."""
    specs = specs_of("all", [0], "model.hidden=[1000],[24]", SHORT, "train.epochs=1")
    large = member_bytes(specs[0], load_manifest(digits))
    monkeypatch.setattr("hpc_mlp.training.banks.free_memory", lambda device: int(2.5 * large / 0.9))
    with gpu_branch() as counts:
        assert session.train_specs(digits, specs, tmp_path / "gpu", TrainOptions(cpu=True)) == 0
    sizes = [result(tmp_path / "gpu" / spec.name)["bank_size"] for spec in specs]
    assert sizes == [2, 2, 6, 6, 6, 6, 6, 6] and counts["captures"] == 2
    monkeypatch.setattr("hpc_mlp.training.banks.free_memory", lambda device: 0)
    with gpu_branch():
        assert (
            session.train_specs(digits, specs[:2], tmp_path / "none", TrainOptions(cpu=True)) == 0
        )
    assert [result(run)["bank_size"] for run in (tmp_path / "none").iterdir()] == [1, 1]


def metadata(parameter: Tensor) -> dict[str, Any]:
    """Of the parameter's AccumulateGrad node: the one that an autograd graph still holds, else a
    new one."""
    node = parameter.view_as(parameter).grad_fn
    assert node is not None and node.next_functions[0][0] is not None
    # torch's stubs say that it is a method.
    return cast(dict[str, Any], node.next_functions[0][0].metadata)


@pytest.mark.parametrize("branch", [nullcontext, gpu_branch])
def test_no_autograd_graph_outlives_its_step(branch: Any) -> None:
    """A node that does belongs to the stream of its step: a later capture on another stream meets
    it and dies, at each resumption anew."""
    with branch():
        test = BankUnderTest(specs_of("all", [0], SMALL), batch=8)
        test.train(1)
    trained = {name: p for name, p in test.bank.named_parameters() if p.requires_grad}
    for parameter in trained.values():
        metadata(parameter)["seen"] = True
    assert trained
    assert not [name for name, parameter in trained.items() if "seen" in metadata(parameter)]


def test_a_second_training_in_a_process_gets_the_device_it_asks_for(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ends where the device is known, before anything is trained on it."""

    class Told(BaseException):
        pass

    class Telling(Accelerator):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            raise Told(self.device.type)

    monkeypatch.setattr(session, "Accelerator", Telling)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for cpu, device in ((True, "cpu"), (False, "cuda"), (True, "cpu")):
        with pytest.raises(Told) as told:
            session.train_specs(
                digits, specs_of("baseline", [0], SMALL), tmp_path, TrainOptions(cpu=cpu)
            )
        assert str(told.value) == device
    AcceleratorState._reset_state(reset_partial_state=True)
