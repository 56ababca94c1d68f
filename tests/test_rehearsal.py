"""The GPU path rehearsed without one: what a captured step and a second training rely on, shown on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_bank import BankUnderTest, specs_of
from torch import Tensor
from torch.autograd.graph import Node

from hpc_mlp.training import session

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
