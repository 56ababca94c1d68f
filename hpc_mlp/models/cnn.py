"""Convolutional models, for comparison beside the MLPs."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from hpc_mlp.config.sections import ModelConfig
from hpc_mlp.errors import UserError
from hpc_mlp.models.mlp import ACTIVATIONS
from hpc_mlp.models.registry import ImageShape, register


@register("cnn")
def cnn(config: ModelConfig, image_shape: ImageShape, num_classes: int) -> nn.Sequential:
    """For every width of `model.channels`: 3×3 convolution, [BatchNorm2d], activation, 2×2 max
    pooling (while the image is larger than one pixel); then global average pooling, [Dropout],
    Linear."""
    channels, height, width = image_shape
    layers: list[nn.Module] = []
    for out in config.channels:
        layers.append(nn.Conv2d(channels, out, 3, padding=1, bias=not config.batchnorm))
        if config.batchnorm:
            layers.append(nn.BatchNorm2d(out))
        layers.append(ACTIVATIONS[config.activation]())
        if min(height, width) >= 2:
            layers.append(nn.MaxPool2d(2))
            height, width = height // 2, width // 2
        channels = out
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    (rate,) = config.dropout_rates(1)
    if rate > 0:
        layers.append(nn.Dropout(rate))
    layers.append(nn.Linear(channels, num_classes))
    return nn.Sequential(*layers)


@register("resnet18")
def resnet18(config: ModelConfig, image_shape: ImageShape, num_classes: int) -> nn.Module:
    """torchvision's ResNet18. Images below 128 px get a 3×3 stride-1 stem without max pooling, as
    is usual on CIFAR (arXiv 1512.03385, section 4.2). `pretrained`: true loads ImageNet weights, a
    path a local state dict; the stem and the head are new where shapes differ."""
    # Slow to import, needed only here.
    import torchvision

    channels, height, width = image_shape
    weights = None
    if config.pretrained is True:
        try:
            weights = torchvision.models.ResNet18_Weights.DEFAULT.get_state_dict(
                progress=False, check_hash=True
            )
        except OSError as error:
            raise UserError(
                f"model.pretrained = true: the ImageNet weights cannot be downloaded ({error}). "
                "Give a local file instead: --set model.pretrained=FILE (a state dict, .pth or "
                ".safetensors)."
            ) from None
    elif isinstance(config.pretrained, str):
        weights = _load_weights(Path(config.pretrained))
    model: nn.Module = torchvision.models.resnet18(num_classes=num_classes)
    small = min(height, width) < 128
    if small or channels != 3:
        kernel, stride = (3, 1) if small else (7, 2)
        model.conv1 = nn.Conv2d(
            channels, 64, kernel, stride=stride, padding=kernel // 2, bias=False
        )
    if small:
        model.maxpool = nn.Identity()
    if weights is not None:
        own = model.state_dict()
        fitting = {k: w for k, w in weights.items() if k in own and own[k].shape == w.shape}
        if not fitting:
            raise UserError(
                f"model.pretrained = {config.pretrained!r}: none of its tensors fits ResNet18."
            )
        # Without memory (`torch.device("meta")`) only names and shapes count.
        if not own["fc.weight"].is_meta:
            model.load_state_dict(own | fitting)
    return model


def _load_weights(path: Path) -> dict[str, torch.Tensor]:
    """A local state dict, .safetensors or .pt(h); nothing in the file is executed."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"model.pretrained: no file at {path}.") from None
    except Exception as error:
        raise UserError(
            f"model.pretrained: {path} is not a weights file ({type(error).__name__})."
        ) from None
    if not isinstance(state, dict):
        raise UserError(f"model.pretrained: {path} is not a state dict.")
    return state
