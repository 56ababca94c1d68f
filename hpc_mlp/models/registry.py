"""`model.kind` → a plain torch module. One factory per kind; users register their own.

A factory takes `(ModelConfig, image_shape (C, H, W), num_classes)` and returns a module that maps
float32 [B, C, H, W] (for MLPs: also [B, C·H·W]) to logits float32 [B, K].
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from types import ModuleType

import torch
from torch import nn

from hpc_mlp.config.plugins import Plugin
from hpc_mlp.config.sections import ModelConfig
from hpc_mlp.errors import UserError, unknown_name

# Channels, height, width.
ImageShape = tuple[int, int, int]
Factory = Callable[[ModelConfig, ImageShape, int], nn.Module]

BUILT_IN = ("mlp", "residual_mlp", "cnn", "resnet18")

_FACTORIES: dict[str, Factory] = {}
# sha256 of a plugin → what it registered.
_PLUGINS: dict[str, dict[str, Factory]] = {}
# What the plugin that is being run has registered so far.
_running: dict[str, Factory] | None = None


def register(kind: str) -> Callable[[Factory], Factory]:
    """Decorator: make `model.kind = kind` build what the decorated factory returns."""

    def add(factory: Factory) -> Factory:
        if kind in BUILT_IN and not factory.__module__.startswith("hpc_mlp.models."):
            raise UserError(f"model.kind {kind!r} is built in: register yours under another name.")
        (_FACTORIES if _running is None else _running)[kind] = factory
        return factory

    return add


def load_plugins(plugins: Iterable[Plugin]) -> None:
    """Run the user's Python files, so that they can `register` models; what a file registered
    counts until another call names another file with the same kind. UserError where a file fails,
    or two have the same kind."""
    global _running
    owners: dict[str, Plugin] = {}
    for plugin in {plugin.sha256: plugin for plugin in plugins}.values():
        if plugin.sha256 not in _PLUGINS:
            _running = {}
            try:
                _run(plugin)
                _PLUGINS[plugin.sha256] = _running
            finally:
                _running = None
        for kind in _PLUGINS[plugin.sha256]:
            if kind in owners:
                raise UserError(
                    f"{owners[kind].path} and {plugin.path} both register model.kind {kind!r}."
                )
            owners[kind] = plugin
    for kind, plugin in owners.items():
        _FACTORIES[kind] = _PLUGINS[plugin.sha256][kind]


def _run(plugin: Plugin) -> None:
    module = ModuleType(f"hpc_mlp_plugin_{plugin.path.stem}_{plugin.sha256[:12]}")
    module.__file__ = str(plugin.path)
    # Data classes and pickle look their module up there.
    sys.modules[module.__name__] = module
    try:
        exec(compile(plugin.source, str(plugin.path), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[module.__name__]
        why = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        raise UserError(f"plugin {plugin.path} failed: {why}") from error


def build_module(
    config: ModelConfig, image_shape: ImageShape, num_classes: int, seed: int
) -> nn.Module:
    """The module on the CPU, its initial weights a function of (config, seed) alone."""
    if config.kind not in _FACTORIES:
        raise unknown_name("model.kind", config.kind, sorted(_FACTORIES))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _FACTORIES[config.kind](config, image_shape, num_classes)


def count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
