"""`model.kind` → a plain torch module. One factory per kind; users register their own.

A factory takes `(ModelConfig, image_shape (C, H, W), num_classes)` and returns a module that maps
float32 [B, C, H, W] (for MLPs: also [B, C·H·W]) to logits float32 [B, K].
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import nn

from hpc_mlp.config import ModelConfig
from hpc_mlp.errors import UserError, unknown_name

ImageShape = tuple[int, int, int]  # channels, height, width
Factory = Callable[[ModelConfig, ImageShape, int], nn.Module]

BUILT_IN = ("mlp", "residual_mlp", "cnn", "resnet18")

_FACTORIES: dict[str, Factory] = {}
_PLUGINS: dict[Path, list[str]] = {}  # file → the kinds that it registered


def register(kind: str) -> Callable[[Factory], Factory]:
    """Decorator: make `model.kind = kind` build what the decorated factory returns."""

    def add(factory: Factory) -> Factory:
        _FACTORIES[kind] = factory
        return factory

    return add


def load_plugins(paths: Iterable[Path]) -> None:
    """Run the user's Python files (`plugins = [...]` in a variant) so that they can `register` models."""
    for path in paths:
        if path in _PLUGINS:
            continue
        if not path.is_file():
            raise UserError(
                f"plugin {path} does not exist; paths in `plugins` are relative to the variant's file."
            )
        spec = importlib.util.spec_from_file_location(f"hpc_mlp_plugin_{path.stem}", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        before = set(_FACTORIES)
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            raise UserError(f"plugin {path} failed: {type(error).__name__}: {error}") from error
        _PLUGINS[path] = [kind for kind in _FACTORIES if kind not in before]


def plugins_of(kind: str) -> list[Path]:
    """The plugin that registered a kind, if one did."""
    return [path for path, kinds in _PLUGINS.items() if kind in kinds]


def build_module(config: ModelConfig, image_shape: ImageShape, num_classes: int, seed: int) -> nn.Module:
    """The module on the CPU, its initial weights a function of (config, seed) alone."""
    if config.kind not in _FACTORIES:
        raise unknown_name("model.kind", config.kind, sorted(_FACTORIES))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _FACTORIES[config.kind](config, image_shape, num_classes)


def count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
