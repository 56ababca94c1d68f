"""`model.kind` → a plain torch module. One factory per kind; users register their own
(`config.registry.register_model` says what a factory is)."""

from __future__ import annotations

import torch
from torch import nn

from hpc_mlp.config import registry
from hpc_mlp.config.registry import register_model as register
from hpc_mlp.config.sections import ModelConfig
from hpc_mlp.errors import unknown_name

__all__ = ["BUILT_IN", "ImageShape", "build_module", "count_parameters", "register"]

# Channels, height, width.
ImageShape = tuple[int, int, int]

BUILT_IN = registry.BUILT_IN["model"]


def build_module(
    config: ModelConfig, image_shape: ImageShape, num_classes: int, seed: int
) -> nn.Module:
    """The module on the CPU, its initial weights a function of (config, seed) alone."""
    factories = registry.registered("model")
    if config.kind not in factories:
        raise unknown_name("model.kind", config.kind, sorted(factories))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module: nn.Module = factories[config.kind].function(config, image_shape, num_classes)
        return module


def count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
