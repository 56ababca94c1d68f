"""Plugins with functions of one's own, good ones and such as fail, and runs that use them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hpc_mlp.config.plan import RunSpec, TrainOptions
from hpc_mlp.config.registry import load_plugins
from hpc_mlp.training.session import train_specs
from support.banks import specs_of
from support.interrupted import Guillotine, Killed
from support.process import result, timeless

CPU = TrainOptions(cpu=True)
SMALL = ("model.hidden=[16]", "train.epochs=3", "train.checkpoint_every=20 steps")

# `{folder}` makes it another file in each test: what it has counted is of that test alone.
LOSSES = """
# {folder}
import itertools
import torch
import torch.nn.functional as F
from hpc_mlp import register_loss

calls = itertools.count()

@register_loss("focal")
def focal(logits, labels):
    loss = F.cross_entropy(logits, labels, reduction="none")
    return (1 - torch.exp(-loss)) ** 2 * loss

@register_loss("same")
def same(logits, labels):
    return F.cross_entropy(logits, labels, reduction="none")

@register_loss("mean")
def mean(logits, labels):
    return F.cross_entropy(logits, labels)

@register_loss("detached")
def detached(logits, labels):
    return same(logits.detach(), labels)

@register_loss("text")
def text(logits, labels):
    return "0.5"

@register_loss("raises")
def raises(logits, labels):
    if next(calls) >= 60:
        raise ValueError("it breaks in the loss")
    return same(logits, labels)

@register_loss("infinite")
def infinite(logits, labels):
    return same(logits, labels) / (next(calls) < 60)

@register_loss("asks")
def asks(logits, labels):
    loss = same(logits, labels)
    return loss if loss.mean().item() > 0 else 2 * loss
"""

METRICS = """
# {folder}
import torch
from hpc_mlp import register_metric

@register_metric("top2")
def top2(probabilities, labels):
    return (probabilities.topk(2).indices == labels[:, None]).any(1).float().mean()

@register_metric("brier", higher_is_better=False)
def brier(probabilities, labels):
    truth = torch.nn.functional.one_hot(labels, probabilities.shape[1])
    return (probabilities.sub_(truth) ** 2).sum(1).mean().item()
"""

# It does so in the call FIRST, counted from 0.
BAD_METRIC = """
# {folder}
import itertools
import torch
from hpc_mlp import register_metric

calls = itertools.count()

@register_metric("bad")
def bad(probabilities, labels):
    if next(calls) == FIRST:
        FAILS
    return 0.5
"""

AUGMENTATIONS = """
# {folder}
import itertools
import torch
from hpc_mlp import register_augmentation

calls = itertools.count()

@register_augmentation("noise")
def noise(images, draws):
    strength = 0.2 * draws.uniform(1, 1, 1)
    return (images + strength * draws.normal(*images.shape[1:])).clamp(0, 1)

@register_augmentation("invert")
def invert(images, draws):
    images[draws.uniform() < 0.5] *= -1
    return images.remainder_(1)

@register_augmentation("beyond")
def beyond(images, draws):
    return images - 1.5

@register_augmentation("raises")
def raises(images, draws):
    if next(calls) >= 60:
        raise ValueError("it breaks in the augmentation")
    return images

@register_augmentation("infinite")
def infinite(images, draws):
    return images / (next(calls) < 60)

@register_augmentation("smaller")
def smaller(images, draws):
    return images[:, :, 1:]

@register_augmentation("whole")
def whole(images, draws):
    return (255 * images).to(torch.uint8)
"""


def focal(logits: Tensor, labels: Tensor) -> Tensor:
    """As in the plugin, for one image or more."""
    loss = F.cross_entropy(logits, labels, reduction="none")
    return (1 - torch.exp(-loss)) ** 2 * loss


def write_plugin(folder: Path, code: str = LOSSES) -> Path:
    """→ a file for --config that names it"""
    (folder / "own.py").write_text(code.format(folder=folder))
    (folder / "own.toml").write_text('plugins = ["own.py"]\n')
    return folder / "own.toml"


def variant(folder: Path, name: str, settings: str, code: str = LOSSES) -> Path:
    """A variant with the plugin, and `settings` as TOML: `train.loss = "focal"`."""
    folder.mkdir(exist_ok=True)
    write_plugin(folder, code)
    path = folder / f"{name}.toml"
    path.write_text(f'plugins = ["own.py"]\n{settings}\n')
    return path


def specs(variants: str, seeds: list[int], *sets: str) -> list[RunSpec]:
    """In the order of a bank, their plugins loaded."""
    found = specs_of(variants, seeds, *sets)
    load_plugins([plugin for spec in found for plugin in spec.plugins])
    return found


def outcome(run: Path) -> list[Any]:
    """All that must not depend on a run's company, nor on interruptions."""
    files = [(run / name).read_bytes() for name in ("best.safetensors", "predictions.npz")]
    return [*files, timeless(run), result(run)["test"], result(run)["best_epoch"]]


def check_killed_and_resumed(
    digits: Path,
    runs: Sequence[RunSpec],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
) -> None:
    """Killed after renaming the `number`-th file, and resumed, they end with the bits of runs that
    nobody disturbed. One of them is `own-s0`."""
    assert train_specs(digits, runs, folder / "undisturbed", CPU) == 0
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", Guillotine(os.replace, number, after=True))
        with suppress(Killed):
            train_specs(digits, runs, folder / "killed", CPU)
    assert not (folder / "killed" / "own-s0" / "result.json").exists()
    assert train_specs(digits, runs, folder / "killed", CPU) == 0
    for run in (folder / "undisturbed").iterdir():
        assert outcome(run) == outcome(folder / "killed" / run.name)
