"""From pixels to what a model is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hpc_mlp.data.manifest import Manifest
from hpc_mlp.machine.device import branch


class PixelMoments(NamedTuple):
    """Of training pixels in [0, 1], by channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class Normaliser:
    """(x − mean) / std on `device`. One `PixelMoments` for all images [..., C, H, W], or one for
    each of S batches [S, b, C, H, W]. A channel whose std is 0 is only centred."""

    def __init__(self, moments: Sequence[PixelMoments], device: torch.device) -> None:
        shape = (-1, 1, 1) if len(moments) == 1 else (len(moments), 1, -1, 1, 1)
        std = torch.tensor([own.std for own in moments], dtype=torch.float64)
        inverse = (1 / torch.where(std > 1e-7, std, 1.0)).float()
        pairs = [scale_and_offset(*own) for own in moments]
        tensors = (
            torch.stack([scale for scale, _ in pairs]),
            torch.stack([offset for _, offset in pairs]),
            torch.tensor([own.mean for own in moments]),
            inverse,
        )
        self._scale, self._offset, self._mean, self._inverse = (
            tensor.view(shape).to(device) for tensor in tensors
        )
        self._branch = branch(device)

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 → float32: x/255 is taken together with the rest, one scale and one offset."""
        if self._branch == "cuda":
            # One kernel: the cast happens inside.
            return torch.addcmul(self._offset, images, self._scale)
        # On a CPU three times as fast as a broadcast addcmul.
        return images.float().mul_(self._scale).add_(self._offset)

    def augmented_(self, pixels: Tensor) -> Tensor:
        """float32 in [0, 1], in place."""
        return pixels.sub_(self._mean).mul_(self._inverse)


def normaliser(manifest: Manifest, device: torch.device) -> Normaliser:
    """Of the dataset as it was split."""
    return Normaliser([PixelMoments(manifest.mean, manifest.std)], device)


def scale_and_offset(mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
    """float32 [C, 1, 1] each: normalised pixels are uint8 pixels · scale + offset."""
    deviation = torch.tensor(std, dtype=torch.float64)
    inverse = 1.0 / torch.where(deviation > 1e-7, deviation, 1.0)
    offset = -torch.tensor(mean, dtype=torch.float64) * inverse
    return (inverse / 255.0).float().view(-1, 1, 1), offset.float().view(-1, 1, 1)
