"""Whole trainings on the emulated device: as on the CPU, whatever the settings. In a process started by device.py."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from conftest import metrics, result, timeless
from device import noted
from emulator import emulated
from test_bank import specs_of

from hpc_mlp.bank import step as step_module
from hpc_mlp.errors import HpcMlpWarning
from hpc_mlp.training.session import train_specs

ADAMW = (
    "optim.name=adamw",
    "optim.weight_decay=0.05",
    "optim.decay_bias_and_norm=false",
    "schedule.name=cosine",
)
SETTINGS: dict[str, tuple[str, list[int], tuple[str, ...]]] = {  # variants, seeds, settings
    "defaults": ("all", [0, 1], ()),
    "streaming": ("all", [0, 1], ("data.mode=streaming",)),
    "mixup, smoothing, class weights": (
        "all", [0, 1], ("train.mixup=0.2", "train.label_smoothing=0.1", "train.class_weights=balanced"),
    ),
    "averaged weights": ("all", [0], ("train.ema=0.9",)),
    "augmented": (
        "all", [0, 1],
        ("augment.horizontal_flip=0.5", "augment.shift=0.1", "augment.rotation=10", "augment.brightness=0.2",
         "augment.erasing=0.3"),
    ),
    "sgd": ("all", [0], ("optim.name=sgd", "optim.momentum=0.0", "optim.lr=0.05")),
    "adamw, cosine": ("all,dropout_l2", [0], ADAMW),
    "clipped": ("all", [0, 1], ("optim.clip_norm=0.5",)),
    "residual with dropout": ("dropout", [0, 1], ("model.kind=residual_mlp", "model.blocks=2", "model.hidden=[24,24]")),
    "residual": ("baseline", [0], ("model.kind=residual_mlp", "model.blocks=2", "model.hidden=[24,24]")),
    "a cnn beside MLPs": ("all,cnn", [0], ("model.channels=[8,16]",)),
    "members that leave": ("all", [0], ("train.epochs=1:3:1",)),
    "a last batch of one image": ("all", [0], ("train.batch_size=719",)),
    "gelu": ("all", [0], ("model.activation=gelu",)),
    "silu": ("all", [0], ("model.activation=silu",)),
    "tanh": ("all", [0], ("model.activation=tanh",)),
    "leaky_relu": ("all", [0], ("model.activation=leaky_relu",)),
    "a batch larger than the data": ("all", [0], ("train.batch_size=4000",)),
}  # fmt: skip


def worst_difference(name: str, digits: Path, folder: Path) -> float:
    """Of the validation losses, relative, between the CPU and the emulated device."""
    variants, seeds, sets = SETTINGS[name]
    small = [] if any("hidden" in s for s in sets) else ["model.hidden=[24,16]"]
    small += [] if any("epochs" in s for s in sets) else ["train.epochs=2"]
    specs = specs_of(variants, seeds, *small, *sets)
    assert train_specs(digits, specs, folder / "cpu", cpu=True) == 0
    with emulated():
        assert train_specs(digits, specs, folder / "cuda") == 0
    differences = []
    for spec in specs:
        assert result(folder / "cuda" / spec.name)["device"].startswith("cuda")
        lines = zip(metrics(folder / "cpu" / spec.name), metrics(folder / "cuda" / spec.name), strict=True)
        differences += [abs(cpu["val_loss"] - cuda["val_loss"]) / cpu["val_loss"] for cpu, cuda in lines]
    return max(differences)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_device_trains_as_the_cpu(name: str, digits: Path, tmp_path: Path) -> None:
    assert worst_difference(name, digits, tmp_path) < 3e-6


@pytest.mark.parametrize(("precision", "kind"), [("fp32", "fp32"), ("tf32", "tf32"), ("bf16", "mixed")])
def test_products_have_the_precision_that_was_asked_for(
    precision: str, kind: str, digits: Path, tmp_path: Path
) -> None:
    """And convolutions, which cuDNN makes and the rehearsal cannot see: torch's switch for them."""
    torch.backends.cudnn.allow_tf32 = True  # torch's default
    specs = specs_of("baseline", [0], "model.hidden=[24]", "train.epochs=1", f"train.precision={precision}")
    with emulated(), noted() as notes:
        assert train_specs(digits, specs, tmp_path) == 0
    products = {line.split()[1] for line in notes if line.startswith("PRODUCT")}
    assert products and products <= {kind, "fp32"} and kind in products
    assert torch.backends.cudnn.allow_tf32 == (precision == "tf32")


def rate_baked_in(self: Any, inputs: Any, rates: Any, batch_size: int) -> None:
    """The schedule would be lost."""
    REAL_COMPUTE(
        self, inputs, [0.001 if isinstance(rate, torch.Tensor) else rate for rate in rates], batch_size
    )


def warm_up_kept(self: Any, step: Any, *arguments: Any) -> Any:
    for _ in range(2):
        step.compute(*arguments)
    return REAL_CAPTURED(self, step, *arguments)


def images_not_refilled(self: Any) -> list[torch.Tensor]:
    """Each replay would read the first batch."""
    return REAL_TENSORS(self)[1:]


REAL_COMPUTE = step_module.TrainStep.compute
REAL_CAPTURED = step_module._Graph._captured
REAL_TENSORS = step_module._Inputs.tensors
FAULTS = {
    "rate": mock.patch.object(step_module.TrainStep, "compute", rate_baked_in),
    "warm-up": mock.patch.object(step_module._Graph, "_captured", warm_up_kept),
    "images": mock.patch.object(step_module._Inputs, "tensors", images_not_refilled),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_seen(fault: str, digits: Path, tmp_path: Path) -> None:
    """Else the comparison above would say nothing."""
    with FAULTS[fault]:
        assert worst_difference("adamw, cosine", digits, tmp_path) > 1e-3


def test_a_step_that_cannot_be_captured_is_computed(digits: Path, tmp_path: Path) -> None:
    """One that asks the device for an answer, which CUDA refuses while a stream captures."""

    def asks(self: Any, *arguments: Any) -> None:
        REAL_COMPUTE(self, *arguments)
        assert self.loss_sum.sum().item() >= 0

    with (
        mock.patch.object(step_module.TrainStep, "compute", asks),
        pytest.warns(HpcMlpWarning, match="not captured") as told,
    ):
        assert worst_difference("adamw, cosine", digits, tmp_path) < 3e-6
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
    specs = specs_of("batchnorm,dropout", [0], "model.hidden=[16]", "train.epochs=1", "train.batch_size=200",
                     "train.checkpoint_every=0.000001")  # fmt: skip
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
