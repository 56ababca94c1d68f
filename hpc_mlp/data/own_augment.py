"""Augmentations of the user's own: functions of a batch of images and of random numbers that are
handed to them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpc_mlp.config.registry import call
from hpc_mlp.errors import OwnCodeError
from hpc_mlp.machine.device import send
from hpc_mlp.machine.randomness import own_draws

# (seed, name of an augmentation) → whether what it gave was not finite somewhere: bool [], on the
# device, as a GPU's answer would be waited for.
Broken = dict[tuple[int, str], Tensor]


class AugmentationError(OwnCodeError):
    """Of the runs of one seed that name this augmentation."""

    def __init__(self, name: str, seed: int, why: str) -> None:
        super().__init__(f"augment.custom {name!r} {why}", ())
        self.name, self.seed = name, seed


class ImageDraws:
    """Random numbers for a batch of n images, float32 on its device. Those of an image depend on
    the run's seed, the epoch, the step, the image's place in the batch, the augmentation's name and
    on how many draws of this call came before: not on the other runs, nor on the processes that
    share the batch, nor on interruptions."""

    def __init__(
        self,
        name: str,
        seed: int,
        epoch: int,
        step: int,
        rows: NDArray[np.int64],
        device: torch.device,
    ) -> None:
        digest = hashlib.sha256(name.encode()).digest()
        # Far from all steps, which stand there in other draws.
        self._stream = int.from_bytes(digest[:8], "little") | 1 << 63
        self._place, self._rows, self._device = (seed, epoch, step), rows, device
        self._calls = 0

    def uniform(self, *shape: int) -> Tensor:
        """[n, *shape], in [0, 1)"""
        return self._draw(shape, normal=False)

    def normal(self, *shape: int) -> Tensor:
        """[n, *shape], of mean 0 and standard deviation 1"""
        return self._draw(shape, normal=True)

    def _draw(self, shape: Sequence[int], *, normal: bool) -> Tensor:
        width = int(np.prod(shape, dtype=np.int64))
        count = int(self._rows.max(initial=-1)) + 1
        table = own_draws(*self._place, self._stream, self._calls, count, width, normal=normal)
        self._calls += 1
        rows = torch.from_numpy(table[self._rows])
        return send(rows.view(len(self._rows), *shape), self._device)


@torch.no_grad()
def augment_own(
    images: Tensor,
    names: Sequence[str],
    *,
    seed: int,
    epoch: int,
    step: int,
    rows: NDArray[np.int64],
    broken: Broken | None = None,
) -> Tensor:
    """float32 [n, C, H, W] in [0, 1] of one seed, `rows` int64 [n]: their places in the global
    batch → the same, by the registered functions. What is not finite is noted in `broken`.
    AugmentationError where a function fails, or gives something else."""
    for name in names:
        draws = ImageDraws(name, seed, epoch, step, rows, images.device)
        try:
            found = call("augmentation", name, (images, draws), ())
        except OwnCodeError as error:
            why = str(error).partition(f"{name!r} ")[2]
            raise AugmentationError(name, seed, why) from error.__cause__
        if not isinstance(found, Tensor) or found.shape != images.shape:
            what = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise AugmentationError(name, seed, f"gives {what} for images {list(images.shape)}.")
        if not found.is_floating_point() or found.device != images.device:
            raise AugmentationError(
                name,
                seed,
                f"gives {found.dtype} on {found.device}; floats on {images.device} are needed.",
            )
        if broken is not None:
            flag = broken.setdefault(
                (seed, name), torch.zeros((), dtype=torch.bool, device=images.device)
            )
            flag.logical_or_(~found.isfinite().all())
        # A copy: it may be a view, or a tensor that the function keeps, and is written to.
        images = found.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    return images
