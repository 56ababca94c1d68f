"""The GPU path rehearsed without one: on the CPU, and on a pretended device (tests/rehearsal/device.py tells how)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY
from test_bank import BankUnderTest, specs_of
from torch import Tensor
from torch.autograd.graph import Node

from hpc_mlp.training import session

HERE = Path(__file__).parent
SMALL = "model.hidden=[24,16]"


def accumulator(parameter: Tensor) -> Node:
    """The parameter's AccumulateGrad node: the one that an autograd graph still holds, else a new one."""
    node = parameter.view_as(parameter).grad_fn
    assert node is not None and node.next_functions[0][0] is not None
    return node.next_functions[0][0]


def test_no_autograd_graph_outlives_its_step() -> None:
    """A node that does belongs to the stream of its step: a later capture on another stream meets it and dies, at each
    resumption anew."""
    test = BankUnderTest(specs_of("all", [0], SMALL), batch=8)
    test.train(1)
    trained = {name: p for name, p in test.bank.named_parameters() if p.requires_grad}
    for parameter in trained.values():
        accumulator(parameter).metadata["seen"] = True
    assert trained
    assert not [name for name, parameter in trained.items() if "seen" in accumulator(parameter).metadata]


def test_a_second_training_in_a_process_gets_the_device_it_asks_for(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ends where the device is known, before anything is trained on it."""

    class Told(BaseException):
        pass

    class Accelerator(session.Accelerator):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            raise Told(self.device.type)

    monkeypatch.setattr(session, "Accelerator", Accelerator)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for cpu, device in ((True, "cpu"), (False, "cuda"), (True, "cpu")):
        with pytest.raises(Told) as told:
            session.train_specs(digits, specs_of("baseline", [0], SMALL), tmp_path, cpu=cpu)
        assert str(told.value) == device
    session.AcceleratorState._reset_state(reset_partial_state=True)


def rehearse(*arguments: str) -> None:
    """pytest on the pretended device, in a process of its own since its runtime is preloaded."""
    device = HERE / "rehearsal" / "device.py"
    why = subprocess.run(
        [sys.executable, device, "--check"], capture_output=True, text=True, timeout=60
    ).stderr
    if why and os.environ.get("CI") != "true":
        pytest.skip(why.strip())
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    }
    done = subprocess.run(
        [sys.executable, device, "-m", "pytest", "-W", "error:The AccumulateGrad node", *arguments],
        cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=550,
    )  # fmt: skip
    assert done.returncode == 0 and " passed" in done.stdout and " skipped" not in done.stdout, (
        done.stdout + done.stderr
    )


def test_what_a_captured_step_asks_of_the_device() -> None:
    rehearse("tests/rehearsal/check_step.py")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("check", ["check_training.py", "check_two_devices.py"])
def test_trainings_on_the_emulated_device(check: str) -> None:
    rehearse(f"tests/rehearsal/{check}")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_gpu_tests_pass_on_the_emulated_device() -> None:
    rehearse("-p", "emulate_all", "-m", "gpu", "tests/test_gpu.py")
