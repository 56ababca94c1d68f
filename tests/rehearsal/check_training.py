"""Whole trainings on the emulated device: as on the CPU, whatever the settings. In a process
started by device.py."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from device import noted
from emulator import emulated
from support.banks import specs_of
from support.matrix import FAULTS, REAL_COMPUTE, SETTINGS, worst_difference
from support.process import timeless

from hpc_mlp.bank import step as step_module
from hpc_mlp.bank.matmul import weight_gradient
from hpc_mlp.errors import HpcMlpWarning
from hpc_mlp.training.session import train_specs


@pytest.mark.parametrize("name", SETTINGS)
def test_the_device_trains_as_the_cpu(name: str, digits: Path, tmp_path: Path) -> None:
    assert worst_difference(name, digits, tmp_path, emulated()) < 3e-6


@pytest.mark.parametrize(
    ("precision", "kind"), [("fp32", "fp32"), ("tf32", "tf32"), ("bf16", "mixed")]
)
def test_products_have_the_precision_that_was_asked_for(
    precision: str, kind: str, digits: Path, tmp_path: Path
) -> None:
    """And convolutions, which cuDNN makes and the rehearsal cannot see: torch's switch for them."""
    # Torch's default.
    torch.backends.cudnn.allow_tf32 = True
    specs = specs_of(
        "baseline", [0], "model.hidden=[24]", "train.epochs=1", f"train.precision={precision}"
    )
    with emulated(), noted() as notes:
        assert train_specs(digits, specs, tmp_path) == 0
    products = {line.split()[1] for line in notes if line.startswith("PRODUCT")}
    assert products and products <= {kind, "fp32"} and kind in products
    assert torch.backends.cudnn.allow_tf32 == (precision == "tf32")


@pytest.mark.parametrize("shape", [(32, 11), (3, 32, 11)], ids=str)
def test_a_gradient_in_mixed_precision_is_not_rounded(shape: tuple[int, ...]) -> None:
    """For members that share their input, and for those that do not."""
    x, dy = torch.randn(shape).bfloat16(), torch.randn(3, 32, 5).bfloat16()
    with emulated():
        out = torch.empty(3, 5, 11, device="cuda")
        found = weight_gradient(dy.cuda(), x.cuda(), out, 55).cpu()
    assert torch.allclose(found, dy.float().mT @ x.float(), atol=1e-5)
    assert not torch.equal(found, found.bfloat16().float())


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_seen(fault: str, digits: Path, tmp_path: Path) -> None:
    """Else the comparison above would say nothing."""
    with FAULTS[fault]:
        assert worst_difference("adamw, cosine", digits, tmp_path, emulated()) > 1e-3


def test_a_step_that_cannot_be_captured_is_computed(digits: Path, tmp_path: Path) -> None:
    """One that asks the device for an answer, which CUDA refuses while a stream captures."""

    def asks(self: Any, *arguments: Any) -> None:
        REAL_COMPUTE(self, *arguments)
        assert self.loss_sum.sum().item() >= 0

    with (
        mock.patch.object(step_module.TrainStep, "compute", asks),
        pytest.warns(HpcMlpWarning, match="not captured") as told,
    ):
        assert worst_difference("adamw, cosine", digits, tmp_path, emulated()) < 3e-6
    assert len(told) == 1


class Stop(BaseException):
    pass


@contextmanager
def killed_before_step(number: int) -> Iterator[None]:
    """A crash right before global step `number`, after a checkpoint at each."""
    seen = 0

    def compute(self: Any, *arguments: Any) -> None:
        nonlocal seen
        if seen == number:
            raise Stop
        seen += 1
        call(self, *arguments)

    call = step_module.TrainStep.__call__
    with mock.patch.object(step_module.TrainStep, "__call__", compute):
        yield


def test_killed_before_any_step_a_run_ends_in_the_same_bits(digits: Path, tmp_path: Path) -> None:
    """The last batch of an epoch is a smaller one and no graph: one step in eight here."""
    specs = specs_of(
        "batchnorm,dropout",
        [0],
        "model.hidden=[16]",
        "train.epochs=1",
        "train.batch_size=200",
        "train.checkpoint_every=0.000001",
    )
    with emulated():
        assert train_specs(digits, specs, tmp_path / "whole") == 0
        for number in range(8):
            runs = tmp_path / str(number)
            with killed_before_step(number), pytest.raises(Stop):
                train_specs(digits, specs, runs)
            assert train_specs(digits, specs, runs) == 0
            for spec in specs:
                whole, resumed = tmp_path / "whole" / spec.name, runs / spec.name
                assert (whole / "best.safetensors").read_bytes() == (
                    resumed / "best.safetensors"
                ).read_bytes()
                assert timeless(whole) == timeless(resumed)
