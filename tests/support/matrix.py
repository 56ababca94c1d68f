"""Whole trainings whose steps are captured, compared with those of a CPU: settings, and faults that
must be seen."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from hpc_mlp.bank import step as step_module
from hpc_mlp.config.plan import TrainOptions
from hpc_mlp.training.session import train_specs
from support.banks import specs_of
from support.process import metrics, result

RESIDUAL = ("model.kind=residual_mlp", "model.blocks=2", "model.hidden=[24,24]")
ADAMW = (
    "optim.name=adamw",
    "optim.weight_decay=0.05",
    "optim.decay_bias_and_norm=false",
    "schedule.name=cosine",
)
# Variants, seeds, settings.
SETTINGS: dict[str, tuple[str, list[int], tuple[str, ...]]] = {
    "defaults": ("all", [0, 1], ()),
    "streaming": ("all", [0, 1], ("data.mode=streaming",)),
    "mixup, smoothing, class weights": (
        "all",
        [0, 1],
        ("train.mixup=0.2", "train.label_smoothing=0.1", "train.class_weights=balanced"),
    ),
    "augmented": (
        "all",
        [0, 1],
        (
            "augment.horizontal_flip=0.5",
            "augment.shift=0.1",
            "augment.rotation=10",
            "augment.brightness=0.2",
            "augment.erasing=0.3",
        ),
    ),
    "sgd": ("all", [0], ("optim.name=sgd", "optim.momentum=0.0", "optim.lr=0.05")),
    "adamw, cosine": ("all,dropout_l2", [0], ADAMW),
    "optimizers side by side": (
        "dropout_l2,dropout_batchnorm",
        [0],
        ("optim.name=sgd,adam,adamw", "optim.nesterov=true", "schedule.name=cosine"),
    ),
    "lion and muon": (
        "dropout_batchnorm,dropout_l2,cnn",
        [0],
        ("optim.name=lion,muon", "schedule.name=cosine", "model.channels=[4,6,8]"),
    ),
    "clipped, averaged weights": ("all", [0, 1], ("optim.clip_norm=0.5", "train.ema=0.9")),
    "residual with dropout": ("dropout", [0, 1], RESIDUAL),
    "residual": ("baseline", [0], RESIDUAL),
    "a cnn beside MLPs": ("all,cnn", [0], ("model.channels=[8,16]",)),
    "members that leave": ("all", [0], ("train.epochs=1:3:1",)),
    "a last batch of one image": ("all", [0], ("train.batch_size=719",)),
    "gelu": ("all", [0], ("model.activation=gelu",)),
    "silu": ("all", [0], ("model.activation=silu",)),
    "tanh": ("all", [0], ("model.activation=tanh",)),
    "leaky_relu": ("all", [0], ("model.activation=leaky_relu",)),
    "a batch larger than the data": ("all", [0], ("train.batch_size=4000",)),
}


def worst_difference(
    name: str,
    digits: Path,
    folder: Path,
    device: AbstractContextManager[Any],
    *more: str,
    cpu: bool = False,
) -> float:
    """Of the validation losses, relative, between the CPU and the `device` (`cpu`: it has the CPU's
    tensors)."""
    variants, seeds, sets = SETTINGS[name]
    sets = ("model.hidden=[24,16]", "train.epochs=2", *more, *sets)
    specs = specs_of(variants, seeds, *sets)
    assert train_specs(digits, specs, folder / "cpu", TrainOptions(cpu=True)) == 0
    with device:
        assert train_specs(digits, specs, folder / "device", TrainOptions(cpu=cpu)) == 0
    differences: list[float] = []
    for spec in specs:
        assert result(folder / "device" / spec.name)["device"].startswith("cpu" if cpu else "cuda")
        lines = zip(
            metrics(folder / "cpu" / spec.name), metrics(folder / "device" / spec.name), strict=True
        )
        differences += [
            abs(one["val_loss"] - other["val_loss"]) / one["val_loss"] for one, other in lines
        ]
    return max(differences)


def rate_baked_in(self: Any, inputs: Any, rates: Any, batch_size: int) -> None:
    """The schedule would be lost."""
    REAL_COMPUTE(
        self,
        inputs,
        [0.001 if isinstance(rate, torch.Tensor) else rate for rate in rates],
        batch_size,
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
FAULTS: dict[str, Any] = {
    "rate": mock.patch.object(step_module.TrainStep, "compute", rate_baked_in),
    "warm-up": mock.patch.object(step_module._Graph, "_captured", warm_up_kept),
    "images": mock.patch.object(step_module._Inputs, "tensors", images_not_refilled),
}
